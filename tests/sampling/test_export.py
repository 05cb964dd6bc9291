"""Exported models draw, where this package cannot be imported, what the run draws from the same noise."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from tests.conftest import RUNS, TINY, run_command

