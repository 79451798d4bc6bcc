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
from guestwire.testing.driver_ring import PAINT
from guestwire.testing.faults import DeviceError
from guestwire.testing.layout import round_up

PAGE = 4096
HUGE_PAGE = 2 << 20
MIB = 1 << 20

USER_ADDRESSES = 0x5A00_0000_0000
"""Where the made-up user addresses begin.  They run against the order of the guest addresses."""

MAX_REGIONS = 509

SCATTERING = 64
"""Pages from one that comes into being to the next, where neighbours shall not be made side by side."""

PAINTED = bytes([PAINT]) * MIB
"""What guarded memory holds that nobody has allocated."""


class PageKind(enum.Enum):
    """What a guest's memory is made of."""

    SMALL = "4 KiB pages of a memory file"
    SCATTERED = "4 KiB pages of a memory file, far apart in the machine's memory"
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
        page_size: of the pages that it is made of, in bytes.
        bytes: the memory itself.
    """

    def __init__(
        self,
        guest_address: int,
        size: int,
        user_address: int,
        fd: int,
        mmap_offset: int,
        page_size: int = PAGE,
    ) -> None:
        self.guest_address = guest_address
        self.size = size
        self.user_address = user_address
        self.fd = fd
        self.mmap_offset = mmap_offset
        self.page_size = page_size
        self._mapping = mmap.mmap(fd, size, offset=mmap_offset)
        self.bytes = memoryview(self._mapping)
        self._blocks: list[memoryview] = []
        self._gaps: list[tuple[int, int]] = []
        self._painted = False
        # A guest address of 0 should be a mistake, not a buffer.
        self._allocated = PAGE if guest_address == 0 else 0
        self._end = 0  # of the last block

    def allocate(self, size: int, alignment: int = 64) -> Block:
        """Take a piece that nobody else has; it is given back only with the whole memory.

        What fits in one hugepage does not lie in two, for a device may see them apart.

        Raises:
            MemoryError: there is not so much left.
        """
        offset = round_up(self._allocated, alignment)
        room = self.page_size - offset % self.page_size
        if self.page_size > PAGE and room < size <= self.page_size:
            offset = round_up(offset + room, alignment)
        if offset + size > self.size:
            raise MemoryError(
                f"{size} bytes in the region at guest address {self.guest_address:#x}, "
                f"which has {self.size - self._allocated} left of {self.size}"
            )
        self._gaps.append((self._end, offset))
        self._end = self._allocated = offset + size
        block = self.bytes[offset : offset + size]
        if self._painted:
            block[:] = bytes(size)
        self._blocks.append(block)
        return Block(self.guest_address + offset, self.user_address + offset, block)

    def advise_hugepages(self) -> None:
        """Ask for transparent hugepages, and touch all pages so that they come now."""
        self._mapping.madvise(mmap.MADV_HUGEPAGE)
        self._touch(1)

    def scatter(self) -> None:
        """Have the pages made in an order such that no two neighbours are made side by side."""
        self._touch(SCATTERING)

    def _touch(self, stride: int) -> None:
        for first in range(stride):
            for offset in range(first * PAGE, self.size, stride * PAGE):
                self.bytes[offset] = 0

    def paint(self) -> None:
        """Fill it with what `check_guards` looks for; nothing may be allocated yet."""
        for offset in range(0, self.size, MIB):
            part = self.bytes[offset : offset + MIB]
            part[:] = PAINTED[: len(part)]
        self._painted = True

    def check_guards(self) -> None:
        """Check that nobody has written to what was painted and never allocated.

        Raises:
            DeviceError: somebody has.
        """
        for start, end in [*self._gaps, (self._end, self.size)]:
            for offset in range(start, end, MIB):
                found = self._mapping[offset : min(offset + MIB, end)]
                wanted = PAINTED[: len(found)]
                if found != wanted:
                    at = offset + next(i for i, byte in enumerate(found) if byte != PAINT)
                    raise DeviceError(
                        f"guest address {self.guest_address + at:#x} was written, which belongs to nobody",
                        "look at where the backend writes, and what the NIC was given",
                    )

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
        guarded: whether to fill all memory with a pattern, so that it shows if somebody writes to
            what nobody has allocated (`check_guards`).

    Raises:
        HostError: the machine has no such memory.
    """

    def __init__(
        self,
        *sizes: int,
        pages: PageKind = PageKind.SMALL,
        one_file: bool = False,
        guarded: bool = False,
    ) -> None:
        sizes = sizes or (32 * MIB,)
        unit = PAGE if pages in {PageKind.SMALL, PageKind.SCATTERED} else HUGE_PAGE
        if len(sizes) > MAX_REGIONS or any(size < 1 or size % unit for size in sizes):
            raise ValueError(f"1 to {MAX_REGIONS} regions of multiples of {unit} bytes, not {sizes}")
        self.pages = pages
        self.guarded = guarded
        self.regions: list[Region] = []
        self._fds: list[int] = []
        try:
            self._make_regions(sizes, one_file, unit)
        except BaseException:
            self.close()
            raise

    def _make_regions(self, sizes: Sequence[int], one_file: bool, page_size: int) -> None:
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
                page_size,
            )
            self.regions.append(region)
            if self.pages is PageKind.TRANSPARENT:
                region.advise_hugepages()
            elif self.pages is PageKind.SCATTERED:
                region.scatter()
            if self.guarded:
                region.paint()
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

    def check_guards(self) -> None:
        """Check that nobody has written to what nobody has allocated, if the memory is guarded.

        Raises:
            DeviceError: somebody has.
        """
        if self.guarded:
            for region in self.regions:
                region.check_guards()

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
