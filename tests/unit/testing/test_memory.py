"""Guest memory and buffer layouts."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestwire.testing import BufferLayout, PageKind, SharedMemory

MIB = 1 << 20


@given(
    length=st.integers(13, 4000),
    header_apart=st.booleans(),
    piece_length=st.none() | st.integers(1, 500),
    offset=st.integers(0, 200),
)
def test_pieces_cover_the_buffer_and_nothing_overlaps(
    length: int, header_apart: bool, piece_length: int | None, offset: int
) -> None:
    layout = BufferLayout(length, header_apart, piece_length, offset=offset)
    pieces = layout.pieces(12)
    assert sum(n for _, n in pieces) == length
    assert all(n > 0 for _, n in pieces)
    ends = [0, *(start + n for start, n in pieces)]
    assert all(start >= end for end, (start, _) in zip(ends, pieces, strict=False))
    assert pieces[0][0] == offset
    assert layout.share(12) >= ends[-1] + 64


def test_a_header_apart() -> None:
    assert BufferLayout(1526, header_apart=True).lengths(12) == [12, 1514]
    assert BufferLayout(100, piece_length=40).lengths(12) == [40, 40, 20]
    assert BufferLayout(spacing=4096).share(12) == 4096


@pytest.mark.parametrize("one_file", [False, True])
def test_all_three_names_of_a_byte_differ(one_file: bool) -> None:
    sizes = (4096, 2 * MIB, 8192)
    with SharedMemory(*sizes, one_file=one_file) as memory:
        assert memory.size == sum(sizes)
        assert len({region.fd for region in memory.regions}) == (1 if one_file else 3)
        guest = [(r.guest_address, r.guest_address + r.size) for r in memory.regions]
        user = sorted((r.user_address, r.user_address + r.size) for r in memory.regions)
        for ranges in (guest, user):
            assert all(end < start for (_, end), (start, _) in pairwise(ranges))
        assert user[0][0] == memory.regions[-1].user_address
        for i, region in enumerate(memory.regions):
            region.bytes[100:104] = bytes([i] * 4)
            assert os.pread(region.fd, 4, region.mmap_offset + 100) == bytes([i] * 4)


def test_blocks_are_apart_and_aligned() -> None:
    with SharedMemory(MIB) as memory:
        one = memory.allocate(100, 16)
        other = memory.allocate(100, 4096)
        assert one.guest_address >= 4096
        assert other.guest_address % 4096 == 0
        assert other.guest_address >= one.guest_address + 100
        region = memory.regions[0]
        assert other.user_address - region.user_address == other.guest_address
        other.bytes[:] = b"x" * 100
        assert region.bytes[other.guest_address] == ord("x")
        with pytest.raises(MemoryError, match="which has"):
            memory.allocate(MIB)


def test_the_next_region_is_taken_when_one_is_full() -> None:
    with SharedMemory(8192, 16384) as memory:
        assert memory.allocate(8192).guest_address >= memory.regions[1].guest_address
        assert memory.allocate(16).guest_address < 8192
        assert memory.allocate(16, region=1).guest_address >= memory.regions[1].guest_address


@pytest.mark.parametrize("sizes", [(100,), (4096, 0), (4096,) * 510])
def test_impossible_sizes(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 4096"):
        SharedMemory(*sizes)


def test_nothing_leaks() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    memory = SharedMemory(4096, 4096)
    memory.allocate(10, region=1)
    memory.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_transparent_hugepages_are_asked_for() -> None:
    with SharedMemory(4 * MIB, pages=PageKind.TRANSPARENT) as memory:
        assert memory.regions[0].bytes[MIB] == 0
