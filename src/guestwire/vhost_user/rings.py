"""The rings of a session: what the frontend has told of each, and when the device runs them.

A ring runs from the moment that all is known of it (its size, its addresses, its kick, the guest's
memory and features) until GET_VRING_BASE.  Whether it is enabled is another matter: a ring that
runs but is disabled is processed without effect.  Source: QEMU, docs/interop/vhost-user.rst,
"Ring states".

The kick need not come last.  The specification starts a ring when it is kicked for the first time;
like other backends we start it when its kick descriptor is there, because a frontend sends that
once the driver has set the ring up, and a kick before that could be missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from guestwire.errors import FrontendError, GuestwireError
from guestwire.vhost_user.constants import MAX_QUEUE_SIZE, MAX_RINGS, RingAddressFlag
from guestwire.vhost_user.descriptor import FileDescriptor, close_all, number, require_signal
from guestwire.vhost_user.device import Device, RingConfiguration
from guestwire.vhost_user.memory import GuestMemory
from guestwire.vhost_user.payloads import RingAddress


@dataclass(frozen=True, slots=True)
class Area:
    """One of the three areas of a ring, in user addresses."""

    name: str
    address: int
    length: int


FIRST_PACKED_BASE = 0x8000_8000
"""Where a packed ring begins: both indexes 0, both wrap counters 1 (virtio 1.3, 2.8.1)."""


def area_lengths(size: int, packed: bool) -> tuple[int, int, int]:
    """Return the bytes of a ring's descriptor, driver and device area (virtio 1.3, 2.7 and 2.8.10.1)."""
    return (16 * size, 4, 4) if packed else (16 * size, 6 + 2 * size, 6 + 8 * size)


def areas(addresses: RingAddress, size: int, packed: bool) -> tuple[Area, Area, Area]:
    """Return where a ring's areas lie and how long they are."""
    descriptors, available, used = area_lengths(size, packed)
    return (
        Area("descriptor table", addresses.descriptor, descriptors),
        Area("available ring", addresses.available, available),
        Area("used ring", addresses.used, used),
    )


def _check_alignment(addresses: RingAddress, packed: bool) -> None:
    for name, address, alignment in (
        ("descriptor table", addresses.descriptor, 16),
        ("available ring", addresses.available, 4 if packed else 2),
        ("used ring", addresses.used, 4),
    ):
        if address % alignment:
            raise FrontendError(
                f"ring {addresses.index}: its {name} at {address:#x} is not aligned to {alignment} bytes"
            )


class Ring:
    """What is known of one ring.

    Attributes:
        index: its number; even ones receive.
        size: descriptors; None until it is told.
        addresses: where its areas lie; None until it is told.
        base: where the device begins, or has stopped; None until it is told.
        kicked: whether SET_VRING_KICK has come since the ring last stopped.
        kick: the descriptor that came with it; None to poll.
        call: tells the driver of used buffers.
        error: tells the frontend of a broken ring.
        enabled: whether processing the ring has an effect.
        running: whether the device has it.
    """

    __slots__ = (
        "addresses", "base", "call", "enabled", "error", "index", "kick", "kicked", "running",
        "size",
    )  # fmt: skip

    def __init__(self, index: int) -> None:
        self.index = index
        self.size: int | None = None
        self.addresses: RingAddress | None = None
        self.base: int | None = None
        self.kicked = False
        self.kick: FileDescriptor | None = None
        self.call: FileDescriptor | None = None
        self.error: FileDescriptor | None = None
        self.enabled = False
        self.running = False

    def forget_kick(self) -> None:
        """Wait for another SET_VRING_KICK."""
        close_all(self.kick)
        self.kick, self.kicked = None, False

    def base_or_first(self, packed: bool) -> int:
        """Return `base`, or where a ring begins of which nothing was told."""
        if self.base is None:
            return FIRST_PACKED_BASE if packed else 0
        return self.base

    def configuration(self, memory: GuestMemory, packed: bool) -> RingConfiguration | None:
        """Return what the device needs, or None while something is not known yet.

        Raises:
            FrontendError: the ring is not all inside the guest's memory.
        """
        if not self.kicked or self.size is None or self.addresses is None or not memory:
            return None
        self.check_inside(memory, packed)
        log = RingAddressFlag.LOG in RingAddressFlag(self.addresses.flags)
        return RingConfiguration(
            size=self.size,
            descriptor_address=self.addresses.descriptor,
            available_address=self.addresses.available,
            used_address=self.addresses.used,
            log_address=self.addresses.log if log else None,
            base=self.base_or_first(packed),
            kick_fd=number(self.kick),
            call_fd=number(self.call),
            error_fd=number(self.error),
            enabled=self.enabled,
        )

    def check_inside(self, memory: GuestMemory, packed: bool) -> None:
        """Refuse a memory that does not hold the whole ring."""
        assert self.addresses is not None
        assert self.size is not None
        for area in areas(self.addresses, self.size, packed):
            if not memory.holds(area.address, area.length):
                raise FrontendError(
                    f"ring {self.index}: its {area.name} of {area.length} bytes at user address "
                    f"{area.address:#x} lies in none of the {len(memory)} memory regions"
                )


