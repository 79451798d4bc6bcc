"""A guest without a virtual machine: memory, a frontend and a driver, put together.

The order is QEMU's: features, protocol features, owner, memory, rings, enable, DRIVER_OK.
"""

from __future__ import annotations

import contextlib
import os
import select
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from guestwire.testing.driver import QueuePair
from guestwire.testing.driver_ring import DriverRing
from guestwire.testing.faults import BackendError
from guestwire.testing.frontend import Frontend
from guestwire.testing.layout import BufferLayout
from guestwire.testing.memory import PAGE, Block, SharedMemory
from guestwire.vhost_user.constants import ProtocolFeature
from guestwire.vhost_user.rings import area_lengths
from guestwire.virtio.features import DeviceStatus, Feature

DRIVER_FEATURES = (
    Feature.VIRTIO_F_VERSION_1
    | Feature.VIRTIO_F_EVENT_IDX
    | Feature.VIRTIO_F_INDIRECT_DESC
    | Feature.VIRTIO_NET_F_MRG_RXBUF
    | Feature.VIRTIO_NET_F_MAC
    | Feature.VIRTIO_NET_F_MTU
    | Feature.VIRTIO_NET_F_STATUS
    | Feature.VHOST_USER_F_PROTOCOL_FEATURES
)
"""What this driver can do; a backend that offers less gets less."""

OFFLOAD_FEATURES = (
    Feature.VIRTIO_NET_F_CSUM
    | Feature.VIRTIO_NET_F_HOST_TSO4
    | Feature.VIRTIO_NET_F_HOST_TSO6
    | Feature.VIRTIO_NET_F_HOST_ECN
    | Feature.VIRTIO_NET_F_HOST_USO
    | Feature.VIRTIO_NET_F_GUEST_CSUM
    | Feature.VIRTIO_NET_F_GUEST_TSO4
    | Feature.VIRTIO_NET_F_GUEST_TSO6
    | Feature.VIRTIO_NET_F_GUEST_ECN
    | Feature.VIRTIO_NET_F_GUEST_USO4
    | Feature.VIRTIO_NET_F_GUEST_USO6
)
"""What it can do besides, for tests that want frames with offloads."""

FRONTEND_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.RARP
    | ProtocolFeature.MTU
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)
"""What this frontend can do."""


@dataclass
class GuestRing:
    """One ring of a guest: the driver's side, and what the frontend tells the backend about it.

    Attributes:
        index: the ring's number: 2n receives and 2n + 1 transmits, for queue pair n.
        driver: the driver's side.
        descriptor_table: where it lies.
        available_ring: where it lies.
        used_ring: where it lies.
        area: where its buffers lie.
        kick_fd: eventfd from the driver to the backend.
        call_fd: eventfd from the backend to the driver.
        error_fd: eventfd by which the backend tells that the ring is broken.
        base: the available index from which the backend starts it next.
    """

    index: int
    driver: DriverRing
    descriptor_table: Block
    available_ring: Block
    used_ring: Block
    area: Block
    kick_fd: int
    call_fd: int
    error_fd: int
    base: int

    def is_broken(self, timeout: float = 5.0) -> bool:
        """Wait until the backend reports the ring as broken; return whether it did in time."""
        readable, _, _ = select.select([self.error_fd], [], [], timeout)
        return bool(readable)


