"""The wire port: guests of one process, joined by a switch.

A network exists as long as a port on it is open. It is known by its name within the process only: the frames
of one guest are copied into the memory of another, which no other process has.
"""

from __future__ import annotations

import dataclasses
import logging
import threading

import guestwire.datapath.port
from guestwire.datapath.network import Network
from guestwire.datapath.window import Window
from guestwire.datapath.wire import WirePort
from guestwire.errors import HostError
from guestwire.ports.base import POLL_US, CoversItself, Port, PortStatus, require_source
from guestwire.ports.simple import LONGEST_MTU, MOST_QUEUE_PAIRS, SENT_OFFLOADS
from guestwire.virtio.features import GUEST_OFFLOADS, Feature

log = logging.getLogger(__name__)

# As bridges forget addresses: IEEE 802.1Q recommends 300 seconds.
AGEING_SECONDS = 300
# A guest's CPU that is shared gets its turn within two ticks of the slowest usual clock (250 Hz); TCP takes a
# segment for lost after 200 ms at the soonest.
WAIT_US = 10_000

ALONE = "alone: only guests of the same process can join it (guestwire run CONFIG.toml)"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WireOptions:
    """What holds for one guest on a wire.

    Attributes:
        source: the only address that the guest may send from, which is then nobody else's; None for any.
        ageing: after how many seconds of silence an address that it sent from is forgotten.
        wait_us: how long a frame that it sends waits for its receiver's buffers, in microseconds.
        guest_offloads: offer to leave checksums and large frames of others to it (VIRTIO_NET_F_GUEST_...).
    """

    source: str | None = None
    ageing: int = AGEING_SECONDS
    wait_us: int = WAIT_US
    guest_offloads: bool = True


class _Networks:
    """The networks of this process, by name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._networks: dict[str, Network] = {}

    def join(self, name: str, guest: str) -> tuple[Network, int]:
        """Make a guest a member; return the network and the guest's number there.

        Raises:
            HostError: it has too many members.
        """
        with self._lock:
            network = self._networks.get(name) or Network(name)
            try:
                number = network.join(guest)
            except IndexError as error:
                raise HostError(str(error), "divide its guests among several wires") from error
            self._networks[name] = network
            return network, number

    def leave(self, network: Network, number: int) -> None:
        """End a membership; without members the network is no more."""
        with self._lock:
            network.leave(number)
            if not network.members:
                del self._networks[network.name]

    def others(self, network: Network, number: int) -> list[str]:
        """Return the names of the other members."""
        with self._lock:
            return sorted(name for other, name in network.members.items() if other != number)


_networks = _Networks()


class WireControl(CoversItself):
    """A guest's end of a wire, for all of its queue pairs.

    Args:
        network: the wire's name.
        options: what holds for this guest.
        guest: what the guest is called.
    """

    mtu = LONGEST_MTU
    max_queue_pairs = MOST_QUEUE_PAIRS
    bounce_frames = 0
    poll_us = POLL_US
    in_order = True
    interface_index = None
    link_up = True
    gone = False
    trouble = None
    disturbed = False

    def __init__(self, network: str, options: WireOptions | None = None, *, guest: str = "") -> None:
        self.name, self.options = network, options or WireOptions()
        self.offloads = SENT_OFFLOADS | (GUEST_OFFLOADS if self.options.guest_offloads else Feature(0))
        self._guest = guest
        self._network: Network | None = None
        self._member = -1
        self._attached: dict[int, WirePort] = {}

    def open(self, queue_pairs: int, leaving: Port | None = None) -> None:
        """Become a member.

        Raises:
            HostError: there are too many.
        """
        if self._network is None:
            self._network, self._member = _networks.join(self.name, self._guest)
            log.info("guest %s is on wire %s, %s", self._guest, self.name, self._company())

    def _company(self) -> str:
        assert self._network is not None
        others = _networks.others(self._network, self._member)
        return f"with {', '.join(others)}" if others else ALONE

    def configure(self, leaving: Port | None = None) -> None:
        """Nothing to change."""

    def prepare(self, pair: int, window: Window, queue_size: int, features: Feature) -> None:
        """Nothing takes long."""

    def forget(self) -> None:
        """Nothing is prepared."""

    def attach(
        self, pair: int, window: Window, queue_size: int, features: Feature
    ) -> guestwire.datapath.port.Port:
        """Make the compiled half; nobody sends to it before `resume`."""
        assert self._network is not None
        options = self.options
        self._attached[pair] = port = WirePort(
            self._network,
            self._member,
            pair,
            source=None if options.source is None else _octets(options.source),
            ageing=options.ageing,
            wait_us=options.wait_us,
        )
        return port

    def resume(self, pair: int) -> None:
        """Let the others' workers put frames in the pair's buffers."""
        assert self._network is not None
        if self.options.source is not None:
            self._network.claim(self._member, _octets(self.options.source))
        self._attached[pair].open()

    def quiesce(self, pair: int) -> None:
        """Have the others' workers leave the guest's memory and rings alone."""
        if pair in self._attached:
            self._attached[pair].close()

    def detach(self, pair: int) -> None:
        """Leave the pair's end."""
        self.quiesce(pair)
        self._attached.pop(pair, None)

    def refresh(self) -> bool:
        """There is no interface to look at."""
        return False

    def announce(self, mac: bytes) -> None:
        """Let the others' frames for this address come here from now on.

        Raises:
            HostError: the guest may not send from it.
        """
        require_source(self.options.source, mac)
        if self._network is not None:
            self._network.learn(self._member, mac, self.options.ageing)

    def status(self) -> PortStatus:
        """Describe the port, and name the other members."""
        network = self._network
        if network is None:
            return PortStatus("wire", network=self.name)
        others = _networks.others(network, self._member)
        return PortStatus(
            "wire", network=self.name, members=tuple(others), mode_reason=None if others else ALONE
        )

    def close(self) -> None:
        """Leave; what was learnt of the guest is forgotten."""
        for pair in list(self._attached):
            self.detach(pair)
        network, self._network = self._network, None
        if network is not None:
            _networks.leave(network, self._member)


def _octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
