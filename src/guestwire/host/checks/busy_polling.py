"""The check of an interface for ``busy-poll=yes``, which is off unless asked for."""

from __future__ import annotations

from guestwire.host.af_xdp_probe import AfXdpProbe
from guestwire.host.checks.check import Check, Status
from guestwire.host.interface import Interface

_NAME = "busy-polling"


def check_busy_polling(interface: Interface, polls_queue: bool | None, *, asked: bool) -> Check:
    """Whether a worker's calls would run the NIC's driver, and keep its interrupts off.

    Args:
        interface: which one.
        polls_queue: whether the kernel knows which queue a bound socket polls; None if none was bound.
        asked: whether it was asked for: only then is it worth a warning that something is missing.
    """
    missing = Status.WARNING if asked else Status.OK
    if polls_queue is False:
        return Check(
            _NAME,
            missing,
            "the kernel does not know which queue a socket here would poll (SO_INCOMING_NAPI_ID is 0)",
            "busy-poll=yes has no effect: Linux 6.13 and later know it in mode zero-copy alone, if the "
            "driver tells them",
            "leave busy-poll out" if asked else None,
        )
    directory, deferral = f"/sys/class/net/{interface.name}", interface.deferral
    if deferral is None:
        return Check(
            _NAME,
            missing,
            "whether the interface defers its interrupts is not visible",
            "busy-poll=yes saves interrupts only if it does",
            f"in its network namespace: head {directory}/napi_defer_hard_irqs {directory}/gro_flush_timeout",
        )
    found = f"napi_defer_hard_irqs {deferral.times}, gro_flush_timeout {deferral.nanoseconds}"
    if not deferral.active:
        return Check(
            _NAME,
            missing,
            found,
            "with busy-poll=yes the NIC would go on interrupting the worker that polls it, "
            "since it does not defer its interrupts",
            f"{'' if asked else 'before busy-poll=yes: '}echo 2 > {directory}/napi_defer_hard_irqs; "
            f"echo 200000 > {directory}/gro_flush_timeout",
        )
    return Check(
        _NAME, Status.OK, found, "with busy-poll=yes a worker that polls is not interrupted by the NIC"
    )


def probed_polling(probe: AfXdpProbe | None) -> bool | None:
    """What binding showed of the best mode there is; None if it showed nothing."""
    if probe is None or not probe.copy.available:
        return None
    return probe.zero_copy.polls_queue if probe.zero_copy.available else probe.copy.polls_queue
