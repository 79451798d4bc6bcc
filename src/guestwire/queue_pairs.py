"""A guest's rings, and the workers that run them in pairs between its memory and a port.

A queue pair is in a worker's hands while it is attached (`QueuePairs._update` says when). Whatever changes
(memory, port, a ring) changes while it is in nobody's; the worker's other pairs go on. `QueuePairs.move` is
how a guest at work gets other memory or another port.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence

from guestwire.config import GuestConfig
from guestwire.datapath.counters import Counters
from guestwire.datapath.packed_ring import PackedRing
from guestwire.datapath.queue_pair import QueuePair
from guestwire.datapath.split_ring import SplitRing
from guestwire.datapath.window import Window
from guestwire.errors import FrontendError, HostError, shortage_remedy
from guestwire.eventfds import Signals, require_kick
from guestwire.ports.base import Port
from guestwire.vhost_user.device import RingConfiguration
from guestwire.vhost_user.rings import area_lengths
from guestwire.virtio.features import GUEST_OFFLOADS, Feature, net_header_size
from guestwire.virtio.ring_errors import RingError
from guestwire.worker import Workers


@dataclasses.dataclass(slots=True)
class Ring:
    """A running ring. `call_fd` is a number of our own: dup2 puts another file behind it at any time."""

    configuration: RingConfiguration
    base: int
    enabled: bool
    call_fd: int
    error_fd: int | None
    error: str | None = None


class QueuePairs:
    """All rings of a guest.

    What the methods change they change for one caller at a time; `on_trouble` may be called meanwhile.

    Args:
        config: the guest's.
        log: the guest's.
        port: open whenever a pair is at work.

    Attributes:
        window: the guest's memory; None before there is any.
        port: where a pair goes to work next. Like `window` it is replaced by `move`.
        features: what the driver accepted; they change while no ring runs.
        rings: the running rings, by number.
        state: what the rings are doing, in words (`guestwire.control`).
        trouble_fd: readable when a worker has found something broken.
        changed: called when a pair has gone to work, or has ended it; returns at once.
    """

    def __init__(self, config: GuestConfig, log: logging.Logger, port: Port) -> None:
        self._config, self._log = config, log
        self.window: Window | None = None
        self.port = port
        self.features = Feature(0)
        self.rings: dict[int, Ring] = {}
        self.state = "starting"
        self.trouble_fd = -1
        self.changed: Callable[[], None] = _tell_nobody
        self._attached: dict[int, QueuePair] = {}
        self._workers = Workers(config.name, config.cpus)
        self._trouble = threading.Lock()  # held while an error descriptor is looked at or changed
        self._signals = Signals()
        self._counters: Counters | None = None

    def open(self, counters: Counters) -> None:
        """Get ready to run rings.

        Raises:
            OSError: this process has no descriptor left.
        """
        self._counters = counters
        self.trouble_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def close(self) -> None:
        """Release everything; no ring runs. Closing twice is harmless."""
        if self.trouble_fd >= 0:
            os.close(self.trouble_fd)
            self.trouble_fd = -1

    def reset(self) -> None:
        """Forget what the driver accepted; no ring runs."""
        self.features = Feature(0)
        self._signals.reset()

    @property
    def at_work(self) -> frozenset[int]:
        """The pairs that are at work."""
        return frozenset(self._attached)

    @property
    def port_gone(self) -> bool:
        """Whether a worker has found that what its port is made of is no more."""
        return any(pair.port.gone for pair in list(self._attached.values()))

    # --- rings ---------------------------------------------------------------------------------------

    def start_ring(self, index: int, configuration: RingConfiguration) -> None:
        """Start a ring; with the second of a pair the pair goes to work."""
        with host_refuses(f"start ring {index}"):
            if configuration.kick_fd is not None:
                require_kick(index, configuration.kick_fd)
            call_fd = _nobody() if configuration.call_fd is None else os.dup(configuration.call_fd)
        self.rings[index] = Ring(
            configuration, configuration.base, configuration.enabled, call_fd, configuration.error_fd
        )
        try:
            self._update(index // 2)
        except BaseException:
            os.close(self.rings.pop(index).call_fd)
            raise
        # A device before us may have been killed between showing used buffers and calling the driver.
        if self._was_used(self.rings[index]):
            with contextlib.suppress(OSError):
                self._signals.send("call", index, call_fd)

    def _was_used(self, ring: Ring) -> bool:
        """Tell whether a ring is further than at its beginning, but for the wrap counters of a packed one."""
        packed = Feature.VIRTIO_F_RING_PACKED in self.features
        return bool(ring.base & (0x7FFF7FFF if packed else 0xFFFF))

    def stop_ring(self, index: int) -> int:
        """Stop a ring; its pair ends work until both run again. Return the exact index to go on from."""
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
        except BaseException:
            ring.enabled = before
            raise

    def set_ring_call(self, index: int, fd: int | None) -> None:
        """Replace the file that the worker signals, without a moment in which there is none."""
        with host_refuses(f"replace the call descriptor of ring {index}"):
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

    # --- pairs ---------------------------------------------------------------------------------------

    def move(self, window: Window | None, port: Port) -> None:
        """Let every pair at work go on in this window and on this port.

        Raises:
            GuestwireError: some cannot. Those are at rest, with nothing lost, until the next `move`. Or
                `prepare` says so: then `window` and `port` are what they were, and all are at work.
        """
        self.prepare(window, port)
        self.rest()
        self.window, self.port = window, port
        try:
            for pair in range(self._config.queue_pairs):
                self._update(pair)
        finally:
            port.forget()
            if window is not None:
                window.pages.tidy()

    def prepare(self, window: Window | None, port: Port) -> None:
        """Do what takes long in a `move`, and can be done while the pairs are at work.

        Raises:
            GuestwireError: the `move` is certain to be refused.
        """
        if window is None:
            return
        try:
            for pair in self._attached:
                port.prepare(pair, window, self._queue_size(pair), self.features)
        except BaseException:
            port.forget()
            raise

    def rest(self) -> None:
        """End the work of every pair, until the next `move`: no buffer is anybody's but the guest's."""
        for pair in list(self._attached):
            self._detach(pair)

    def spread(self) -> None:
        """Have frames that come in for pairs that are not at work go to those that are.

        To be called some time after `changed`: rings start and stop one after the other.

        Raises:
            GuestwireError: the port refuses. Pairs that are not `at_work` any more are at rest, with nothing
                lost, until the next `move`.
        """
        self._attach_anew(self.port.cover(self._attached))

    def _attach_anew(self, pairs: Sequence[int]) -> None:
        if not pairs:
            return
        assert self.window is not None
        port = self.port
        try:
            for pair in pairs:
                port.prepare(pair, self.window, self._queue_size(pair), self.features)
            for pair in pairs:
                self._detach(pair)
            for pair in pairs:
                self._attach(pair)
        finally:
            port.forget()

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
            self._workers.wake(pair)
        else:
            self._attach(pair)

    def _enable(self, pair: int) -> None:
        rx, tx = self.rings[2 * pair], self.rings[2 * pair + 1]
        self._attached[pair].enable(rx=rx.enabled, tx=tx.enabled)

    def _queue_size(self, pair: int) -> int:
        """Return the larger of the sizes of a pair's rings."""
        return max(self.rings[index].configuration.size for index in (2 * pair, 2 * pair + 1))

    def _device_ring(self, window: Window, index: int) -> SplitRing | PackedRing:
        """Make the device side of a running ring, for the port that is next."""
        ring = self.rings[index]
        ring.error = None
        c = ring.configuration
        packed = Feature.VIRTIO_F_RING_PACKED in self.features
        addresses = (c.descriptor_address, c.available_address, c.used_address)
        lengths = area_lengths(c.size, packed)
        places = [window.translate_user(*area) for area in zip(addresses, lengths, strict=True)]
        try:
            # No port reads a sent list again.
            again = index % 2 == 0 and not self.port.in_order
            make = functools.partial(PackedRing, read_again=again) if packed else SplitRing
            made = make(
                window,
                c.size,
                *places,
                base=ring.base,
                receive=index % 2 == 0,
                event_index=Feature.VIRTIO_F_EVENT_IDX in self.features,
                indirect=Feature.VIRTIO_F_INDIRECT_DESC in self.features,
                kick_fd=-1 if c.kick_fd is None else c.kick_fd,
                call_fd=ring.call_fd,
            )
        except ValueError as error:
            raise FrontendError(f"ring {index} cannot start: {error}") from error
        if made.stale_base is not None:
            self._log.warning(
                "ring %d goes on from %#x, as the ring itself shows, and not from %#x, as the frontend says: "
                "frames that the device before us had taken may be sent twice",
                index,
                made.base,
                made.stale_base,
            )
            ring.base = made.base
        return made

    def _attach(self, pair: int) -> None:
        """Put a pair of running rings to work on the port."""
        assert self._counters is not None
        if self.window is None:
            raise FrontendError(f"queue pair {pair} cannot start: there is no guest memory")
        self._attach_anew(self.port.uncover(pair))
        rx, tx = (self._device_ring(self.window, index) for index in (2 * pair, 2 * pair + 1))
        port = self.port.attach(pair, self.window, self._queue_size(pair), self.features)
        # A driver may have accepted more from another port.
        withheld = GUEST_OFFLOADS & ~self.port.offloads
        try:
            with host_refuses(f"start queue pair {pair}"):
                self._attached[pair] = work = QueuePair(
                    self.window,
                    port,
                    rx,
                    tx,
                    header_size=net_header_size(self.features),
                    mergeable=Feature.VIRTIO_NET_F_MRG_RXBUF in self.features,
                    offloads=int(self.features & ~withheld),
                    counters=self._counters,
                    index=pair,
                    trouble_fd=self.trouble_fd,
                    coalesce_us=self._config.coalesce_us,
                    coalesce_packets=self._config.coalesce_packets,
                )
            self._enable(pair)
            work.post()
            self.port.resume(pair)
            with host_refuses(f"start queue pair {pair}"):
                self._workers.add(pair, work, self._poll_us)
        except BaseException:
            if pair in self._attached:
                # Frames may have come already.
                self.port.quiesce(pair)
                self._settle(pair, self._attached.pop(pair))
            else:
                self.port.detach(pair)
            raise
        self.state = "running"
        self.changed()

    @property
    def _poll_us(self) -> int:
        return self.port.poll_us if self._config.poll_us is None else self._config.poll_us

    def _detach(self, pair: int) -> None:
        """End a pair's work: nothing of it is lost, and each ring's base is exact afterwards."""
        work = self._attached.pop(pair, None)
        if work is None:
            return
        self.port.quiesce(pair)
        self._workers.remove(pair, work)
        self._settle(pair, work)

    def _settle(self, pair: int, work: QueuePair) -> None:
        """Give back to the guest what a pair at rest has, and note where its rings are."""
        try:
            work.finish()
            self.port.detach(pair)
        finally:
            owed = work.settle()
            self._note_trouble(pair, work)
            rings = (work.rx, work.tx)
            for index, (ring, call) in enumerate(zip(rings, owed, strict=True), 2 * pair):
                self.rings[index].base = ring.base
                if call:
                    with contextlib.suppress(OSError):
                        self._signals.send("call", index, self.rings[index].call_fd)
            self.changed()

    # --- trouble -------------------------------------------------------------------------------------

    def on_trouble(self) -> None:
        """Say what workers have found broken; for the event loop, where nobody is waited for."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.trouble_fd)
        for pair, work in list(self._attached.items()):
            self._note_trouble(pair, work)

    def _note_trouble(self, pair: int, work: QueuePair) -> None:
        """Say what a worker has found broken, and tell the frontend."""
        fault = work.window.fault
        for index, ring in ((2 * pair, work.rx), (2 * pair + 1, work.tx)):
            if ring.error:
                self._ring_broke(
                    index,
                    _explain(ring.error, isinstance(ring, PackedRing)),
                    "reset the guest's network device to go on",
                )
            elif fault:
                self._ring_broke(index, fault, "start the virtual machine anew")
        if fault:
            self.state = f"failed: {fault}"

    def _ring_broke(self, index: int, why: str, remedy: str) -> None:
        with self._trouble:
            ring = self.rings.get(index)
            if ring is None or ring.error:
                return
            ring.error = why
            self._log.error("ring %d is stopped: %s; %s", index, why, remedy)
            if ring.error_fd is not None:
                with contextlib.suppress(OSError):
                    self._signals.send("error", index, ring.error_fd)


def _tell_nobody() -> None:
    """Nobody asks which pairs are at work."""


def _nobody() -> int:
    """Return a descriptor that takes signals for nobody."""
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


@contextlib.contextmanager
def host_refuses(what: str) -> Iterator[None]:
    """Say what could not be done when the machine is out of something, of descriptors or of room."""
    try:
        yield
    except OSError as error:
        said = f"cannot {what}: {error.strerror or error}"
        raise HostError(said, shortage_remedy(error, "/run")) from error


def _explain(error: tuple[int, int, int], packed: bool) -> str:
    """Say what a driver did wrong: a `Ring.error` in words."""
    number, head, value = error
    kind = next(kind for kind in RingError if kind == number)
    section = kind.packed_section if packed else kind.section
    return f"{kind.summary} (head {head}, value {value:#x}; virtio 1.3, {section})"
