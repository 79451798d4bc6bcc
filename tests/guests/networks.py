"""Networks that put a guest behind a TAP interface, and IPv6, for tests and benchmarks; see also Wire."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from backend.process import wait_until
from guestwire.testing.guests import Guest
from guestwire.testing.namespaces import NamedNamespace, Namespace
from guestwire.testing.wire import Wire

# RFC 3849, documentation
PEER_IPV6 = "2001:db8::1"
GUEST_IPV6 = "2001:db8::2"
IPV6_PREFIX_LENGTH = 64


class TapHost:
    """A namespace that is the guest's peer: the other side of a TAP interface is its own network stack.

    The interface is made by whoever moves the guest's frames, in the namespace `near`, which is also `far`.
    """

    interface = peer_interface = "tap0"
    peer_address = Wire.peer_address
    guest_address = Wire.guest_address
    prefix_length = Wire.prefix_length

    def __init__(self) -> None:
        self.near = self.far = Namespace("tap")

    def connect(self) -> None:
        """Wait for the interface, give it an address, and switch it on."""
        with self.far.netlink() as netlink:
            wait_until(lambda: netlink.link_lookup(ifname=self.interface))
            (index,) = netlink.link_lookup(ifname=self.interface)
            netlink.addr("add", index=index, address=self.peer_address, prefixlen=self.prefix_length)
            netlink.link("set", index=index, state="up")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.far.remove()


class BridgedWire(Wire):
    """A wire whose near end is in a bridge, which waits for a TAP interface.

    The near end does no work for the bridge: what the far end receives was finished by the near end's
    kernel from what the TAP interface's user said of it. What the far end sends is as unfinished as frames
    that a kernel has for a TAP interface.
    """

    bridge = "bridge0"

    def __init__(self, mtu: int = 1500) -> None:
        super().__init__(mtu)
        try:
            with self.near.netlink() as netlink:
                (wire,) = netlink.link_lookup(ifname=self.interface)
                netlink.link("add", kind="bridge", ifname=self.bridge, mtu=mtu)
                (bridge,) = netlink.link_lookup(ifname=self.bridge)
                netlink.link("set", index=wire, master=bridge)
                netlink.link("set", index=bridge, state="up")
            set_offloads(self.near, self.interface, False)
            set_offloads(self.far, self.peer_interface, True)
        except BaseException:
            self.remove()
            raise


@dataclass(frozen=True)
class IPv6Peer:
    """The far end of a network by its IPv6 address."""

    far: NamedNamespace
    peer_address: str = PEER_IPV6


def set_offloads(namespace: Namespace, interface: str, wanted: bool) -> None:
    """Let an interface's kernel leave checksums and segmentation to whoever is behind it, or not."""
    word = "on" if wanted else "off"
    done = namespace.run(["ethtool", "-K", interface, "tx", word, "tso", word, "gso", word])
    assert done.returncode == 0, done.stdout


def add_ipv6(far: NamedNamespace, interface: str, guest: Guest, name: str = "eth0") -> IPv6Peer:
    """Give the guest's and its peer's interface IPv6 addresses, known at once to be nobody else's."""
    with far.netlink() as netlink:
        far.call(lambda: _enable_ipv6(interface))
        (index,) = netlink.link_lookup(ifname=interface)
        netlink.addr("add", index=index, address=PEER_IPV6, prefixlen=IPV6_PREFIX_LENGTH)
    guest.check(f"echo 0 >/proc/sys/net/ipv6/conf/{name}/accept_dad")
    guest.check(f"ip -6 addr add {GUEST_IPV6}/{IPV6_PREFIX_LENGTH} dev {name}")
    return IPv6Peer(far)


def _enable_ipv6(interface: str) -> None:
    settings = Path("/proc/sys/net/ipv6/conf") / interface
    (settings / "accept_dad").write_text("0")
    (settings / "disable_ipv6").write_text("0")
