"""One guest: the device that its vhost-user session drives, between its rings and its port.

Threads. The session calls the device's methods from one thread at a time. Each queue pair has a worker of
its own while it is attached (`_update` says when): there is no other way to pause
a worker than to end it, so that whatever changes (memory, a ring) changes while nobody looks. ``on_trouble``
runs in the event loop, and may never wait for a frontend there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from guestwire import offer
from guestwire.config import GuestConfig
from guestwire.datapath.counters import Counters
from guestwire.datapath.queue_pair import QueuePair
from guestwire.datapath.split_ring import SplitRing
from guestwire.datapath.window import Window
from guestwire.errors import FrontendError, GuestwireError, HostError
from guestwire.eventfds import Signals, require_kick
from guestwire.ports.base import Port
from guestwire.vhost_user.constants import ConfigFlag
from guestwire.vhost_user.device import RingConfiguration
from guestwire.vhost_user.memory import MemoryRegion
from guestwire.virtio.features import Feature
from guestwire.virtio.ring_errors import RingError
from guestwire.worker import Worker


def _nobody() -> int:
    """Return a descriptor that takes signals for nobody."""
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


@dataclasses.dataclass(slots=True)
class _Ring:
    """A running ring. `call_fd` is a number of our own: dup2 puts another file behind it at any time."""

    configuration: RingConfiguration
    base: int
    enabled: bool
    call_fd: int
    error_fd: int | None
    error: str | None = None


class Guest:
    """A virtio network device for one frontend (`guestwire.vhost_user.device.Device`).

    Args:
        config: complete (`guestwire.config.complete`).
        port: not yet opened; the guest opens and closes it.
        counters_path: the counter file to create.
    """

    def __init__(self, config: GuestConfig, port: Port, counters_path: Path) -> None:
        self.config, self.port, self.counters_path = config, port, counters_path
        self.log = logging.getLogger(f"guestwire.guest.{config.name}")
        self.state = "starting"
        self.features = Feature(0)
        self.window: Window | None = None
        self.rings: dict[int, _Ring] = {}
        self.trouble_fd = -1
        self._attached: dict[int, Worker] = {}
        self._trouble = threading.Lock()  # held while an error descriptor is looked at or changed
        self._signals = Signals()
        self._counters: Counters | None = None

    def open(self) -> None:
        """Open the port and create the counter file.

        Raises:
            GuestwireError: the port cannot be opened.
        """
        if self.config.queue_pairs > self.port.max_queue_pairs:
            raise HostError(
                f"guest {self.config.name}: port {self.config.port} serves {self.port.max_queue_pairs} queue "
                f"pairs, not {self.config.queue_pairs}",
                f"use queue_pairs = {self.port.max_queue_pairs}",
            )
        self.port.open(self.config.queue_pairs)
        with _host_refuses("make the counter file"):
            self.trouble_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            fd = os.open(self.counters_path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                self._counters = Counters(fd, self.config.queue_pairs)
            finally:
                os.close(fd)

    def close(self) -> None:
        """Release everything; the session is closed already. Closing twice is harmless."""
        self.port.close()
        if self.trouble_fd >= 0:
            os.close(self.trouble_fd)
            self.trouble_fd = -1
        with contextlib.suppress(FileNotFoundError):
            self.counters_path.unlink()

    # --- what is offered ---------------------------------------------------------------------------

    def offered_features(self) -> int:
        """Return what we, the port and the configuration can do."""
        return int(offer.features(self.config, self.port))

    def offered_protocol_features(self) -> int:
        """Return the protocol features on offer."""
        return int(offer.PROTOCOL_FEATURES)

    def ring_count(self) -> int:
        """Return how many rings there are."""
        return 2 * self.config.queue_pairs

    def read_config(self, offset: int, size: int) -> bytes:
        """Return bytes of struct virtio_net_config (virtio 1.3, 5.1.4)."""
        return offer.net_config(self.config, self.port).read(offset, size)

    def write_config(self, offset: int, data: bytes, flag: ConfigFlag) -> None:
        """Refuse a change: every field is read-only for a driver; migration may write what is there."""
        if self.read_config(offset, len(data)) != data:
            raise FrontendError(
                f"the configuration space is read-only, and bytes {offset} to {offset + len(data) - 1} differ"
            )

    # --- what the frontend says ----------------------------------------------------------------------

    def set_features(self, features: int) -> None:
        """Take what the driver accepted."""
        self.features = Feature(features)

    def set_status(self, status: int) -> None:
        """Nothing depends on the device status: rings start and stop by their own requests."""

    def set_mtu(self, mtu: int) -> None:
        """Refuse an MTU whose frames the port cannot carry."""
        if mtu > self.port.mtu:
            raise HostError(
                f"the guest was promised an MTU of {mtu}, port {self.config.port} carries {self.port.mtu}",
                f"start the guest with host_mtu={self.port.mtu}, or raise the interface's MTU",
            )

    def announce(self, mac: bytes) -> None:
        """Tell the network where the guest is now."""
        self.port.announce(mac)

    def reset(self) -> None:
        """Forget what the driver accepted; no ring runs."""
        self.features = Feature(0)
        self._signals = Signals()

    def set_memory(self, regions: Sequence[MemoryRegion]) -> None:
        """Map a new window, while no worker looks, and go on with it."""
        window = None
        if regions:
            frames = self.port.bounce_frames * self.config.queue_pairs
            table = [(r.guest_address, r.user_address, r.size, r.fd, r.mmap_offset) for r in regions]
            try:
                window = Window(table, bounce_frames=frames)
            except (OSError, ValueError) as error:
                raise HostError(
                    f"guest {self.config.name}: its memory cannot be mapped: {error}",
                    "share it: -object memory-backend-memfd,share=on",
                ) from error
        old = self.window
        try:
            self._move(window)
        except GuestwireError:
            # As it was before: the session tells the frontend, or ends.
            try:
                self._move(old)
            except GuestwireError as error:
                self.state = f"failed: {error}"
                self.log.error("cannot go on with the old memory either: %s; %s", error, error.remedy)
            if window is not None:
                window.close()
            raise
        if old is not None:
            old.close()

    def _move(self, window: Window | None) -> None:
        """Let every pair at work go on in another window."""
        for pair in list(self._attached):
            self._detach(pair)
        self.window = window
        for pair in range(self.config.queue_pairs):
            self._update(pair)

    # --- rings ---------------------------------------------------------------------------------------

    def start_ring(self, index: int, ring: RingConfiguration) -> None:
        """Start a ring; with the second of a pair the pair goes to work."""
        with _host_refuses(f"start ring {index}"):
            if ring.kick_fd is not None:
                require_kick(index, ring.kick_fd)
            call_fd = _nobody() if ring.call_fd is None else os.dup(ring.call_fd)
        self.rings[index] = _Ring(ring, ring.base, ring.enabled, call_fd, ring.error_fd)
        try:
            self._update(index // 2)
        except BaseException:
            os.close(self.rings.pop(index).call_fd)
            raise

    def stop_ring(self, index: int) -> int:
        """Stop a ring; its pair ends work until both run again."""
        try:
            self._detach(index // 2)
        finally:
            with self._trouble:
                ring = self.rings.pop(index)
            os.close(ring.call_fd)
            if not self.rings:
                self.state = "connected"
        return ring.base

    def enable_ring(self, index: int, enabled: bool) -> None:
        """Let a running ring have its effect, or not."""
        ring = self.rings[index]
        before, ring.enabled = ring.enabled, enabled
        try:
            self._update(index // 2)
        except GuestwireError:
            ring.enabled = before
            raise

    def set_ring_call(self, index: int, fd: int | None) -> None:
        """Replace the file that the worker signals, without a moment in which there is none."""
        with _host_refuses(f"replace the call descriptor of ring {index}"):
            if fd is not None:
                os.dup2(fd, self.rings[index].call_fd, inheritable=False)
                return
            nobody = _nobody()
            os.dup2(nobody, self.rings[index].call_fd, inheritable=False)
            os.close(nobody)

    def set_ring_error(self, index: int, fd: int | None) -> None:
        """Remember whom to tell when the ring breaks."""
        with self._trouble:
            self.rings[index].error_fd = fd

    def _update(self, pair: int) -> None:
        """Attach or detach a pair, as its rings now want it.

        It is at work while both of its rings run and at least one is enabled. A pair with both disabled is
        left alone altogether: User-Mode Linux disables the rings of a device that goes, and frees their
        memory, without stopping them. (Frames of a transmit ring disabled by itself are dropped.)
        """
        rx, tx = self.rings.get(2 * pair), self.rings.get(2 * pair + 1)
        if rx is None or tx is None or not (rx.enabled or tx.enabled):
            self._detach(pair)
            return
        if pair in self._attached:
            self._enable(pair)
        else:
            self._attach(pair)

    def _enable(self, pair: int) -> None:
        rx, tx = self.rings[2 * pair], self.rings[2 * pair + 1]
        self._attached[pair].pair.enable(rx=rx.enabled, tx=tx.enabled)

    def _split_ring(self, window: Window, index: int) -> SplitRing:
        ring = self.rings[index]
        ring.error = None
        c = ring.configuration
        try:
            return SplitRing(
                window,
                c.size,
                window.translate_user(c.descriptor_address, 16 * c.size),
                window.translate_user(c.available_address, 6 + 2 * c.size),
                window.translate_user(c.used_address, 6 + 8 * c.size),
                base=ring.base,
                receive=index % 2 == 0,
                event_index=Feature.VIRTIO_F_EVENT_IDX in self.features,
                indirect=Feature.VIRTIO_F_INDIRECT_DESC in self.features,
                kick_fd=-1 if c.kick_fd is None else c.kick_fd,
                call_fd=ring.call_fd,
            )
        except ValueError as error:
            raise FrontendError(f"ring {index} cannot start: {error}") from error

    def _attach(self, pair: int) -> None:
        """Put a pair of running rings to work on the port."""
        assert self._counters is not None
        if self.window is None:
            raise FrontendError(f"queue pair {pair} cannot start: there is no guest memory")
        rx, tx = (self._split_ring(self.window, index) for index in (2 * pair, 2 * pair + 1))
        sizes = [self.rings[index].configuration.size for index in (2 * pair, 2 * pair + 1)]
        mergeable = Feature.VIRTIO_NET_F_MRG_RXBUF in self.features
        modern = Feature.VIRTIO_F_VERSION_1 in self.features
        port = self.port.attach(pair, self.window, max(sizes))
        try:
            with _host_refuses(f"start queue pair {pair}"):
                work = QueuePair(
                    self.window,
                    port,
                    rx,
                    tx,
                    header_size=12 if mergeable or modern else 10,
                    mergeable=mergeable,
                    counters=self._counters,
                    index=pair,
                    poll_us=self.config.poll_us,
                    trouble_fd=self.trouble_fd,
                )
            cpus = self.config.cpus
            worker = Worker(work, f"{self.config.name}/{pair}", cpus[pair % len(cpus)] if cpus else None)
            self._attached[pair] = worker
            self._enable(pair)
            work.post()
            self.port.resume(pair)
            worker.start()
        except BaseException:
            self._attached.pop(pair, None)
            self.port.detach(pair)
            raise
        self.state = "running"

    def _detach(self, pair: int) -> None:
        """End a pair's work: nothing of it is lost, and each ring's base is exact afterwards."""
        worker = self._attached.pop(pair, None)
        if worker is None:
            return
        self.port.quiesce(pair)
        worker.stop()
        try:
            self.port.detach(pair)
        finally:
            owed = worker.pair.settle()
            self._note_trouble(pair, worker.pair)
            rings = (worker.pair.rx, worker.pair.tx)
            for index, (ring, call) in enumerate(zip(rings, owed, strict=True), 2 * pair):
                self.rings[index].base = ring.base
                if call:
                    with contextlib.suppress(OSError):
                        self._signals.send("call", index, self.rings[index].call_fd)

    # --- trouble -------------------------------------------------------------------------------------

    def on_trouble(self) -> None:
        """A worker has found a broken ring or window."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.trouble_fd)
        for pair, worker in list(self._attached.items()):
            self._note_trouble(pair, worker.pair)

    def _note_trouble(self, pair: int, work: QueuePair) -> None:
        """Say what a worker has found broken, and tell the frontend."""
        fault = work.window.fault
        for index, ring in ((2 * pair, work.rx), (2 * pair + 1, work.tx)):
            if ring.error:
                self._ring_broke(index, _explain(ring.error), "reset the guest's network device to go on")
            elif fault:
                self._ring_broke(index, fault, "start the virtual machine anew")
        if fault:
            self.state = f"failed: {fault}"
        elif work.port.gone and not self.state.startswith("failed"):
            self.state = f"failed: the interface of port {self.config.port} is gone"
            self.log.error("%s; start guestwire again when it is back", self.state.removeprefix("failed: "))

    def _ring_broke(self, index: int, why: str, remedy: str) -> None:
        with self._trouble:
            ring = self.rings.get(index)
            if ring is None or ring.error:
                return
            ring.error = why
            self.log.error("ring %d is stopped: %s; %s", index, why, remedy)
            if ring.error_fd is not None:
                with contextlib.suppress(OSError):
                    self._signals.send("error", index, ring.error_fd)


@contextlib.contextmanager
def _host_refuses(what: str) -> Iterator[None]:
    """Say what could not be done when the machine is out of something, most often of descriptors."""
    try:
        yield
    except OSError as error:
        raise HostError(
            f"cannot {what}: {error.strerror or error}",
            "raise the limit on open files (ulimit -n 65536, LimitNOFILE= in a systemd unit); df -h /run",
        ) from error


def _explain(error: tuple[int, int, int]) -> str:
    """Say what a driver did wrong: a `SplitRing.error` in words."""
    number, head, value = error
    kind = next(kind for kind in RingError if kind == number)
    return f"{kind.summary} (head {head}, value {value:#x}; virtio 1.3, {kind.section})"
