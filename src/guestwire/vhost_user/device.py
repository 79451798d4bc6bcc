"""What a session drives: the device behind the protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from guestwire.vhost_user.constants import ConfigFlag
from guestwire.vhost_user.memory import MemoryRegion


@dataclass(frozen=True, slots=True)
class RingConfiguration:
    """All that a device needs to run a ring.

    Attributes:
        size: descriptors: for a split ring a power of two, at most 32768.
        descriptor_address: user address of the descriptor table; like the other two it is aligned
            and its whole area lies in one memory region.
        available_address: user address of the available ring.
        used_address: user address of the used ring.
        log_address: guest address at which writes to the used ring are logged; None to log none.
        base: where to begin: for a split ring the available-ring index of the first buffer, for a packed
            one the positions of the next available and the next used descriptor with their wrap counters
            (vhost-user, "Vring descriptor indices for packed virtqueues").
        kick_fd: to be told of new buffers, non-blocking; None to poll the ring instead.
        call_fd: to tell of used buffers, non-blocking; None to tell nobody.  It need not be an
            eventfd: User-Mode Linux passes a pipe.
        error_fd: to tell of a broken ring, non-blocking; None to tell nobody.
        enabled: whether the ring has its effect; see `Device.enable_ring`.

    The descriptors are borrowed; they stay open until the ring stops or another one replaces them.
    """

    size: int
    descriptor_address: int
    available_address: int
    used_address: int
    log_address: int | None
    base: int
    kick_fd: int | None
    call_fd: int | None
    error_fd: int | None
    enabled: bool


class Device(Protocol):
    """A virtio network device as a vhost-user session sees it.

    A session calls it from one thread at a time, in the order of the frontend's requests; a call
    may take as long as it must.  Whatever a method refuses it refuses with a `GuestwireError`, and
    is then as it was before: the session either tells the frontend or ends.
    """

    def offered_features(self) -> int:
        """Return the features on offer (`virtio.features.Feature`); asked once for each session.

        VHOST_USER_F_PROTOCOL_FEATURES belongs to them; without it there are no protocol features.
        """

    def offered_protocol_features(self) -> int:
        """Return the protocol features on offer; the session leaves out what it does not speak."""

    def ring_count(self) -> int:
        """Return how many rings there are, twice the queue pairs; asked once for each session."""

    def set_features(self, features: int) -> None:
        """Take the features that the driver accepted, all of them offered.

        Rings run during this call only if nothing but VHOST_F_LOG_ALL changes.
        """

    def set_memory(self, regions: Sequence[MemoryRegion]) -> None:
        """Replace the guest's memory by these regions, while rings may run.

        Every running ring lies in the new regions.  The descriptors are borrowed, and those of the
        regions that are gone are closed once this returns.
        """

    def start_ring(self, index: int, ring: RingConfiguration) -> None:
        """Begin to process a ring; memory and features are known."""

    def stop_ring(self, index: int) -> int:
        """Stop a running ring, drain it, and touch neither it nor its descriptors afterwards.

        Returns:
            what GET_VRING_BASE answers, and `RingConfiguration.base` takes: the first buffer that was
            not consumed.
        """

    def enable_ring(self, index: int, enabled: bool) -> None:
        """Give a running ring its effect, or take it away.

        A disabled receive ring gets no frames; what a disabled transmit ring sends is consumed and
        dropped ("Ring states").
        """

    def set_ring_call(self, index: int, fd: int | None) -> None:
        """Tell of a running ring's used buffers here from now on; the old one is then closed."""

    def set_ring_error(self, index: int, fd: int | None) -> None:
        """Tell of a running ring's breakdown here from now on; the old one is then closed."""

    def read_config(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes of the device configuration space, 256 bytes in all."""

    def write_config(self, offset: int, data: bytes, flag: ConfigFlag) -> None:
        """Write to the device configuration space.

        "Back-ends MUST NOT accept SET_CONFIG for read-only configuration space fields unless the
        live migration bit is set": of a network device every field is read-only (virtio 5.1.4).
        """

    def set_mtu(self, mtu: int) -> None:
        """Take the MTU that the frontend shows to the guest, 68 to 65535 bytes."""

    def announce(self, mac: bytes) -> None:
        """Send a gratuitous RARP for `mac`: the guest has moved here and cannot say so itself."""

    def set_status(self, status: int) -> None:
        """Take the device status (`virtio.features.DeviceStatus`), never 0."""

    def reset(self) -> None:
        """Forget features, status and all that the driver has set; memory stays; no ring runs."""
