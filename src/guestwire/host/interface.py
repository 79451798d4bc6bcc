"""One network interface, as much as an ``xdp`` port must know of it before it touches it.

Everything is asked by netlink and ethtool, which answer for the network namespace that the calling
thread is in.  ``/sys/class/net`` shows the namespace that mounted it, so it is believed only after
it has shown the same interface (a process started by ``nsenter --net`` sees another one's).
"""

from __future__ import annotations

import difflib
import errno
from dataclasses import dataclass
from pathlib import Path
from socket import if_indextoname
from typing import Any, Final

from guestwire.errors import HostError
from guestwire.host import ethtool, netlink
from guestwire.host.netlink import XdpSupport
from guestwire.host.routes import default_route_leaves_by

_SYSFS_INTERFACES: Final = Path("/sys/class/net")
_SYSFS_PCI_DEVICES: Final = Path("/sys/bus/pci/devices")

_IFF_UP: Final = 1
_ARPHRD_ETHER: Final = 1
_ARPHRD_LOOPBACK: Final = 772

_XDP_MODES: Final = (
    ("native", "IFLA_XDP_DRV_PROG_ID"),
    ("generic", "IFLA_XDP_SKB_PROG_ID"),
    ("hardware", "IFLA_XDP_HW_PROG_ID"),
)


@dataclass(frozen=True, slots=True)
class AttachedProgram:
    """An XDP program that is attached to an interface now.

    Attributes:
        id: the kernel's number of the program (``bpftool prog show id N``).
        mode: ``native``, ``generic`` or ``hardware``.
    """

    id: int
    mode: str


