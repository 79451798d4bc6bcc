"""Sizes as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestwire.sizes import format_size, parse_size, size_setting

KIB, MIB, GIB, TIB = (1 << shift for shift in (10, 20, 30, 40))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4G", 4 * GIB),
        ("512M", 512 * MIB),
        ("1.5G", 3 * GIB // 2),
        ("64k", 64 * KIB),
        ("2TiB", 2 * TIB),
        ("8gib", 8 * GIB),
        ("0.3G", 322122547),
    ],
)
def test_parse(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4096",
        "4",
        "G",
        "-1G",
        "4GB",
        "4 G",
        " 4G",
        "4G ",
        "1e3M",
        ".5G",
        "1.G",
        "0G",
        "0.0000001K",
        "٤G",
        "∞G",
    ],
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is no size: write a number with its unit"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (64 * KIB, "64 KiB"),
        (512 * MIB, "512 MiB"),
        (1 * GIB, "1 GiB"),
        (3 * GIB // 2, "1.5 GiB"),
        (100 * GIB, "100 GiB"),
        (1536 * GIB, "1.5 TiB"),
        (4 * GIB + 4 * MIB + 64 * KIB, "4,100.06 MiB"),
        (304 * MIB + 307 * KIB, "304.3 MiB"),
    ],
)
def test_format(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(min_value=1, max_value=1 << 50))
def test_a_setting_is_enough_and_hardly_more(size: int) -> None:
    assert size <= parse_size(size_setting(size)) < size + MIB
