"""`python -m ancestral`."""

from ancestral.apps.cli.main import main

main()