@dataclass(frozen=True, slots=True)
class InterruptDeferral:
    """How an interface puts its interrupts off when it is polled (kernel, networking/napi.rst).

    Attributes:
        times: how many polls in vain it leaves them off for (``napi_defer_hard_irqs``).
        nanoseconds: how long it waits for the next poll before it polls itself (``gro_flush_timeout``).
    """

    times: int
    nanoseconds: int

    @property
    def active(self) -> bool:
        """Whether it puts them off at all, which takes both."""
        return self.times > 0 and self.nanoseconds > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The other end of a veth pair.

    What is ``None`` could not be seen: the other network namespace has no name under
    ``/run/netns``, or we may not enter it.

    Attributes:
        name: its interface name.
        namespace: the name of its network namespace; empty if it is in ours.
        transmit_queues: how many queues it sends on.
        transmit_checksum_offload: whether it leaves the checksum of the frames it sends to be
            completed by hardware, which a veth pair does not have.
        transmit_vlan_offload: whether it leaves the VLAN tag of the frames it sends beside them, to be put
            in by hardware.
    """

    name: str | None
    namespace: str | None
    transmit_queues: int | None
    transmit_checksum_offload: bool | None
    transmit_vlan_offload: bool | None = None

    def command(self, template: str) -> str:
        """A command for a person to type that acts on the peer, wherever it is.

        Args:
            template: the command, with ``{name}`` for the interface.
        """
        command = template.format(name=self.name or "PEER")
        if self.namespace is None:
            return f"{command}, in the network namespace of the other end"
        return f"ip netns exec {self.namespace} {command}" if self.namespace else command


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A network interface at one moment.

    Attributes:
        name: its name.
        index: its number in the current network namespace.
        mac: its address, such as ``02:00:00:00:00:01``; ``None`` if it has none.
        mtu: the largest payload of a frame in bytes, without the 14 bytes of the Ethernet header.
        ethernet: whether its frames start with an Ethernet header.
        kind: the type of a virtual interface (``veth``, ``tun``); ``None`` for a device.
        driver: what ethtool calls its driver.
        up: whether it is set up.
        carrier: whether its link works.
        receive_queues: how many receive queues are in use (``real_num_rx_queues``).
        transmit_queues: how many transmit queues are in use.
        channels: what ``ethtool -l`` says; ``None`` if its driver has no such notion.
        carries_default_route: whether frames of a default route of the current network namespace
            pass through it, directly or below a bridge, bond or VLAN.
        xdp: what XDP can do on it; ``None`` where the kernel does not say (before 6.3).
        programs: the XDP programs attached to it.
        peer: the other end, if it is a veth interface.
        iommu_group_type: how the IOMMU treats its device: ``identity``, ``DMA``, ``DMA-FQ``;
            ``None`` where there is no IOMMU in the way (or no device).
        vlan_stripping: the features, as ``ethtool -K`` calls them, by which a device takes VLAN tags out of
            received frames, so that XDP does not see them.
        deferral: how it puts its interrupts off; ``None`` if that could not be seen.
    """

    name: str
    index: int
    mac: str | None
    mtu: int
    ethernet: bool
    kind: str | None
    driver: str | None
    up: bool
    carrier: bool
    receive_queues: int
    transmit_queues: int
    channels: ethtool.Channels | None
    carries_default_route: bool
    xdp: XdpSupport | None
    programs: tuple[AttachedProgram, ...]
    peer: Peer | None
    iommu_group_type: str | None
    vlan_stripping: tuple[str, ...] = ()
    deferral: InterruptDeferral | None = None

    @classmethod
    def open(cls, name: str) -> Interface:
        """Look at interface ``name`` of the current network namespace; an alternative name will do.

        Raises:
            HostError: there is no such interface.
        """
        links = netlink.links()
        link = netlink.find_link(links, name)
        if link is None:
            raise _unknown_interface(name, links)
        name = link.get_attr("IFLA_IFNAME")
        try:
            return cls._from_link(name, link, links)
        except OSError as error:
            raise HostError(
                f"interface {name} could not be read: {error}", f"ip link show dev {name}"
            ) from error

    @classmethod
    def _from_link(cls, name: str, link: Any, links: list[Any]) -> Interface:
        index: int = link["index"]
        sysfs = _own_sysfs_directory(link)
        channels = ethtool.channels(name)
        driver = ethtool.driver(name)
        kind = _kind(link)
        return cls(
            name=name,
            index=index,
            mac=link.get_attr("IFLA_ADDRESS"),
            mtu=link.get_attr("IFLA_MTU"),
            ethernet=link["ifi_type"] in {_ARPHRD_ETHER, _ARPHRD_LOOPBACK},
            kind=kind,
            driver=driver.name if driver else None,
            up=bool(link["flags"] & _IFF_UP),
            carrier=bool(link.get_attr("IFLA_CARRIER")),
            receive_queues=(
                _sysfs_queues(sysfs, "rx")
                or (channels and channels.receive)
                or link.get_attr("IFLA_NUM_RX_QUEUES")
            ),
            transmit_queues=(
                _sysfs_queues(sysfs, "tx")
                or (channels and channels.transmit)
                or link.get_attr("IFLA_NUM_TX_QUEUES")
            ),
            channels=channels,
            carries_default_route=default_route_leaves_by(_above(index, links)),
            xdp=netlink.xdp_support(index),
            programs=_programs(link),
            peer=_peer(link, links) if kind == "veth" else None,
            iommu_group_type=_iommu_group_type(sysfs, driver.bus_address if driver else ""),
            vlan_stripping=ethtool.receive_vlan_offloads(name) if kind is None else (),
            deferral=_deferral(sysfs),
        )

    def require_queue(self, queue: int) -> None:
        """Make sure that the interface has receive queue ``queue``, counted from 0.

        Raises:
            HostError: it has not.
        """
        if 0 <= queue < self.receive_queues:
            return
        count = self.receive_queues
        last = "only queue 0" if count == 1 else f"queues 0 to {count - 1}"
        message = f"interface {self.name} has no receive queue {queue}: it has {last}"
        if not 0 <= queue < self.most_queues:
            message += ", and its driver allows no more"
        raise HostError(message, self.queues_remedy(queue + 1))

    @property
    def most_queues(self) -> int:
        """How many receive queues it could have."""
        return max(self.receive_queues, self.channels.maximum_receive if self.channels else 0)

    def queues_remedy(self, count: int) -> str:
        """Say what to type for `count` receive queues."""
        if self.channels is None or not 0 < count <= self.most_queues:
            return f"ethtool -l {self.name}"
        return f"ethtool -L {self.name} {self.channels.setting} {count}"


def attached_programs(index: int) -> tuple[AttachedProgram, ...]:
    """The XDP programs that are attached to interface number ``index`` now."""
    return next((_programs(link) for link in netlink.links() if link["index"] == index), ())


