"""Damaged run folders through every command that reads one: the short form of the harness."""

import subprocess
import sys
from pathlib import Path

HARNESS = Path(__file__).parents[1] / "corruption_harness.py"


def test_damage_is_named_or_changes_nothing():
    """The long form: python tests/corruption_harness.py 2000."""
    result = subprocess.run([sys.executable, HARNESS, "44", "7"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "0 wrong", result.stderr
