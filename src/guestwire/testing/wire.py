"""A wire to put a guest on: a veth pair between two network namespaces.

guestwire drives one end; the other, the peer, is an ordinary Linux host.  Nothing of the machine's
own network is touched.

    with Wire() as wire, tempfile.NamedTemporaryFile() as log:
        wire.near.spawn(["guestwire", "run", ..., f"--port=xdp:{wire.interface}"], Path(log.name))
        wire.far.run(["ping", "-c", "1", wire.guest_address])
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from guestwire.errors import HostError
from guestwire.host.ethtool import leave_nothing_to_hardware
from guestwire.testing.namespaces import Namespace

UP_SECONDS = 10.0


class Wire:
    """Two namespaces, ``near`` (guestwire's) and ``far`` (the peer's), and the pair between them.

    Args:
        mtu: of both ends.
        queues: receive queues and transmit queues of each end.  Linux attaches an XDP program to a
            veth only if it has at least as many receive queues as the other end has transmit
            queues; with equal numbers it always can.
        complete_frames: the peer computes the checksums of what it sends, and puts VLAN tags into it,
            which a veth need not: it leaves them beside the frame, to a receiver who trusts it.

    Raises:
        HostError: we may not make network namespaces.
    """

    interface = "wire0"
    peer_interface = "peer0"
    peer_address = "192.0.2.1"  # RFC 5737, TEST-NET-1
    guest_address = "192.0.2.2"
    prefix_length = 24

    def __init__(self, mtu: int = 1500, queues: int = 1, *, complete_frames: bool = True) -> None:
        self.far = Namespace("far")
        try:
            self.near = Namespace("near")
        except BaseException:
            self.far.remove()
            raise
        try:
            self._connect(mtu, queues)
            if complete_frames:
                self.far.call(lambda: leave_nothing_to_hardware(self.peer_interface))
        except BaseException:
            self.remove()
            raise

    def _connect(self, mtu: int, queues: int) -> None:
        end = {"mtu": mtu, "num_rx_queues": queues, "num_tx_queues": queues}
        with self.far.netlink() as netlink:
            netlink.link(
                "add",
                kind="veth",
                ifname=self.peer_interface,
                peer={"ifname": self.interface, "net_ns_fd": self.near.name, **end},
                **end,
            )
            (index,) = netlink.link_lookup(ifname=self.peer_interface)
            netlink.addr("add", index=index, address=self.peer_address, prefixlen=self.prefix_length)
            netlink.link("set", index=index, state="up")
        with self.near.netlink() as netlink:
            (index,) = netlink.link_lookup(ifname=self.interface)
            netlink.link("set", index=index, state="up")
        for namespace, interface in ((self.far, self.peer_interface), (self.near, self.interface)):
            with namespace.netlink() as netlink:
                _wait_until_up(netlink, interface)

    def remove(self) -> None:
        """Remove both namespaces, and with them the pair."""
        self.near.remove()
        self.far.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()


def _wait_until_up(netlink: Any, interface: str) -> None:
    """Wait until an interface transmits.

    The end that was switched on first had no carrier then. That it has one now the kernel notices in its own
    time, long on a busy machine, and until then it drops, without an error, what is sent there.
    """
    (index,) = netlink.link_lookup(ifname=interface)
    deadline = time.monotonic() + UP_SECONDS
    while netlink.get_links(index)[0].get_attr("IFLA_OPERSTATE") != "UP":
        if time.monotonic() > deadline:
            raise HostError(
                f"{interface} is not up after {UP_SECONDS:g} s", "look at ip link in its namespace"
            )
        time.sleep(0.001)