def _unknown_interface(name: str, links: list[Any]) -> HostError:
    names = sorted(link.get_attr("IFLA_IFNAME") for link in links)
    close = difflib.get_close_matches(name, names, n=1)
    guess = f" (did you mean {close[0]}?)" if close else ""
    return HostError(
        f"there is no interface {name!r} in this network namespace{guess}; there are: {', '.join(names)}",
        "ip -brief link",
    )


def _kind(link: Any) -> str | None:
    information = link.get_attr("IFLA_LINKINFO")
    kind: str | None = information.get_attr("IFLA_INFO_KIND") if information else None
    return kind


def _own_sysfs_directory(link: Any) -> Path | None:
    """The interface's directory in sysfs, if sysfs shows the network namespace that we are in."""
    directory = _SYSFS_INTERFACES / str(link.get_attr("IFLA_IFNAME"))
    try:
        index = int((directory / "ifindex").read_text())
        mac = (directory / "address").read_text().strip()
    except (OSError, ValueError):
        return None
    same = index == link["index"] and mac == (link.get_attr("IFLA_ADDRESS") or "")
    return directory if same else None


def is_there(index: int) -> bool:
    """Whether the current network namespace has an interface of that number."""
    try:
        if_indextoname(index)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return False
    return True


def _deferral(directory: Path | None) -> InterruptDeferral | None:
    if directory is None:
        return None
    try:
        return InterruptDeferral(
            int((directory / "napi_defer_hard_irqs").read_text()),
            int((directory / "gro_flush_timeout").read_text()),
        )
    except (OSError, ValueError):
        return None


def _sysfs_queues(directory: Path | None, direction: str) -> int:
    return len(list(directory.glob(f"queues/{direction}-*"))) if directory else 0


def _programs(link: Any) -> tuple[AttachedProgram, ...]:
    xdp = link.get_attr("IFLA_XDP")
    if xdp is None:
        return ()
    found = ((mode, xdp.get_attr(attribute)) for mode, attribute in _XDP_MODES)
    return tuple(AttachedProgram(id=number, mode=mode) for mode, number in found if number)


def _above(index: int, links: list[Any]) -> frozenset[int]:
    """That interface and all whose frames pass through it in this namespace.

    A member of a bridge or bond names it as its master; a VLAN or macvlan names what it stands on
    as its link.
    """
    found = {index}
    while True:
        masters = {link.get_attr("IFLA_MASTER") for link in links if link["index"] in found}
        upper = {
            link["index"]
            for link in links
            if link.get_attr("IFLA_LINK") in found and link.get_attr("IFLA_LINK_NETNSID") is None
        }
        grown = found | upper | {master for master in masters if master}
        if grown == found:
            return frozenset(found)
        found = grown


def _peer(link: Any, links: list[Any]) -> Peer:
    index, namespace_id = link.get_attr("IFLA_LINK"), link.get_attr("IFLA_LINK_NETNSID")
    if namespace_id is None:
        other = next((entry for entry in links if entry["index"] == index), None)
        name = other.get_attr("IFLA_IFNAME") if other else None
        return _inspect_peer(name, "")
    other = netlink.link_in_namespace(index, namespace_id)
    name = other.get_attr("IFLA_IFNAME") if other else None
    namespace = netlink.namespace_name(namespace_id)
    unseen = Peer(name=name, namespace=namespace, transmit_queues=None, transmit_checksum_offload=None)
    if name is None or namespace is None:
        return unseen
    try:
        return netlink.in_namespace(netlink.namespace_path(namespace), lambda: _inspect_peer(name, namespace))
    except OSError:
        return unseen


def _inspect_peer(name: str | None, namespace: str) -> Peer:
    channels = ethtool.channels(name) if name else None
    return Peer(
        name=name,
        namespace=namespace,
        transmit_queues=channels.transmit if channels else None,
        transmit_checksum_offload=ethtool.transmit_checksum_offload(name) if name else None,
        transmit_vlan_offload=ethtool.transmit_vlan_offload(name) if name else None,
    )


def _iommu_group_type(sysfs: Path | None, bus_address: str) -> str | None:
    """How the IOMMU treats a device; a virtio device is judged by the PCI device it sits on."""
    starts = [sysfs / "device"] if sysfs else []
    if bus_address:
        starts.append(_SYSFS_PCI_DEVICES / bus_address)
    for start in starts:
        device = start.resolve()
        for directory in (device, *device.parents):
            try:
                return (directory / "iommu_group" / "type").read_text().strip()
            except OSError:
                continue
    return None
