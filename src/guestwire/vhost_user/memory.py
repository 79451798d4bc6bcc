"""The memory table: which parts of the guest's memory the frontend shares, and where.

A table is a value: every change gives a new one, checked, and the session keeps the old one until
the device has taken the new.  Source: QEMU, docs/interop/vhost-user.rst, "Memory access".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

from guestwire.errors import FrontendError
from guestwire.vhost_user.descriptor import FileDescriptor
from guestwire.vhost_user.payloads import Region

_ADDRESS_LIMIT = 1 << 64
_FILE_LIMIT = 1 << 63  # off_t is signed


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """One region of guest memory, as a file that can be mapped.

    Attributes:
        guest_address: where the guest's drivers see it.
        size: bytes.
        user_address: where the frontend sees it; ring addresses are of this kind.
        mmap_offset: where it begins in the file; not necessarily on a page boundary.
        descriptor: the file, owned by whoever holds the table.
        additions: how often it was added, and is to be removed until it is gone.
    """

    guest_address: int
    size: int
    user_address: int
    mmap_offset: int
    descriptor: FileDescriptor
    additions: int = 1

    @classmethod
    def of(cls, region: Region, descriptor: FileDescriptor) -> Self:
        """Join what a message says with the descriptor that came along."""
        return cls(
            region.guest_address,
            region.size,
            region.user_address,
            region.mmap_offset,
            descriptor,
        )

    @property
    def fd(self) -> int:
        """The file's descriptor, to borrow: valid while the region is in the table."""
        return self.descriptor.fileno()

    def __str__(self) -> str:
        return (
            f"the region of {self.size:#x} bytes at guest address {self.guest_address:#x}, "
            f"user address {self.user_address:#x}, file offset {self.mmap_offset:#x}"
        )


def _overlap(start: int, other_start: int, size: int, other_size: int) -> bool:
    return start < other_start + other_size and other_start < start + size


def _check(region: MemoryRegion) -> None:
    if region.size == 0:
        raise FrontendError(f"{region} is empty")
    for kind, start, limit in (
        ("guest address", region.guest_address, _ADDRESS_LIMIT),
        ("user address", region.user_address, _ADDRESS_LIMIT),
        ("file offset", region.mmap_offset, _FILE_LIMIT),
    ):
        if start + region.size > limit:
            raise FrontendError(f"{region} overflows: its {kind} ends beyond {limit:#x}")


class GuestMemory:
    """An immutable set of regions that do not overlap."""

    __slots__ = ("regions",)

    def __init__(self, regions: tuple[MemoryRegion, ...] = ()) -> None:
        self.regions = regions

    def __iter__(self) -> Iterator[MemoryRegion]:
        return iter(self.regions)

    def __len__(self) -> int:
        return len(self.regions)

    def with_repeated(self, region: MemoryRegion) -> GuestMemory | None:
        """Return the table with a region added once more; None if it is none of the table's, file and all."""
        for index, other in enumerate(self.regions):
            same = replace(other, descriptor=region.descriptor, additions=region.additions) == region
            if same and os.path.sameopenfile(region.fd, other.fd):
                return self._with(index, replace(other, additions=other.additions + 1))
        return None

    def _with(self, index: int, *regions: MemoryRegion) -> GuestMemory:
        return GuestMemory((*self.regions[:index], *regions, *self.regions[index + 1 :]))

    def with_region(self, region: MemoryRegion, most: int) -> GuestMemory:
        """Return the table with one region more.

        Raises:
            FrontendError: the region is empty, overflows, overlaps another one in the guest's or
                the frontend's addresses, or is one more than `most`.
        """
        _check(region)
        for other in self.regions:
            if _overlap(region.guest_address, other.guest_address, region.size, other.size):
                raise FrontendError(f"{region} overlaps {other} in guest addresses")
            if _overlap(region.user_address, other.user_address, region.size, other.size):
                raise FrontendError(f"{region} overlaps {other} in user addresses")
        if len(self.regions) >= most:
            raise FrontendError(
                f"{region} would be number {len(self.regions) + 1}, the most is {most}",
                "give the virtual machine fewer and larger memory devices",
            )
        return GuestMemory((*self.regions, region))

    def without(self, region: Region) -> tuple[GuestMemory, MemoryRegion | None]:
        """Return the table without a region, and that region; None if it was added more often than removed.

        "The memory region to be removed is identified by its guest address, user address and size.
        The mmap offset is ignored." (REM_MEM_REG)

        Raises:
            FrontendError: there is no such region.
        """
        wanted = (region.guest_address, region.user_address, region.size)
        for index, other in enumerate(self.regions):
            if (other.guest_address, other.user_address, other.size) == wanted:
                if other.additions > 1:
                    return self._with(index, replace(other, additions=other.additions - 1)), None
                return self._with(index), other
        raise FrontendError(
            f"no region of {region.size:#x} bytes at guest address {region.guest_address:#x}, "
            f"user address {region.user_address:#x} is in the table of {len(self.regions)}"
        )

    def holds(self, user_address: int, length: int) -> bool:
        """Tell whether a range of user addresses lies in one region."""
        return any(
            region.user_address <= user_address and user_address + length <= region.user_address + region.size
            for region in self.regions
        )