class FakeGuest:
    """A virtio network driver on the frontend's end of a vhost-user socket.

    Used as a context manager: the guest is up inside.

    Args:
        backend: where the backend listens, or a frontend that is connected to it; the frontend is
            closed with the guest.
        memory: the guest's memory, which remains the caller's; 32 MiB of its own if None.
        queue_pairs: how many.
        queue_size: of every ring.
        features: what the driver would like; what it gets is in `features`.
        required: what it cannot do without.
        protocol_features: what the frontend would like.
        receive_layout: of the receive buffers.
        transmit_layout: of the transmit buffers.
        receive_buffers: how many buffers each receive ring gets; as many as fit if None.
        transmit_buffers: the same for transmit rings.
        verify_sent: as for `QueuePair`.
        verify_unwritten: as for `QueuePair`.
        strict: as for `QueuePair`.
        accept_empty: as for `QueuePair`.
        base: where all ring indices start; of packed rings a position with its wrap counter in bit 15.
        packed: whether to have packed rings (VIRTIO_F_RING_PACKED); a backend without them is refused.
        in_order: whether to insist that buffers come back in order (VIRTIO_F_IN_ORDER).
        timeout: seconds to wait for the backend, each time.

    Attributes:
        frontend: for requests beyond those that bring the guest up.
        features: what was negotiated.
        rings: all rings, by their numbers.
        pairs: all queue pairs.
    """

    def __init__(
        self,
        backend: str | os.PathLike[str] | Frontend,
        *,
        memory: SharedMemory | None = None,
        queue_pairs: int = 1,
        queue_size: int = 256,
        features: Feature = DRIVER_FEATURES,
        required: Feature = Feature.VIRTIO_F_VERSION_1,
        protocol_features: ProtocolFeature = FRONTEND_FEATURES,
        receive_layout: BufferLayout | None = None,
        transmit_layout: BufferLayout | None = None,
        receive_buffers: int | None = None,
        transmit_buffers: int | None = None,
        verify_sent: bool = False,
        verify_unwritten: bool = False,
        strict: bool = True,
        accept_empty: bool = False,
        base: int = 0,
        packed: bool = False,
        in_order: bool = False,
        timeout: float = 5.0,
    ) -> None:
        self._backend = backend
        self._resources = contextlib.ExitStack()
        self.memory = SharedMemory() if memory is None else memory
        if memory is None:
            self._resources.callback(self.memory.close)
        self._queue_pairs = queue_pairs
        self._queue_size = queue_size
        kinds = Feature(0)
        if packed:
            kinds |= Feature.VIRTIO_F_RING_PACKED
        if in_order:
            kinds |= Feature.VIRTIO_F_IN_ORDER
        self._packed = packed
        self._wanted, self._required = features | kinds, required | kinds
        self._protocol_features = protocol_features
        self._layouts = (receive_layout or BufferLayout(), transmit_layout or BufferLayout())
        self._buffers = (receive_buffers, transmit_buffers)
        self._pair_options = {
            "verify_sent": verify_sent,
            "verify_unwritten": verify_unwritten,
            "strict": strict,
            "accept_empty": accept_empty,
        }
        # A packed ring begins with its wrap counter at 1 (virtio 1.3, 2.8.1).
        self._base = (base or 0x8000) if packed else base
        self._timeout = timeout
        self.features = Feature(0)
        self.rings: list[GuestRing] = []
        self.pairs: list[QueuePair] = []
        self.frontend: Frontend

    @property
    def pair(self) -> QueuePair:
        """The first queue pair."""
        return self.pairs[0]

    def start(self) -> None:
        """Connect, negotiate, share the memory, and start all rings, receive buffers in place.

        Raises:
            BackendError: the backend refuses something, or lacks a feature that is required.
        """
        self._connect()
        for index in range(2 * self._queue_pairs):
            self.rings.append(self._make_ring(index))
        for receive, transmit in zip(self.rings[::2], self.rings[1::2], strict=True):
            receive.driver.post()
            pair = QueuePair(receive.driver, transmit.driver, **self._pair_options)
            self.pairs.append(pair)
        self._start_rings()

    def reconnect(self, base: int | None = None) -> None:
        """Connect anew after the backend has gone, and let the rings go on where they were used.

        What the old backend had and did not give back is the new one's, once more. So does QEMU with split
        rings; of packed ones it knows only where they were started.

        Args:
            base: what to tell the backend of where the rings are, true or not; what is true if None.

        Raises:
            BackendError: the new backend offers other features, or refuses something.
        """
        before = self.features
        self._connect()
        if self.features != before:
            raise BackendError(
                f"the backend offers {self.features!r} now, the driver uses {before!r}",
                "start the new backend as the old one was",
            )
        for ring in self.rings:
            ring.base = ring.driver.resume_base if base is None else base
        self._start_rings()

    def _connect(self) -> None:
        if isinstance(self._backend, Frontend):
            self.frontend = self._backend
        else:
            self.frontend = Frontend.connect(self._backend, self._timeout)
        self._resources.callback(self.frontend.close)
        self._negotiate()
        if ProtocolFeature.CONFIGURE_MEM_SLOTS in self.frontend.protocol_features:
            for region in self.memory.regions:
                self.frontend.add_memory_region(region)
        else:
            self.frontend.set_memory_table(self.memory.regions)

    def _start_rings(self) -> None:
        for ring in self.rings:
            self.start_ring(ring)
        if ProtocolFeature.STATUS in self.frontend.protocol_features:
            self.frontend.set_status(
                DeviceStatus.ACKNOWLEDGE
                | DeviceStatus.DRIVER
                | DeviceStatus.FEATURES_OK
                | DeviceStatus.DRIVER_OK
            )

    def _negotiate(self) -> None:
        frontend = self.frontend
        offered = frontend.get_features()
        missing = self._required & ~offered
        if missing:
            raise BackendError(
                f"the backend does not offer {missing!r}; it offers {offered!r}",
                "configure the backend to offer it, or do not require it",
            )
        self.features = self._wanted & offered
        if Feature.VHOST_USER_F_PROTOCOL_FEATURES in self.features:
            frontend.set_protocol_features(self._protocol_features & frontend.get_protocol_features())
            if ProtocolFeature.MQ in frontend.protocol_features:
                most = frontend.get_queue_count()
                if self._queue_pairs > most:
                    raise BackendError(
                        f"the backend supports {most} queue pairs, not {self._queue_pairs}",
                        "configure the backend for more, or use fewer",
                    )
        frontend.set_owner()
        frontend.set_features(self.features)

    def _make_ring(self, index: int) -> GuestRing:
        size = self._queue_size
        descriptors, available, used = area_lengths(size, self._packed)
        descriptor_table = self.memory.allocate(descriptors, 16)
        available_ring = self.memory.allocate(available, 4)
        used_ring = self.memory.allocate(used, 4)
        kick_fd, call_fd, error_fd = (self._eventfd() for _ in range(3))
        layout = self._layouts[index % 2]
        pieces = layout.pieces(self._header_size)
        buffers = self._buffers[index % 2]
        if buffers is None:
            buffers = size if layout.indirect else size // len(pieces)
        share = layout.share(self._header_size)
        # In the last region, so that rings and buffers lie apart if there are several.
        area = self.memory.allocate(share * buffers, PAGE, region=-1)
        tables = self.memory.allocate(16 * len(pieces) * buffers, 16) if layout.indirect else None
        driver = DriverRing(
            size,
            descriptor_table.bytes,
            available_ring.bytes,
            used_ring.bytes,
            area=area.bytes,
            area_address=area.guest_address,
            pieces=pieces,
            spacing=share,
            tables=tables.bytes if tables else None,
            tables_address=tables.guest_address if tables else 0,
            receive=index % 2 == 0,
            features=self.features,
            buffers=buffers,
            base=self._base,
            kick_fd=kick_fd,
            call_fd=call_fd,
        )
        self._resources.callback(driver.release)
        return GuestRing(
            index,
            driver,
            descriptor_table,
            available_ring,
            used_ring,
            area,
            kick_fd,
            call_fd,
            error_fd,
            self._base << 16 | self._base if self._packed else self._base,
        )

    @property
    def _header_size(self) -> int:
        long = Feature.VIRTIO_F_VERSION_1 | Feature.VIRTIO_NET_F_MRG_RXBUF
        return 12 if self.features & long else 10

    def _eventfd(self) -> int:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._resources.callback(os.close, fd)
        return fd

    def start_ring(self, ring: GuestRing) -> None:
        """Have the backend run a ring from its `base`, enabled."""
        frontend, index = self.frontend, ring.index
        frontend.set_ring_size(index, ring.driver.size)
        frontend.set_ring_base(index, ring.base)
        frontend.set_ring_address(
            index,
            ring.descriptor_table.user_address,
            ring.available_ring.user_address,
            ring.used_ring.user_address,
        )
        frontend.set_ring_error(index, ring.error_fd)
        frontend.set_ring_call(index, ring.call_fd)
        frontend.set_ring_kick(index, ring.kick_fd)
        if Feature.VHOST_USER_F_PROTOCOL_FEATURES in self.features:
            frontend.set_ring_enable(index, True)

    def stop_ring(self, ring: GuestRing) -> int:
        """Have the backend stop a ring; return the available index from which it could go on."""
        ring.base = self.frontend.get_ring_base(ring.index)
        return ring.base

    def stop(self) -> None:
        """Stop all rings, and check that the backend wrote nothing but what it may (`check_guards`).

        Raises:
            BackendError: the backend does not stop them.
            DeviceError: it did.
        """
        for ring in self.rings:
            self.stop_ring(ring)
        self.check_guards()

    def check_guards(self) -> None:
        """Check that the backend wrote nothing between the buffers, nor to memory that belongs to nobody.

        The latter only if the memory is guarded.

        Raises:
            DeviceError: it did.
        """
        for ring in self.rings:
            ring.driver.check_guards()
        self.memory.check_guards()

    def close(self) -> None:
        """Close the connection, and give back all that the guest has made; it is dead then."""
        self.pairs.clear()
        self._resources.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            if error is None:
                self.stop()
