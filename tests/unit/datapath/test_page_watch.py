"""Whether a guest's memory keeps its pages: on files of every kind, asked in both ways."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.process import hugepages
from guestwire.datapath.page_watch import PageWatch
from guestwire.datapath.window import Window
from guestwire.testing import PageKind, SharedMemory
from guestwire.testing.memory import Region

MIB = 1 << 20
SIZE = 8 * MIB
PUNCH_HOLE = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE


def punch(fd: int, offset: int, length: int) -> None:
    """Give pages of a file back, as QEMU does."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.fallocate(fd, PUNCH_HOLE, ctypes.c_long(offset), ctypes.c_long(length)) == 0


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def watch_of(*regions: Region, scan: bool = True) -> PageWatch:
    return PageWatch(
        [(r.guest_address, r.size, r.fd, r.mmap_offset, r.page_size) for r in regions], scan=scan
    )


@pytest.fixture(params=list(PageKind), ids=lambda kind: kind.name.lower())
def memory(request: pytest.FixtureRequest) -> Iterator[SharedMemory]:
    with (
        hugepages(8 if request.param is PageKind.HUGETLB else 0),
        SharedMemory(SIZE, SIZE, pages=request.param, one_file=True) as made,
    ):
        yield made


@pytest.fixture(params=[True, False], ids=["scan", "entries"])
def watch(request: pytest.FixtureRequest, memory: SharedMemory) -> Iterator[PageWatch]:
    """Of the first of two regions of one file."""
    made = watch_of(memory.regions[0], scan=request.param)
    made.begin()
    yield made
    made.close()


def test_memory_that_is_used_keeps_its_pages(watch: PageWatch, memory: SharedMemory) -> None:
    region = memory.regions[0]
    with mmap.mmap(region.fd, SIZE) as another:  # its first writes change the file's times
        for offset in range(0, SIZE, MIB):
            another[offset] = region.bytes[offset + 1] = 1
            assert not watch.look()


def test_a_hole_is_noticed(watch: PageWatch, memory: SharedMemory) -> None:
    assert not watch.look()
    punch(memory.regions[0].fd, 4 * MIB, 2 * MIB)
    assert watch.look()
    assert watch.lost


def test_a_hole_is_noticed_although_the_guest_has_filled_it(watch: PageWatch, memory: SharedMemory) -> None:
    region = memory.regions[0]
    for _ in range(2):  # a tick of the clock that files' times go by is longer than this
        assert not watch.look()
    punch(region.fd, 4 * MIB, 2 * MIB)
    region.bytes[4 * MIB : 6 * MIB] = bytes(2 * MIB)
    assert watch.look()


def test_the_last_page_is_watched_too(watch: PageWatch, memory: SharedMemory) -> None:
    page = memory.regions[0].page_size
    if memory.pages is PageKind.TRANSPARENT:
        page = 2 * MIB
    punch(memory.regions[0].fd, SIZE - page, page)
    assert watch.look()


def test_a_hole_elsewhere_in_the_file_does_not_matter(watch: PageWatch, memory: SharedMemory) -> None:
    punch(memory.regions[1].fd, memory.regions[1].mmap_offset, SIZE)
    assert not watch.look()


def test_a_hole_is_noticed_although_the_window_was_used_since(memory: SharedMemory) -> None:
    region = memory.regions[0]
    window = Window([(0, 0, SIZE, region.fd, 0)])
    window.pages.begin()
    punch(region.fd, 0, SIZE)
    window.write(window.translate_guest(0, SIZE), bytes(SIZE))
    assert window.pages.look()
    window.close()


def test_what_was_punched_before_does_not_matter(memory: SharedMemory) -> None:
    region = memory.regions[0]
    watch = watch_of(region)
    punch(region.fd, 0, SIZE)
    assert not watch.look()
    watch.begin()
    assert not watch.look()
    watch.close()


def test_the_last_of_several_ends_it(memory: SharedMemory) -> None:
    before = open_files()
    watch = watch_of(memory.regions[0])
    watch.begin()
    watch.begin()
    watch.end()
    punch(memory.regions[0].fd, 0, SIZE)
    assert watch.look()
    watch.lost = False
    watch.end()
    assert watch.watchers == 0
    assert not watch.look()
    watch.tidy()
    assert open_files() == before
    watch.begin()
    assert not watch.look()
    watch.close()
    assert open_files() == before


def test_a_file_that_has_shrunk_cannot_be_watched() -> None:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, SIZE)
    watch = PageWatch([(0, SIZE, fd, 0, mmap.PAGESIZE)])
    os.ftruncate(fd, SIZE // 2)
    with pytest.raises(OSError, match="guest memory cannot be mapped to be watched"):
        watch.begin()
    assert watch.watchers == 0
    watch.close()
    os.close(fd)


class Plugged:
    """A guest's memory, and a file of its own that virtio-mem may have plugged in part."""

    def __init__(self, size: int = 256 * MIB) -> None:
        self.size = size
        self.fds = [os.memfd_create("base"), os.memfd_create("virtio-mem")]
        for fd in self.fds:
            os.ftruncate(fd, size)
        self.watch = PageWatch(
            [(1 << 32, size, self.fds[1], 0, mmap.PAGESIZE), (0, size, self.fds[0], 0, mmap.PAGESIZE)]
        )

    def close(self) -> None:
        self.watch.close()
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def plugged() -> Iterator[Plugged]:
    made = Plugged()
    yield made
    made.close()


def test_a_second_file_that_nobody_has_touched_is_not_plugged(plugged: Plugged) -> None:
    assert plugged.watch.untouched() == (1 << 32, plugged.size)
    assert all(os.fstat(fd).st_blocks == 0 for fd in plugged.fds)


def test_a_second_file_that_is_used_in_part_is_not_plugged(plugged: Plugged) -> None:
    os.pwrite(plugged.fds[1], b"x" * MIB, 0)
    assert plugged.watch.untouched() == (1 << 32, plugged.size)


def test_a_second_file_whose_end_is_used_is_plugged(plugged: Plugged) -> None:
    os.pwrite(plugged.fds[1], b"x", plugged.size - 16 * MIB)
    assert plugged.watch.untouched() is None


def test_a_small_file_is_populated_anyway() -> None:
    small = Plugged(128 * MIB)
    assert small.watch.untouched() is None
    small.close()
