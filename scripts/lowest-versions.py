#!/usr/bin/env python3
"""Print pip's constraints for the oldest versions that pyproject.toml allows of what guestwire needs."""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"

for dependency in tomllib.loads(PROJECT.read_text())["project"]["dependencies"]:
    stated = re.fullmatch(r"([\w.-]+)>=([\w.]+)", dependency)
    if stated is None:
        sys.exit(f"pyproject.toml states no oldest version, NAME>=VERSION: {dependency!r}")
    print(f"{stated[1]}=={stated[2]}")
