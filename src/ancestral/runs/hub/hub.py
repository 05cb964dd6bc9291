"""Models on the Hugging Face hub, and every other source that one can be loaded from.

A published model is a folder: README.md, and under a manifest with the SHA-256 of each file

    config.json  model.safetensors  state.json  [calibration.safetensors]

The averaged weights and what sampling needs, nothing of the training; `push` cuts paths of this machine to their last
part.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from ancestral.data.source_paths import HUB_PREFIX, is_run
from ancestral.errors import UserError, missing
from ancestral.runs import checkpoint
from ancestral.runs.checkpoint import Checkpoint, OriginState
from ancestral.runs.hub import diffusers, import_checks
from ancestral.runs.hub.model_card import card
from ancestral.runs.lock import own
from ancestral.runs.measurements import read_measurements
from ancestral.runtime import verified_folder
from ancestral.runtime.console import Progress
from ancestral.runtime.tensor_files import parsed_folder
from ancestral.runtime.text import quoted

UNCHECKED = "its files carry no digests: a changed value cannot be noticed; compare SHA-256 with where they are from:"
# No pickle, and of several precisions the first: nothing else is downloaded.
_PATTERNS = ["*.json", "model.safetensors", checkpoint.CALIBRATION, "*diffusion_pytorch_model.safetensors"]
_MORE = "*diffusion_pytorch_model*.safetensors"  # shards and variants, where these patterns find no weights
_REASONS = {  # by the name of the library's error
    "GatedRepoError": "access must be asked for on its page",
    "RepositoryNotFoundError": "no such repository, or a private one that your token may not see (hf auth login)",
    "RevisionNotFoundError": "has no such revision",
    "OfflineModeIsEnabled": "the hub cannot be asked while HF_HUB_OFFLINE is set",
    "LocalEntryNotFoundError": "not in the cache (HF_HOME), and the hub cannot be reached or HF_HUB_OFFLINE is set",
    "HFValidationError": "is no name on the hub; write USER/NAME",
}


def load(source: str | Path, scheduler: Path | None = None, null_class: int | None = None) -> Checkpoint:
    """A model with its configuration.

    It is that of a run, RUN/averages/N, a published or a diffusers folder, or USER/NAME[@REVISION] on the hub.

    Args:
        source: its name.
        scheduler: of a diffusers folder that has none: the file, or its folder.
        null_class: of a diffusers folder: the number of its unconditional (null) class.

    Raises:
        UserError: when there is none, or it is damaged or of a kind unknown here.
    """
    name = str(source)
    folder = Path(name) if os.path.isdir(name) and not name.startswith(HUB_PREFIX) else _fetched(name)
    ours = is_run(folder) or checkpoint.is_average(folder)
    if ours or (folder / verified_folder.MANIFEST).is_file():
        for option, value in (("--scheduler", scheduler), ("--null-class", null_class)):
            if value is not None:
                raise UserError(f"{option}: is of diffusers folders; {name} is a model of this package")
    if is_run(folder):
        return import_checks.passed(checkpoint.open_newest(folder))
    if folder.name in ("averages", "checkpoints") and is_run(folder.parent):
        raise UserError(f"{source}: is a part of the run {folder.parent}; name that, or one of RUN/averages")
    if folder.parent.name == "checkpoints":
        raise UserError(f"{source}: is a checkpoint; name the run, whose newest is used, or one of RUN/averages")
    if checkpoint.is_average(folder):
        return import_checks.passed(checkpoint.open_average(folder))
    if (folder / verified_folder.MANIFEST).is_file():
        return import_checks.passed(_read(folder))
    return import_checks.passed(diffusers.read(folder, scheduler, null_class))


def _fetched(name: str) -> Path:
    """The files of a model on the hub, with or without `hf:` before its name."""
    try:
        return fetch(name.removeprefix(HUB_PREFIX))
    except UserError as error:
        raise error if name.startswith(HUB_PREFIX) else UserError(f"no such folder, nor on the hub: {error}") from None


def import_model(source: str, run: Path, scheduler: Path | None = None, null_class: int | None = None) -> list[str]:
    """Make a run of a model that `load` finds; hf: stands before a name on the hub. Returns lines to print.

    Raises:
        UserError: as `load`; or when the run is there already.
    """
    _need_none(run)
    if not source.startswith(HUB_PREFIX) and not Path(source).is_dir():
        raise UserError(f"{source}: no such folder; a name on the hub is written {HUB_PREFIX}USER/NAME")
    saved = load(source, scheduler, null_class)
    owner = own(run)
    try:
        _need_none(run)  # made by another command, meanwhile
        folder = checkpoint.save_imported(run, saved)
    finally:
        owner.release()
    lines = [f"imported: {folder}; now: ancestral sample {quoted(run)}", *saved.state.get("notes", [])]
    if "read" in saved.state and not saved.state.get("checked", True):  # a run has digests
        lines.append(UNCHECKED)
        lines += [f"  {digest}  {name}" for name, digest in saved.state["read"].items()]
    return lines


def _need_none(run: Path) -> None:
    if checkpoint.folders(run):
        raise UserError(f"{run}: holds a run already; choose another --out")


def fetch(name: str) -> Path:
    """The files of a model on the hub, from the cache where they are there.

    Raises:
        UserError: saying why not.
    """
    repository, _, revision = name.partition("@")
    if not repository:
        raise UserError(f"{HUB_PREFIX}{name}: names no model; write {HUB_PREFIX}USER/NAME")
    hub = _library()
    with Progress() as bar, _in_one_line(name):
        for patterns in (_PATTERNS, [*_PATTERNS, _MORE]):
            how = {"allow_patterns": patterns, "tqdm_class": _shown_on(bar)}
            folder = Path(hub.snapshot_download(repository, revision=revision or None, **how))
            if any(folder.rglob("*.safetensors")):
                break
    return folder


def _shown_on(bar: Progress) -> type:
    """A class of the library's bars that says what each shows to one of ours."""
    from tqdm import tqdm

    class Shown(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.task = bar.add_task(kwargs.get("desc") or "files", total=None)
            super().__init__(*args, **{**kwargs, "file": StringIO(), "disable": False, "mininterval": 0.5})

        def display(self, *args: Any, **kwargs: Any) -> None:
            bar.update(self.task, completed=self.n, total=self.total or None, description=self.desc.rstrip(": "))

        def close(self) -> None:
            bar.update(self.task, visible=False)
            super().close()

    return Shown


def push(run: Path, name: str, *, public: bool, license_name: str) -> str:
    """Publish the newest checkpoint of a run under a name on the hub. Returns its address.

    Args:
        run: the run.
        name: USER/NAME, or NAME of whoever the token belongs to.
        public: for everybody to see; a repository that is there already keeps its visibility, and must have this one.
        license_name: for the card.

    Raises:
        UserError: without a token or a connection, when the hub refuses, or when the newest checkpoint is damaged.
    """
    saved = checkpoint.open_newest(run)
    found = read_measurements(run, saved)
    saved = _public(saved)
    hub = _library()
    if hub.constants.HF_HUB_OFFLINE:
        raise UserError(f"{name}: {_REASONS['OfflineModeIsEnabled']}")
    if hub.get_token() is None:
        raise UserError(f"{name}: no token for the hub; log in with: hf auth login (or set HF_TOKEN)")
    with TemporaryDirectory() as temporary, _in_one_line(name):
        api = hub.HfApi()
        repository = api.create_repo(name, private=not public, exist_ok=True).repo_id
        if api.model_info(repository).private == public:
            now, mend = ("private", "leave out --public") if public else ("public", "add --public")
            raise UserError(f"{repository}: is {now} already; {mend}, or change that on its settings page")
        folder = Path(temporary) / "model"
        write(saved, folder, card(repository, saved, found, license_name))
        size = sum(path.stat().st_size for path in folder.iterdir())
        with Progress() as bar:  # how far it is, the library does not say
            bar.add_task(f"publishing {size / 1e6:.1f} MB", total=None)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message="The model and its card")
    return f"{hub.constants.ENDPOINT}/{repository}"


