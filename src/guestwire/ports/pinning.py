"""What a guest's memory becomes when it is registered, and what stands against that.

One answer for ``run``, which knows the window, and for ``doctor``, which knows only the size of a guest.
"""

from __future__ import annotations

from guestwire.datapath.window import Window
from guestwire.host.pinned_memory import PAGE_BYTES, largest_window, registration_cost
from guestwire.ports.geometry import FRAME_BYTES
from guestwire.ports.modes import Obstacle
from guestwire.sizes import format_size, size_setting

_GUARD_AND_ALIGNMENT = 2 << 20

TAKEN = (
    "pages of the guest's memory were taken away while they were pinned, as for free page reporting, "
    "virtio-mem and balloons"
)


def window_bytes(guest_bytes: int, bounce_frames: int) -> int:
    """Return about how large a window will be: to a few MiB, which depend on how the guest's memory is split.

    Args:
        guest_bytes: the guest's memory.
        bounce_frames: our own, for all queue pairs together.
    """
    pages = -(-guest_bytes // PAGE_BYTES)
    return _GUARD_AND_ALIGNMENT + pages * PAGE_BYTES + bounce_frames * FRAME_BYTES


def pinning_obstacle(
    size: int,
    chunk: int,
    *,
    registrations: int = 1,
    machine_bytes: int,
    locked_limit: int | None = None,
    budget: int | None = None,
) -> Obstacle | None:
    """Say why `size` bytes cannot be registered, if that is certain beforehand.

    Args:
        size: bytes of the window.
        chunk: bytes of a chunk.
        registrations: how many times the window is to be registered: once for each queue pair.
        machine_bytes: all memory of this machine.
        locked_limit: what `guestwire.host.pinned_memory.locked_memory_limit` says.
        budget: the guest's effective ``max_pinned``.
    """
    pinned = registrations * registration_cost(size, chunk, zero_copy=False).pinned_bytes
    times = f" for {registrations} queue pairs" if registrations > 1 else ""
    if size > largest_window(chunk):
        return Obstacle(
            f"the kernel binds at most {format_size(largest_window(chunk))} in chunks of {chunk:,} bytes, "
            f"not {format_size(size)}",
            "use mode=bounce, or a smaller guest",
        )
    if size > machine_bytes:
        return Obstacle(
            f"{format_size(size)} cannot be pinned on a machine of {format_size(machine_bytes)}",
            "use mode=bounce, or a smaller guest",
        )
    if locked_limit is not None and pinned > locked_limit:
        return Obstacle(
            f"{format_size(pinned)} would have to be pinned{times}, and the limit on locked memory "
            f"(RLIMIT_MEMLOCK) is {format_size(locked_limit)}",
            "grant CAP_IPC_LOCK, raise the limit (ulimit -l unlimited, LimitMEMLOCK=infinity in a systemd "
            "unit), or use mode=bounce",
        )
    if budget is not None and pinned > budget:
        return Obstacle(
            f"{format_size(pinned)} would have to be pinned{times}, and max_pinned is {format_size(budget)}",
            f"set max_pinned to {size_setting(pinned)} or more, or use mode=bounce",
        )
    return None


def unplugged_obstacle(window: Window) -> Obstacle | None:
    """Say which memory must not be populated, because virtio-mem seems not to have plugged it.

    What tells it apart from memory that the guest has not touched yet: `PageWatch.untouched`.
    """
    found = window.pages.untouched()
    if found is None:
        return None
    address, size = found
    return Obstacle(
        f"the end of the guest's memory of {format_size(size)} at address {address:#x} was never used, as if "
        "virtio-mem had not plugged it, and to pin it would populate it",
        "use mode=bounce; if it is no virtio-mem, prealloc=on for its memory backend",
    )
