"""What registering memory with AF_XDP costs: pinned pages, and memory of the kernel's own.

Each socket that is bound to a queue has a registration (UMEM) and a buffer pool of its own. The sizes are
those of the kernel's sources, on 64-bit machines with pages of 4 KiB; rings, about 100 KiB, are left out.

Measured on veth, Linux 6.18, from /proc/vmallocinfo and /proc/meminfo: 1 GiB took 4 MiB to register
(computed: 4), and to bind 36 MiB in chunks of 4,096 bytes (34), 72 MiB in chunks of 2,048 bytes (68); 8 GiB
took 273 MiB to bind (272). The rest is rounding: to a power of two, or from 4 MiB on to whole huge pages. Of
zero-copy mode the kernel's source is the only witness.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from guestwire.host.capabilities import HostCapabilities
from guestwire.host.privileges import Capability

PAGE_BYTES: Final = 4096

LARGEST_ARRAY_BYTES: Final = (1 << 31) - 1
"""The kernel makes no array of more than INT_MAX bytes (``kvmalloc_node``, mm/slub.c)."""

# Of each page: a `struct page *` (xdp_umem_pin_pages), and an entry in the page tables of the kernel's own
# mapping of it (xdp_umem_addr_map calls vmap).
_PAGE_POINTER: Final = 8
_PAGE_TABLE_ENTRY: Final = 8

# Of each chunk: a `struct xdp_buff_xsk`, and in unaligned mode a pointer in `free_heads`
# (xp_create_and_assign_umem).
_BUFFER_HEAD: Final = 128
_FREE_HEAD: Final = 8

# Of each page in zero-copy mode: a DMA address for the device (xp_create_dma_map), and a copy of it for the
# pool (xp_init_dma_info).
_DMA_ADDRESSES: Final = 2 * 8


@dataclass(frozen=True, slots=True)
class RegistrationCost:
    """What one registration, bound to one queue, costs until its socket is closed.

    Attributes:
        pinned_bytes: memory that can neither move nor be swapped; it counts against RLIMIT_MEMLOCK.
        registration_bytes: kernel memory for the registration.
        queue_bytes: kernel memory for the bound queue's buffer pool.
        largest_array_bytes: the largest piece of it that the kernel allocates as one array.
    """

    pinned_bytes: int
    registration_bytes: int
    queue_bytes: int
    largest_array_bytes: int

    @property
    def kernel_bytes(self) -> int:
        """Kernel memory in all."""
        return self.registration_bytes + self.queue_bytes

    @property
    def array_fits(self) -> bool:
        """Whether the kernel makes arrays that large."""
        return self.largest_array_bytes <= LARGEST_ARRAY_BYTES


def registration_cost(size: int, chunk: int, *, zero_copy: bool) -> RegistrationCost:
    """Return what it costs to register `size` bytes in unaligned chunks, and to bind them to a queue.

    Args:
        size: bytes of the window.
        chunk: bytes of a chunk, 2,048 to 4,096.
        zero_copy: in the driver's zero-copy mode.
    """
    pages, chunks = -(-size // PAGE_BYTES), size // chunk
    return RegistrationCost(
        pinned_bytes=pages * PAGE_BYTES,
        registration_bytes=pages * (_PAGE_POINTER + _PAGE_TABLE_ENTRY),
        queue_bytes=chunks * (_BUFFER_HEAD + _FREE_HEAD) + pages * _DMA_ADDRESSES * zero_copy,
        largest_array_bytes=chunks * _BUFFER_HEAD,
    )


def largest_window(chunk: int) -> int:
    """Return the most bytes that can be bound in chunks of `chunk` bytes: 64 GiB with the largest chunks."""
    return (LARGEST_ARRAY_BYTES // _BUFFER_HEAD + 1) * chunk - PAGE_BYTES


def locked_memory_limit(host: HostCapabilities) -> int | None:
    """Return the limit on locked memory that the kernel applies to this process; None if it applies none.

    It holds for all processes of this user together; every registration counts (``xdp_umem_account_pages``).
    """
    if Capability.CAP_IPC_LOCK in host.capabilities and host.initial_user_namespace:
        return None
    return host.memory_lock_bytes
