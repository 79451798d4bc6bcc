"""One guest: the device that its vhost-user session drives, between its rings and its port.

Threads. Whoever changes the guest holds `Guest.lock`: the session, which calls the device's methods in a
thread of asyncio's pool, `Guest.follow_port` after an event of the interface, and `guestwire.rebind`. The
event loop never waits for it, because some changes wait for the kernel or the NIC; what it asks for is
replaced in one store and never changed in place.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import msgspec

from guestwire import offer
from guestwire.config import GuestConfig
from guestwire.datapath.counters import Counters
from guestwire.datapath.window import Window
from guestwire.errors import FrontendError, GuestwireError, HostError
from guestwire.ports.base import Port
from guestwire.ports.pinning import TAKEN
from guestwire.ports.simple import SimplePort
from guestwire.queue_pairs import QueuePairs, Ring, host_refuses
from guestwire.start_watch import Seen, see
from guestwire.vhost_user.constants import ConfigFlag
from guestwire.vhost_user.device import RingConfiguration
from guestwire.vhost_user.memory import MemoryRegion
from guestwire.virtio.features import Feature
from guestwire.virtio.net_config import NetStatus
from guestwire.worker import require_cpus

USUAL_MTU = 1500  # of a driver that was not told

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def _alone(
    method: Callable[Concatenate[Guest, _Arguments], _Result],
) -> Callable[Concatenate[Guest, _Arguments], _Result]:
    """Let a method hold the guest's lock."""

    @functools.wraps(method)
    def locked(guest: Guest, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with guest.lock:
            return method(guest, *args, **kwargs)

    return locked


class Guest:
    """A virtio network device for one frontend (`guestwire.vhost_user.device.Device`).

    Args:
        config: complete (`guestwire.config.complete`).
        port: not yet opened; the guest opens and closes it.
        counters_path: the counter file to create.

    Attributes:
        lock: held by whoever changes the guest.
        rebinding: held by whoever binds it to another port, before and after that as well.
        lost: why the guest has no port that works; None if it has one.
        closed: whether it is served no more.
        memory_taken: how often memory was taken away that was pinned.
        notices: what is to be known about its start (`guestwire.start_watch`).
        net_config: the configuration space as the driver may read it now.
        config_changed: called, in any thread, when `net_config` has changed; returns at once.
    """

    def __init__(self, config: GuestConfig, port: Port, counters_path: Path) -> None:
        self.config, self.port, self.counters_path = config, port, counters_path
        self.log = logging.getLogger(f"guestwire.guest.{config.name}")
        self.lock = threading.RLock()
        self.rebinding = threading.Lock()
        self.pairs = QueuePairs(config, self.log, port)
        self.lost: str | None = None
        self.closed = False
        self.memory_taken = 0
        self.notices: list[str] = []
        self.net_config = offer.net_config(config, port.mtu, NetStatus(0))
        self.config_changed: Callable[[], None] = _tell_nobody
        self._regions: Sequence[MemoryRegion] = ()
        self._frontend_mtu: int | None = None

    def open(self) -> None:
        """Open the port and create the counter file.

        Raises:
            GuestwireError: the port cannot be opened.
        """
        offer.require_queue_pairs(self.config, self.config.port, self.port)
        require_cpus(self.config.cpus)
        self.port.open(self.config.queue_pairs)
        self.port.configure()
        self.show_link()
        with host_refuses("make the counter file"):
            fd = os.open(self.counters_path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                self.pairs.open(Counters(fd, self.config.queue_pairs))
            finally:
                os.close(fd)

    @_alone
    def close(self) -> None:
        """Release everything; the session is closed already. Closing twice is harmless."""
        self.closed = True
        self.port.close()
        self.pairs.close()
        with contextlib.suppress(FileNotFoundError):
            self.counters_path.unlink()

    # --- what it is, for whoever looks ---------------------------------------------------------------

    @property
    def state(self) -> str:
        """What people are told (`guestwire.control`)."""
        if self.lost is not None and not self.closed:
            return f"failed: {self.lost}; {self._rebind_command}"
        if self.port.trouble is not None and not self.closed:
            return f"cut off: {self.port.trouble}"
        return self.pairs.state

    @state.setter
    def state(self, state: str) -> None:
        self.pairs.state = state

    @property
    def features(self) -> Feature:
        """What the driver accepted."""
        return self.pairs.features

    @property
    def window(self) -> Window | None:
        """The guest's memory."""
        return self.pairs.window

    @property
    def rings(self) -> dict[int, Ring]:
        """The running rings, by number."""
        return self.pairs.rings

    @property
    def trouble_fd(self) -> int:
        """Readable when `on_trouble` has something to do; -1 before `open` and after `close`."""
        return self.pairs.trouble_fd

    @property
    def mtu(self) -> int:
        """The longest payload of a frame that the guest may send, in bytes, as far as we know."""
        if self._frontend_mtu is not None:
            return self._frontend_mtu
        if Feature.VIRTIO_NET_F_MTU in self.features:
            return self.net_config.mtu
        return min(USUAL_MTU, self.port.mtu)

    @property
    def _rebind_command(self) -> str:
        return f"guestwire rebind {self.config.name} PORT"

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
        return self.net_config.read(offset, size)

    def write_config(self, offset: int, data: bytes, flag: ConfigFlag) -> None:
        """Refuse a change: every field is read-only for a driver; migration may write what is there."""
        if self.read_config(offset, len(data)) != data:
            raise FrontendError(
                f"the configuration space is read-only, and bytes {offset} to {offset + len(data) - 1} differ"
            )

    # --- what the frontend says ----------------------------------------------------------------------

    @_alone
    def set_features(self, features: int) -> None:
        """Take what the driver accepted."""
        self.pairs.features = Feature(features)

    def set_status(self, status: int) -> None:
        """Nothing depends on the device status: rings start and stop by their own requests."""

    @_alone
    def set_mtu(self, mtu: int) -> None:
        """Refuse an MTU whose frames the port cannot carry."""
        if mtu > self.port.mtu:
            raise HostError(
                f"the guest was promised an MTU of {mtu}, port {self.config.port} carries {self.port.mtu}",
                f"start the guest with host_mtu={self.port.mtu}, or raise the interface's MTU",
            )
        self._frontend_mtu = mtu

    @_alone
    def announce(self, mac: bytes) -> None:
        """Tell the network where the guest is now."""
        self.port.announce(mac)

    @_alone
    def reset(self) -> None:
        """Forget what the driver accepted; no ring runs."""
        self.pairs.reset()
        self._frontend_mtu = None
        self.show_link()

    @_alone
    def set_memory(self, regions: Sequence[MemoryRegion]) -> None:
        """Map a new window, while no worker looks, and go on with it."""
        window = self._map(regions, self.port)
        old, port = self.window, self.pairs.port
        if window is not None and old is not None:
            window.pages.lost = old.pages.lost
        try:
            self.pairs.move(window, port)
        except GuestwireError:
            # As it was before: the session tells the frontend, or ends.
            try:
                if self.window is not old:
                    self.pairs.move(old, port)
            except GuestwireError as error:
                self.state = f"failed: {error}"
                self.log.error("cannot go on with the old memory either: %s; %s", error, error.remedy)
            if window is not None:
                window.close()
            raise
        self._regions = regions
        if old is not None:
            old.close()

    def _map(self, regions: Sequence[MemoryRegion], port: Port) -> Window | None:
        if not regions:
            return None
        table = [(r.guest_address, r.user_address, r.size, r.fd, r.mmap_offset) for r in regions]
        try:
            return Window(table, bounce_frames=port.bounce_frames * self.config.queue_pairs)
        except (OSError, ValueError) as error:
            raise HostError(
                f"guest {self.config.name}: its memory cannot be mapped: {error}",
                "share it: -object memory-backend-memfd,share=on",
            ) from error

    def window_for(self, port: Port) -> Window | None:
        """Return a window as this port needs it: the present one, or else a new one on the same memory.

        Raises:
            HostError: the memory cannot be mapped once more.
        """
        if port.bounce_frames == self.port.bounce_frames:
            return self.window
        return self._map(self._regions, port)

    @_alone
    def start_ring(self, index: int, ring: RingConfiguration) -> None:
        """Start a ring; with the second of a pair the pair goes to work."""
        self.pairs.start_ring(index, ring)

    @_alone
    def stop_ring(self, index: int) -> int:
        """Stop a ring; its pair ends work until both run again."""
        return self.pairs.stop_ring(index)

    @_alone
    def enable_ring(self, index: int, enabled: bool) -> None:
        """Let a running ring have its effect, or not."""
        self.pairs.enable_ring(index, enabled)

    @_alone
    def set_ring_call(self, index: int, fd: int | None) -> None:
        """Replace the file that the worker signals."""
        self.pairs.set_ring_call(index, fd)

    @_alone
    def set_ring_error(self, index: int, fd: int | None) -> None:
        """Remember whom to tell when the ring breaks."""
        self.pairs.set_ring_error(index, fd)

    # --- what the port says --------------------------------------------------------------------------

    def on_trouble(self) -> bool:
        """Say what workers have found broken; return whether `follow_port` is to be called.

        For the event loop, where nobody is waited for.
        """
        self.pairs.on_trouble()
        return self.pairs.port_gone

    @_alone
    def follow_port(self) -> None:
        """Look at the port's interface after an event of it, and tell the guest what has changed."""
        if self.closed or self.lost is not None:
            return
        before, promised = self.port.mtu, self.mtu
        attach_anew = self.port.refresh()
        if self.port.gone or self.pairs.port_gone:
            self.lose_port(f"the interface of port {self.config.port} is gone")
            return
        if attach_anew:
            try:
                self.pairs.move(self.window, self.port)
            except GuestwireError as error:
                self.lose_port(f"port {self.config.port}: {error}")
                return
            if self.port.mtu != before:
                self.log.info("the MTU of port %s is %d now, was %d", self.config.port, self.port.mtu, before)
            self._warn_of_mtu(promised)
        was_up = self.net_config.status
        self.show_link()
        if self.net_config.status != was_up:
            self.log.info("the link is %s", "up" if self.net_config.status else "down")

    @_alone
    def spread(self) -> None:
        """Have frames that come in for queue pairs which the guest does not use reach those that it does.

        Raises:
            GuestwireError: the port refuses; the pairs go on as before.
        """
        if self.closed or self.lost is not None:
            return
        before = self.pairs.at_work
        try:
            self.pairs.spread()
        except GuestwireError as error:
            if self.pairs.at_work >= before:
                raise
            self.lose_port(f"port {self.config.port}: {error}")

    @property
    def memory_pinned(self) -> bool:
        """Whether `memory_suspect` is to be looked at from time to time."""
        window = self.window
        return window is not None and window.pages.watchers > 0

    @property
    def memory_suspect(self) -> bool:
        """Whether `follow_memory` has anything to find; for the event loop, where nobody is waited for."""
        window = self.window
        return window is not None and window.pages.suspect

    @_alone
    def follow_memory(self) -> float:
        """See whether memory that is pinned is still the guest's; if not, pin none of it any more.

        Until the frontend or the port is another one.

        Returns:
            how long the look took, in seconds.
        """
        window = self.window
        if window is None or window.pages.lost:
            return 0.0
        start = time.monotonic()
        taken = window.pages.look()
        spent = time.monotonic() - start
        if taken:
            self._give_memory_up(window)
        return spent

    def _give_memory_up(self, window: Window) -> None:
        self.memory_taken += 1
        self.log.warning(
            "%s: frames are copied from now on (mode=bounce); once the guest is without them: %s",
            TAKEN,
            self._rebind_command,
        )
        try:
            self.pairs.move(window, self.port)
        except GuestwireError as error:
            self.lose_port(f"port {self.config.port}: {error}")

    def see(self) -> Seen | None:
        """Look whether its driver has done anything in its memory; None while that is being changed.

        For the event loop, where nobody is waited for.
        """
        if not self.lock.acquire(blocking=False):
            return None
        try:
            return see(
                self.window,
                self._regions,
                self.rings,
                accepted=self.features != 0,
                packed=Feature.VIRTIO_F_RING_PACKED in self.features,
            )
        finally:
            self.lock.release()

    def _warn_of_mtu(self, promised: int) -> None:
        """Say so if the port carries less than the guest was told, which it cannot be told otherwise."""
        if self.port.mtu < promised:
            interface = self.port.status().interface
            self.log.warning(
                "the guest may send frames for an MTU of %d: longer ones than for %d are dropped (too_long); "
                "ip link set dev %s mtu %d",
                promised,
                self.port.mtu,
                interface,
                promised,
            )

    def lose_port(self, why: str) -> None:
        """Go on without a port: the link is down, and what the guest sends is dropped and counted.

        Until `bind`. The lock is held.
        """
        self.lost = why
        self.log.error("%s; %s", why, self._rebind_command)
        try:
            self.pairs.move(self.window, SimplePort("null"))
        except GuestwireError as error:
            self.log.error("its rings stand still: %s; %s", error, error.remedy)
        self.show_link()

    def bind(self, description: str, port: Port) -> None:
        """Belong to this port from now on. The lock is held, and the queue pairs are on the port already."""
        self.port, self.lost = port, None
        self.config = msgspec.structs.replace(self.config, port=description)
        self.pairs.changed()  # whoever watches the pairs' port has another one to watch
        self.show_link()

    def show_link(self, *, up: bool = True) -> None:
        """Bring the configuration space up to date; the link is down at least if it is not `up`.

        The MTU stays what it was for a driver that has accepted it: "The device MUST NOT modify mtu once
        it has been set" (virtio 1.3, 5.1.4.1).
        """
        up = up and self.lost is None and self.port.link_up
        fixed = Feature.VIRTIO_NET_F_MTU in self.features
        mtu = self.net_config.mtu if fixed else self.port.mtu
        now = offer.net_config(self.config, mtu, NetStatus.LINK_UP if up else NetStatus(0))
        if now != self.net_config:
            self.net_config = now
            self.config_changed()


def _tell_nobody() -> None:
    """Nobody reads the configuration space."""
