"""Memory in the shape of a guest's RAM: files that a vhost-user backend can map.

A region has three names for its bytes, and a backend must not mix them up: the guest address, by
which the driver names buffers; the user address, by which the frontend names rings; and the offset
in a file, by which the backend maps it.  Here all three differ, and no user address is an address
of any process.
"""

from __future__ import annotations

import enum
import errno
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from guestwire.errors import HostError
from guestwire.testing.layout import round_up

PAGE = 4096
HUGE_PAGE = 2 << 20
MIB = 1 << 20

USER_ADDRESSES = 0x5A00_0000_0000
"""Where the made-up user addresses begin.  They run against the order of the guest addresses."""

MAX_REGIONS = 509


class PageKind(enum.Enum):
    """What a guest's memory is made of."""

    SMALL = "4 KiB pages of a memory file"
    TRANSPARENT = "a memory file that asks for transparent hugepages"
    HUGETLB = "2 MiB hugepages of a memory file"


@dataclass(frozen=True)
class Block:
    """A piece of guest memory that was allocated.

    Attributes:
        guest_address: as the driver names it.
        user_address: as the frontend names it.
        bytes: the piece itself.
    """

    guest_address: int
    user_address: int
    bytes: memoryview


class Region:
    """A contiguous range of guest addresses, backed by a part of a file.

    Attributes:
        guest_address: its first byte, as the driver names it.
        size: in bytes.
        user_address: its first byte, as the frontend names it.
        fd: the file; it belongs to the memory.
        mmap_offset: where in the file it begins.
        bytes: the memory itself.
    """

    def __init__(self, guest_address: int, size: int, user_address: int, fd: int, mmap_offset: int) -> None:
        self.guest_address = guest_address
        self.size = size
        self.user_address = user_address
        self.fd = fd
        self.mmap_offset = mmap_offset
        self._mapping = mmap.mmap(fd, size, offset=mmap_offset)
        self.bytes = memoryview(self._mapping)
        self._blocks: list[memoryview] = []
        # A guest address of 0 should be a mistake, not a buffer.
        self._allocated = PAGE if guest_address == 0 else 0

    def allocate(self, size: int, alignment: int = 64) -> Block:
        """Take a piece that nobody else has; it is given back only with the whole memory.

        Raises:
            MemoryError: there is not so much left.
        """
        offset = round_up(self._allocated, alignment)
        if offset + size > self.size:
            raise MemoryError(
                f"{size} bytes in the region at guest address {self.guest_address:#x}, "
                f"which has {self.size - self._allocated} left of {self.size}"
            )
        self._allocated = offset + size
        self._blocks.append(self.bytes[offset : offset + size])
        return Block(self.guest_address + offset, self.user_address + offset, self._blocks[-1])

    def advise_hugepages(self) -> None:
        """Ask for transparent hugepages, and touch all pages so that they come now."""
        self._mapping.madvise(mmap.MADV_HUGEPAGE)
        for offset in range(0, self.size, PAGE):
            self.bytes[offset] = 0

    def close(self) -> None:
        """Unmap it; nobody may hold a view of it any more, but for the blocks."""
        for block in self._blocks:
            block.release()
        self.bytes.release()
        self._mapping.close()


class SharedMemory:
    """A guest's memory: some regions with holes between their guest addresses.

    Args:
        sizes: of the regions, in bytes; each a multiple of the page size.
        pages: what the memory is made of.
        one_file: whether all regions are parts of one file, as with QEMU's memory on both sides of
            the hole below 4 GiB, or each has its own.

    Raises:
        HostError: the machine has no such memory.
    """

    def __init__(
        self,
        *sizes: int,
        pages: PageKind = PageKind.SMALL,
        one_file: bool = False,
    ) -> None:
        sizes = sizes or (32 * MIB,)
        unit = PAGE if pages is PageKind.SMALL else HUGE_PAGE
        if len(sizes) > MAX_REGIONS or any(size < 1 or size % unit for size in sizes):
            raise ValueError(f"1 to {MAX_REGIONS} regions of multiples of {unit} bytes, not {sizes}")
        self.pages = pages
        self.regions: list[Region] = []
        self._fds: list[int] = []
        try:
            self._make_regions(sizes, one_file)
        except BaseException:
            self.close()
            raise

    def _make_regions(self, sizes: Sequence[int], one_file: bool) -> None:
        if one_file:
            self._fds.append(self._file(sum(sizes)))
        # A hole after each region, as large as the largest, at least 1 MiB.
        hole = max(MIB, round_up(max(sizes), HUGE_PAGE))
        guest_address = file_offset = 0
        for i, size in enumerate(sizes):
            if not one_file:
                self._fds.append(self._file(size))
            region = Region(
                guest_address,
                size,
                USER_ADDRESSES + 2 * hole * (len(sizes) - i),
                self._fds[-1],
                file_offset if one_file else 0,
            )
            self.regions.append(region)
            if self.pages is PageKind.TRANSPARENT:
                region.advise_hugepages()
            guest_address += round_up(size, HUGE_PAGE) + hole
            file_offset += size

    def _file(self, size: int) -> int:
        flags = os.MFD_CLOEXEC
        if self.pages is PageKind.HUGETLB:
            flags |= os.MFD_HUGETLB | os.MFD_HUGE_2MB
        fd = os.memfd_create("guest-memory", flags)
        try:
            os.ftruncate(fd, size)
            if self.pages is PageKind.HUGETLB:
                os.posix_fallocate(fd, 0, size)
        except OSError as error:
            os.close(fd)
            if self.pages is PageKind.HUGETLB and error.errno in {errno.ENOSPC, errno.ENOMEM}:
                raise HostError(
                    f"there are not {size // HUGE_PAGE} free hugepages of 2 MiB",
                    f"sysctl vm.nr_hugepages={size // HUGE_PAGE}, or more if others use some",
                ) from error
            raise
        return fd

    @property
    def size(self) -> int:
        """Bytes of all regions."""
        return sum(region.size for region in self.regions)

    def allocate(self, size: int, alignment: int = 64, *, region: int | None = None) -> Block:
        """Take a piece of memory that nobody else has.

        Args:
            size: in bytes.
            alignment: of its guest address.
            region: which region; the first that has room if None.

        Raises:
            MemoryError: there is no room.
        """
        if region is not None:
            return self.regions[region].allocate(size, alignment)
        for candidate in self.regions[:-1]:
            try:
                return candidate.allocate(size, alignment)
            except MemoryError:
                continue
        return self.regions[-1].allocate(size, alignment)

    def close(self) -> None:
        """Unmap the memory and close its files; `DriverRing.release` must have been called."""
        while self.regions:
            self.regions.pop().close()
        while self._fds:
            os.close(self._fds.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
