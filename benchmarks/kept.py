"""How results are kept: JSON that a person can read, and a diff shows, a window a line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def save(path: Path, about: Mapping[str, Any], rows: Sequence[DataclassInstance]) -> None:
    """Write results: what they are about, and rows, which have windows among their fields."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(_row(asdict(row)) for row in rows)
    path.write_text(f'{{"about": {json.dumps(about, indent=1)},\n"rows": [\n{lines}\n]}}\n')


def _row(row: dict[str, Any]) -> str:
    windows = ",\n".join(f"  {json.dumps(window)}" for window in row.pop("windows"))
    return f'{json.dumps(row)[:-1]}, "windows": [\n{windows}\n]}}'
