"""What the documents tell people to type."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def code_blocks(document: str, *, containing: str) -> list[str]:
    """The code blocks of a document that hold some words, in its order."""
    text = (ROOT / document).read_text()
    found = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    chosen = [block for block in found if containing in block]
    assert chosen, f"{document} shows nothing with {containing!r}"
    return chosen
