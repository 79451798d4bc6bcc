"""The whole path in one go: a real guest, guestwire, a network interface, and a peer behind it.

``run`` does the work and says what it is doing; how that is shown is the caller's business
(``guestwire demo``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from guestwire.errors import GuestwireError
from guestwire.metrics import lost_in_kernel
from guestwire.testing import images, transfer
from guestwire.testing.accelerator import usable_accelerator
from guestwire.testing.backend import BackendProcess
from guestwire.testing.guests import Guest, QemuGuest, UmlGuest, VhostUserDevice
from guestwire.testing.transfer import Transfer
from guestwire.testing.wire import Wire

PINGS = 5


class DemoError(GuestwireError):
    """Something did not hold that the demonstration is there to show."""


class Observer(Protocol):
    """Is told what the demonstration does."""

    def step(self, description: str) -> None:
        """A new step begins."""

    def moved(self, done: int, total: int) -> None:
        """Of a file, ``done`` of ``total`` bytes have arrived."""


@dataclass(frozen=True)
class Direction:
    """What one file met on its way.

    Attributes:
        transfer: the file's journey: size, time, checksums.
        frames: frames that went the same way as the file.
        copies: how many frames were copied between the guest's memory and the interface, by
            (how often, why).
        drops: frames lost on the way, by reason; TCP sends such a frame again.
        backend_cpu: guestwire's CPU time, user and system, in seconds.
    """

    transfer: Transfer
    frames: int
    copies: Mapping[tuple[int, str], int]
    drops: Mapping[str, int]
    backend_cpu: float

    def copied(self, times: int) -> int:
        """How many frames were copied that often."""
        return sum(self.reasons(times).values())

    def reasons(self, times: int) -> dict[str, int]:
        """Why frames were copied that often, and how many for each reason."""
        return {why: count for (often, why), count in self.copies.items() if often == times}


@dataclass(frozen=True)
class Result:
    """What the demonstration showed.

    Attributes:
        guest: the guest's kernel and what runs it.
        mode: how the port works: ``direct``, ...
        mode_reason: why not in a better mode, or None.
        ping_ms: average round trip: from the guest, and from the peer.
        to_guest: the file that went to the guest.
        from_guest: the file that came from it.
    """

    guest: str
    mode: str
    mode_reason: str | None
    ping_ms: tuple[float, float]
    to_guest: Direction
    from_guest: Direction


def run(kind: str, size: int, mode: str, observer: Observer) -> Result:
    """Boot a guest, put it on a wire through guestwire, move files, and tear all down.

    Args:
        kind: ``qemu`` or ``uml``.
        size: of the file that is sent each way, in bytes (whole MiB).
        mode: of the port, as in ``xdp:IFNAME,mode=MODE``.
        observer: is told what is being done.

    Raises:
        GuestwireError: something is missing here, or something did not hold.
    """
    _find_images(kind, observer)
    observer.step("Making a wire: two network namespaces and a veth pair")
    with Wire() as wire:
        observer.step(f"Starting guestwire on {wire.interface}, port mode {mode}")
        port = f"xdp:{wire.interface},mode={mode}"
        with BackendProcess(port, namespace=wire.near) as backend:
            devices = [VhostUserDevice(backend.socket_path)]
            guest = UmlGuest(devices) if kind == "uml" else QemuGuest(devices)
            observer.step(f"Booting the guest ({guest.description})")
            with guest:
                result = _exercise(wire, guest, backend, size, observer)
                observer.step("Shutting the guest down")
                guest.power_off()
            observer.step("Stopping guestwire, removing the wire")
    for namespace in (wire.near, wire.far):
        if namespace.exists:
            raise DemoError(
                f"network namespace {namespace.name} could not be removed",
                f"ip netns delete {namespace.name}",
            )
    return result


def _find_images(kind: str, observer: Observer) -> None:
    observer.step("Finding a kernel for the guest")
    images.busybox(observer.step)
    if kind == "uml":
        images.uml_kernel(observer.step)
    else:
        images.qemu_kernel(observer.step)
        observer.step("Finding out whether KVM can run a guest here")
        usable_accelerator()


def _exercise(wire: Wire, guest: Guest, backend: BackendProcess, size: int, observer: Observer) -> Result:
    """Everything that happens between the guest's start and its end."""
    release = guest.check("uname -r").strip()
    observer.step("Waiting for the guest's network")
    guest.check(f"ip addr add {wire.guest_address}/{wire.prefix_length} dev eth0")
    guest.check("ip link set eth0 up")
    guest.wait_until(f"ping -c 1 -W 1 {wire.peer_address}")
    observer.step(f"Pinging both ways, {PINGS} times each")
    pings = (_ping_from_guest(wire, guest), _ping_to_guest(wire))
    directions = []
    for words, send, way in (
        ("to the guest", transfer.to_guest, "rx"),
        ("from the guest", transfer.from_guest, "tx"),
    ):
        observer.step(f"Moving {size >> 20} MiB of random bytes {words}, by TCP")
        before, cpu = backend.status(), backend.cpu_seconds
        moved = send(wire, guest, size, progress=lambda done: observer.moved(done, size))
        used = backend.cpu_seconds - cpu
        if not moved.intact:
            raise DemoError(
                f"{moved.size} bytes {words} did not arrive as they were sent: SHA-512 "
                f"{moved.sent_checksum[:16]}… became {moved.received_checksum[:16]}…"
            )
        directions.append(_direction(moved, before, backend.status(), way, used))
    port = backend.status()["port"]
    description = f"Linux {release}, {guest.description}"
    return Result(description, port["mode"], port["mode_reason"], pings, directions[0], directions[1])


