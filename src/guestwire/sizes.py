"""Amounts of memory as people write and read them."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

_UNITS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)([KMGT])(?:iB)?", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Return the bytes that ``4G``, ``512M`` or ``1.5GiB`` stands for; units are powers of 1024.

    A number needs its unit: a bare one would be mebibytes to QEMU's ``-m`` and bytes to others.

    Raises:
        ValueError: it is no size, or none that memory has.
    """
    match = _SIZE.fullmatch(text)
    size = int(Fraction(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size == 0:
        raise ValueError(f"{text!r} is no size: write a number with its unit, such as 512M or 1.5G")
    return size


def format_size(size: int) -> str:
    """Write `size` bytes for people: ``8 GiB``, ``1.5 GiB``, ``4,100.06 MiB``, ``64 KiB``.

    Only whole and half gibibytes are written as such, so that the memory of a guest and the slightly larger
    window that is made of it do not look the same.
    """
    for letter in "TG":
        if size >= _UNITS[letter] and size * 2 % _UNITS[letter] == 0:
            return _in(letter, size)
    if size < _UNITS["K"]:
        return f"{size} bytes"
    return _in("M" if size >= _UNITS["M"] else "K", size)


def _in(letter: str, size: int) -> str:
    return f"{size / _UNITS[letter]:,.2f}".rstrip("0").rstrip(".") + f" {letter}iB"


def size_setting(size: int) -> str:
    """Write a setting of at least `size` bytes that `parse_size` reads, in whole mebibytes: ``4101M``."""
    return f"{-(-size // _UNITS['M'])}M"