def write(saved: Checkpoint, folder: Path, text: str) -> None:
    """A published folder, with this text as its README.md."""
    state = {"images": saved.images, **_origin(saved.state)}
    verified_folder.write(folder, {**checkpoint.model_files(saved), "state.json": json.dumps(state).encode()})
    verified_folder.write_file(folder / "README.md", text.encode())


def _read(folder: Path) -> Checkpoint:
    parsed = parsed_folder(folder, (*checkpoint.MODEL_FILES, "state.json"))
    try:
        images = parsed["state.json"]["images"]
        if type(images) is not int or images < 0:
            raise ValueError(f"images is {images!r}")
        origin = _origin(parsed["state.json"])
        msgspec.convert(origin.get("origin"), OriginState | None)
    except (KeyError, ValueError, TypeError, msgspec.ValidationError) as error:
        raise verified_folder.Damaged(
            f"{folder / 'state.json'}: damaged or not of a published model ({error})"
        ) from None
    config, facts, calibration = checkpoint.description(parsed, folder)
    return Checkpoint(folder, images, config, facts, parsed["model.safetensors"], {}, origin, calibration)


def _origin(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a state says of the model that the run began with, if it did."""
    return {"origin": state["origin"]} if state.get("origin") else {}


def _public(saved: Checkpoint) -> Checkpoint:
    """A model as others may read of it."""
    config, state = saved.config, dict(saved.state)
    config = replace(config, source=_public_name(config.source), data=replace(config.data, cache=None))
    if origin := state.get("origin"):
        state["origin"] = {**origin, **{name: _public_name(origin[name]) for name in ("name", "source")}}
    return replace(saved, config=config, state=state)


def _public_name(source: str) -> str:
    """Of a path its last part; a name on the hub as it is."""
    on_hub = re.fullmatch(rf"{HUB_PREFIX}[\w.-]+/[\w.-]+(@[\w.-]+)?", source)
    return source if on_hub and not Path(source.removeprefix(HUB_PREFIX)).exists() else Path(source).resolve().name


def _library() -> Any:
    try:
        import huggingface_hub.constants  # the package is lazy: a part is there once it is asked for
    except ImportError:
        raise missing("the hub", "huggingface_hub", "hf") from None
    return huggingface_hub


@contextmanager
def _in_one_line(name: str) -> Iterator[None]:
    """Every way in which the library, or what it connects with, can fail, as one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reasons = [_REASONS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _REASONS]
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{name}: {reasons[0] if reasons else text[0]}") from None