def _ping_from_guest(wire: Wire, guest: Guest) -> float:
    return _average_ms(guest.check(f"ping -q -c {PINGS} -A -W 5 {wire.peer_address}"))


def _ping_to_guest(wire: Wire) -> float:
    command: list[str | Path] = [images.busybox(), "ping", "-q", "-c", str(PINGS), "-A", "-W", "5"]
    return _average_ms(wire.far.run([*command, wire.guest_address]).stdout)


def _average_ms(output: str) -> float:
    """Average round trip time from what busybox' ping prints at its end."""
    average = re.search(r"min/avg/max = [\d.]+/([\d.]+)/", output)
    if f"{PINGS} packets received" not in output or average is None:
        raise DemoError(f"not every ping was answered:\n{output.strip()}")
    return float(average[1])


def _direction(
    moved: Transfer, before: dict[str, Any], after: dict[str, Any], way: str, cpu: float
) -> Direction:
    """Count what a transfer did, from the status before and after it."""
    old, new = before["counters"][way], after["counters"][way]
    copies = {
        (0, "by the interface itself"): new["zero_copy_frames"] - old["zero_copy_frames"],
        (1, "by the kernel"): new["direct_frames"] - old["direct_frames"],
    }
    # A driver in zero-copy mode brings the frame to us for nothing; otherwise the kernel has
    # copied it once before we do.
    ours = 1 if after["port"]["mode"] == "zero-copy" else 2
    for reason, count in _grown(old["copied_frames"], new["copied_frames"]).items():
        copies[ours, reason] = count
    drops = _grown(old["drops"], new["drops"])
    if way == "rx":
        drops |= lost_in_kernel(_grown(before["counters"]["kernel"], after["counters"]["kernel"]))
    return Direction(
        moved,
        new["frames"] - old["frames"],
        {key: count for key, count in copies.items() if count},
        {reason: count for reason, count in drops.items() if count},
        cpu,
    )


def _grown(old: Mapping[str, int], new: Mapping[str, int]) -> dict[str, int]:
    return {name: count - old.get(name, 0) for name, count in new.items()}
