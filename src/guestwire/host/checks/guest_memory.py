"""Checks of what a guest of a given size would cost and get: said before anything is started."""

from __future__ import annotations

from dataclasses import dataclass

from guestwire.host.checks.check import Check, Status
from guestwire.host.pinned_memory import RegistrationCost
from guestwire.sizes import format_size

_GIVEN_BACK = (
    "but if QEMU gives memory back (free-page-reporting=on, virtio-mem, an inflated balloon), it is used in "
    "mode bounce: leave these out, or choose mode=bounce"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestMemory:
    """What is known of a guest's memory before there is a guest.

    Attributes:
        guest_bytes: its size.
        queue_pairs: how many queue pairs it would have; each registers the memory for itself.
        direct: what one registration costs in mode direct.
        zero_copy: what it costs at most in mode zero-copy.
        limit: which limits on pinned memory there are, in words.
    """

    guest_bytes: int
    queue_pairs: int
    direct: RegistrationCost
    zero_copy: RegistrationCost
    limit: str


def check_guest_memory(
    memory: GuestMemory, obstacle: tuple[str, str] | None, bounce_obstacle: tuple[str, str] | None
) -> Check:
    """Whether a guest's memory can be registered, and what the kernel takes for it.

    Args:
        memory: what is known of it.
        obstacle: why it cannot be registered, and what to do about it.
        bounce_obstacle: the same of bounce frames, which are registered where the guest's memory is not.
    """
    name = "guest-memory"
    pairs = "1 queue pair" if memory.queue_pairs == 1 else f"{memory.queue_pairs} queue pairs"
    pinned = format_size(memory.direct.pinned_bytes)
    if memory.queue_pairs > 1:
        total = format_size(memory.queue_pairs * memory.direct.pinned_bytes)
        pinned += f" once for each of them, {total} as limits count"
    found = (
        f"{format_size(memory.guest_bytes)} and {pairs}: modes zero-copy and direct pin {pinned}; "
        f"kernel memory for each queue: {format_size(memory.direct.kernel_bytes)} in mode direct, at most "
        f"{format_size(memory.zero_copy.kernel_bytes)} in mode zero-copy"
    )
    if bounce_obstacle is not None:
        why, remedy = bounce_obstacle
        return Check(name, Status.PROBLEM, found, f"not even bounce frames can be registered: {why}", remedy)
    if obstacle is not None:
        why, remedy = obstacle
        return Check(name, Status.WARNING, found, f"only mode bounce is left: {why}", remedy)
    meaning = f"the guest's memory can be registered: {memory.limit}; {_GIVEN_BACK}"
    return Check(name, Status.OK, found, meaning)


def check_mode(mode: str | None, reason: str) -> Check:
    """Which mode mode=auto would come to; what to do about it is said by the check of what is in the way.

    Args:
        mode: which one; None if an ``xdp`` port is not to be had.
        reason: why it is not a better one; empty if there is none.
    """
    if mode is None:
        return Check("mode", Status.PROBLEM, "none", reason)
    if mode == "zero-copy":
        return Check("mode", Status.OK, "mode=auto comes to zero-copy", "nobody copies the guest's frames")
    return Check("mode", Status.WARNING, f"mode=auto comes to {mode}", reason)