class Rings:
    """All rings of a session, and the device that runs them.

    Methods raise `FrontendError` for what the frontend may not do, and whatever the device raises.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._rings = tuple(Ring(index) for index in range(min(device.ring_count(), MAX_RINGS)))
        self.packed = False

    def __iter__(self) -> Iterator[Ring]:
        return iter(self._rings)

    def __len__(self) -> int:
        return len(self._rings)

    def __getitem__(self, index: int) -> Ring:
        """Return the ring that a frontend names."""
        if index >= len(self._rings):
            raise FrontendError(
                f"ring {index} does not exist, there are {len(self._rings)}",
                f"give this guest {index // 2 + 1} queue pairs, or ask for no more than "
                f"{len(self._rings) // 2} in the frontend (QEMU: -netdev vhost-user,queues=N)",
            )
        return self._rings[index]

    def set_kind(self, *, packed: bool) -> None:
        """SET_FEATURES: take what rings are to be; where one of the other kind stopped says nothing then."""
        if packed != self.packed:
            for ring in self._rings:
                ring.base = None
        self.packed = packed

    def set_size(self, index: int, size: int) -> None:
        """SET_VRING_NUM: take a ring's size in descriptors."""
        ring = self[index]
        if not 1 <= size <= MAX_QUEUE_SIZE:
            raise FrontendError(
                f"ring {index}: size {size}, it must be 1 to {MAX_QUEUE_SIZE}",
                "set the queue size in the frontend (QEMU: rx_queue_size=, tx_queue_size=)",
            )
        if size & (size - 1) and not self.packed:
            raise FrontendError(
                f"ring {index}: size {size}, a split ring's must be a power of two",
                "set the queue size in the frontend (QEMU: rx_queue_size=, tx_queue_size=)",
            )
        ring.size = size

    def set_addresses(self, addresses: RingAddress, may_log: bool) -> None:
        """SET_VRING_ADDR: take where a ring lies; a running ring cannot move."""
        ring = self[addresses.index]
        unknown = addresses.flags & ~int(RingAddressFlag.LOG)
        if unknown:
            raise FrontendError(f"ring {ring.index}: unknown flags {unknown:#x}")
        if addresses.flags & RingAddressFlag.LOG and not may_log:
            raise FrontendError(f"ring {ring.index}: logging was not offered")
        _check_alignment(addresses, self.packed)
        if addresses != ring.addresses:
            self.require_stopped(addresses.index)
        ring.addresses = addresses

    def set_base(self, index: int, base: int) -> None:
        """SET_VRING_BASE: take where in the ring to begin.

        Of a packed ring the number holds both of its indexes with their wrap counters.
        """
        ring = self[index]
        if base > 0xFFFF and not self.packed:
            raise FrontendError(f"ring {index}: base {base}, a split ring's index has 16 bits")
        ring.base = base

    def set_kick(self, index: int, kick: FileDescriptor | None) -> None:
        """SET_VRING_KICK: take what starts the ring; a ring that runs starts again with it.

        The ring owns the descriptor once this returns.
        """
        ring = self[index]
        if kick is not None:
            require_signal(kick)
        self._stop(ring)
        ring.kick, ring.kicked = kick, True

    def set_call(self, index: int, call: FileDescriptor | None) -> None:
        """SET_VRING_CALL: take where to tell of used buffers; the ring owns the descriptor."""
        ring = self[index]
        if call is not None:
            require_signal(call)
        if ring.running:
            self._device.set_ring_call(index, number(call))
        close_all(ring.call)
        ring.call = call

    def set_error(self, index: int, error: FileDescriptor | None) -> None:
        """SET_VRING_ERR: take where to tell that the ring broke; the ring owns the descriptor."""
        ring = self[index]
        if error is not None:
            require_signal(error)
        if ring.running:
            self._device.set_ring_error(index, number(error))
        close_all(ring.error)
        ring.error = error

    def enable(self, index: int, enabled: bool) -> None:
        """SET_VRING_ENABLE: give a ring its effect, or take it away, now or when it starts."""
        ring = self[index]
        if ring.running and enabled != ring.enabled:
            self._device.enable_ring(index, enabled)
        ring.enabled = enabled

    def enable_all(self, enabled: bool) -> None:
        """Do so for every ring."""
        for ring in self._rings:
            self.enable(ring.index, enabled)

    def stop(self, index: int) -> int:
        """GET_VRING_BASE: stop a ring and return where it stopped.

        "Stop ring" says the specification.  The kick must come anew to start it again, as it starts
        a ring; call and error stay, since no frontend is bound to repeat them.
        """
        ring = self[index]
        self._stop(ring)
        return ring.base_or_first(self.packed)

    def _stop(self, ring: Ring) -> None:
        try:
            if ring.running:
                ring.running = False
                ring.base = self._device.stop_ring(ring.index)
        finally:
            ring.forget_kick()

    def require_stopped(self, index: int) -> None:
        """Stop a ring that is disabled; refuse to go on with one that is enabled and runs."""
        ring = self[index]
        if ring.running and ring.enabled:
            raise FrontendError(f"ring {index} runs: GET_VRING_BASE must stop it first")
        if ring.running:
            self._stop(ring)

    def require_all_stopped(self) -> None:
        """Require it of every ring."""
        for ring in self._rings:
            self.require_stopped(ring.index)

    def fit_into(self, memory: GuestMemory) -> None:
        """Refuse a memory that a running ring does not lie in, unless the ring can be stopped."""
        for ring in self._rings:
            if not ring.running:
                continue
            try:
                ring.check_inside(memory, self.packed)
            except FrontendError:
                if ring.enabled:
                    raise
                self._stop(ring)

    def start_ready(self, memory: GuestMemory) -> None:
        """Start every ring of which all is known now."""
        for ring in self._rings:
            if ring.running:
                continue
            try:
                configuration = ring.configuration(memory, self.packed)
                if configuration is not None:
                    self._device.start_ring(ring.index, configuration)
                    ring.running = True
            except GuestwireError:
                # The request that completed the ring is to blame, and no later one.
                ring.forget_kick()
                raise

    def reset(self) -> None:
        """Stop and disable every ring, even if one fails, and forget how the driver set it up.

        Where each of them stopped stays known: QEMU 7.2 stops a device by setting its status to 0,
        and asks with GET_VRING_BASE only then.
        """
        with ExitStack() as each:
            for ring in reversed(self._rings):
                each.callback(self._reset, ring)

    def _reset(self, ring: Ring) -> None:
        ring.enabled = False
        ring.size = ring.addresses = None
        self._stop(ring)

    def close(self) -> None:
        """Close the descriptors of all rings; none may run any more."""
        for ring in self._rings:
            ring.forget_kick()
            close_all(ring.call, ring.error)
            ring.call = ring.error = None
