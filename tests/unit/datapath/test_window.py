"""The window: placing, translation, and files that are not what they should be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestwire.datapath.window import Window

MIB = 1 << 20
USER = 0x7F0000000000


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 16 * MIB)
    yield fd
    os.close(fd)


def test_regions_that_are_neighbours_are_translated_as_one(memory: int) -> None:
    window = Window([(0, USER, MIB, memory, 0), (MIB, USER + MIB, MIB, memory, MIB)])
    across = window.translate_guest(MIB - 8, 16)
    os.pwrite(memory, bytes(range(16)), MIB - 8)
    assert window.read(across, 16) == bytes(range(16))
    window.close()


def test_a_hole_between_regions_is_not_translated(memory: int) -> None:
    window = Window([(0, USER, MIB, memory, 0), (3 * MIB, USER + 3 * MIB, MIB, memory, MIB)])
    assert window.translate_guest(3 * MIB, MIB) > 0
    for address, length in ((MIB, 1), (MIB - 1, 2), (3 * MIB - 1, 1), (4 * MIB, 1), (2**64 - 1, 1)):
        with pytest.raises(ValueError, match="outside"):
            window.translate_guest(address, length)
    window.close()


def test_every_region_shows_its_own_part_of_the_file(memory: int) -> None:
    count = 16
    regions = [(2 * i * MIB, USER + 2 * i * MIB, MIB, memory, i * MIB) for i in range(count)]
    for i in range(count):
        os.pwrite(memory, bytes([i]) * 8, i * MIB + 4096)
    window = Window(regions)
    for i in range(count):
        at = window.translate_guest(2 * i * MIB + 4096, 8)
        assert window.read(at, 8) == bytes([i]) * 8
        assert at == window.translate_user(USER + 2 * i * MIB + 4096, 8)
    assert window.guest_bytes == count * MIB
    window.close()


def test_509_regions_are_the_most(memory: int) -> None:
    regions = [(i * 8192, USER + i * 8192, 4096, memory, i * 4096) for i in range(510)]
    with pytest.raises(ValueError, match="510 memory regions"):
        Window(regions)
    window = Window(regions[:509])
    assert window.translate_guest(508 * 8192, 4096)
    window.close()


def test_a_file_offset_within_a_page(memory: int) -> None:
    os.pwrite(memory, b"here", 4096 + 100)
    window = Window([(0x1000, USER, 8192, memory, 4096 + 100)])
    assert window.read(window.translate_guest(0x1000, 4), 4) == b"here"
    window.close()


def test_large_regions_keep_huge_pages_possible(memory: int) -> None:
    window = Window([(0, USER, 3 * MIB, memory, MIB)])
    with Path("/proc/self/maps").open() as maps:
        starts = [int(line.split("-")[0], 16) for line in maps if "memfd:guest" in line]
    assert any(start % (2 * MIB) == MIB for start in starts)
    window.close()


def test_a_region_beyond_its_file_is_refused(memory: int) -> None:
    with pytest.raises(ValueError, match="into a file of 0x1000000 bytes"):
        Window([(0, USER, 16 * MIB, memory, 4096)])


def test_no_regions_are_refused() -> None:
    with pytest.raises(ValueError, match="between 1 and 509"):
        Window([])


def test_a_descriptor_that_cannot_be_mapped_is_refused_and_leaves_nothing(memory: int) -> None:
    read_only = os.open(f"/proc/self/fd/{memory}", os.O_RDONLY)
    before = Path("/proc/self/maps").read_text().count("memfd:guest")
    with pytest.raises(OSError, match="Permission denied"):
        Window([(0, USER, MIB, memory, 0), (MIB, USER + MIB, MIB, read_only, 0)])
    os.close(read_only)
    assert Path("/proc/self/maps").read_text().count("memfd:guest") == before


def test_a_file_that_shrinks_does_not_kill_the_process(memory: int) -> None:
    other = os.memfd_create("other")
    os.ftruncate(other, MIB)
    window = Window([(0, USER, MIB, memory, 0), (MIB, USER + MIB, MIB, other, 0)])
    untouched = Window([(0, USER, MIB, other, 0)])
    assert window.fault is None
    os.ftruncate(memory, 0)
    assert window.read(window.translate_guest(4096, 8), 8) == bytes(8)
    assert window.fault == f"the file behind the guest's memory at frontend address {USER:#x} was truncated"
    assert untouched.fault is None
    window.close()
    untouched.close()
    os.close(other)


def test_reads_and_writes_stay_inside(memory: int) -> None:
    window = Window([(0, USER, MIB, memory, 0)], bounce_frames=1)
    for offset, length in ((window.size, 1), (-1, 1), (0, window.size + 1)):
        with pytest.raises(ValueError, match="outside the window"):
            window.read(offset, length)
        with pytest.raises(ValueError, match="outside the window"):
            window.write(offset, bytes(length))
    window.close()


def test_closing_gives_the_mappings_back(memory: int) -> None:
    window = Window([(0, USER, MIB, memory, 0)])
    mapped = Path("/proc/self/maps").read_text().count("memfd:guest")
    window.close()
    window.close()
    assert Path("/proc/self/maps").read_text().count("memfd:guest") == mapped - 1
