"""A report that explains a model by its own numbers: `ancestral explain`."""

from pathlib import Path

LANGUAGES = tuple(sorted(folder.name for folder in (Path(__file__).parent / "text").iterdir()))
