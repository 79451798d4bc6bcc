"""Checks of one network interface, as the other end of an ``xdp`` port."""

from __future__ import annotations

from collections.abc import Iterator

from guestwire.errors import HostError
from guestwire.host.af_xdp_probe import LARGEST_ZERO_COPY_MTU, AfXdpProbe
from guestwire.host.checks.busy_polling import check_busy_polling, probed_polling
from guestwire.host.checks.check import Check, Status
from guestwire.host.interface import Interface
from guestwire.host.steering import Steering, queue_names
from guestwire.host.xdp_occupation import occupied_error
from guestwire.host.xdp_program import peer_queues_remedy

_GENERIC_MODE = "the program runs in generic mode: slower, and large frames of software senders are lost"
_XEN = "vif"  # xen-netfront: like a veth, but the other end is in another domain


def interface_checks(
    interface: Interface,
    queue: int,
    largest_mtu: int,
    probe: AfXdpProbe | None,
    steering: Steering | None,
    queue_pairs: int = 1,
) -> Iterator[Check]:
    """All checks of one interface.

    Args:
        interface: which one.
        queue: the first receive queue that is meant for a guest.
        largest_mtu: the largest MTU that a port accepts in any mode, in bytes.
        probe: what binding to that queue showed; ``None`` if it was not tried.
        steering: how frames reach its queues; ``None`` if that could not be read.
        queue_pairs: how many queues are meant for the guest.
    """
    yield check_link(interface)
    yield check_default_route(interface)
    yield check_queue(interface, queue)
    yield check_steering(interface.name, steering, range(queue, queue + queue_pairs))
    yield check_mtu(interface, largest_mtu)
    yield check_xdp_program(interface)
    yield check_native_xdp(interface)
    yield check_af_xdp_modes(interface, probe)
    yield check_iommu(interface)
    yield check_checksum(interface)
    yield check_vlan(interface)
    yield check_busy_polling(interface, probed_polling(probe), asked=False)


def check_link(interface: Interface) -> Check:
    """Whether frames can come and go at all."""
    what = interface.driver or interface.kind or "unknown driver"
    found = f"{interface.name} ({what}, {interface.mac or 'no address'})"
    if not interface.ethernet:
        return Check(
            "link",
            Status.PROBLEM,
            found,
            "its frames have no Ethernet header, which a guest's network device expects",
            "use an Ethernet interface: ip -brief link",
        )
    if not interface.up:
        return Check(
            "link",
            Status.WARNING,
            f"{found} is down",
            "no frame passes",
            f"ip link set dev {interface.name} up",
        )
    if not interface.carrier:
        return Check(
            "link",
            Status.WARNING,
            f"{found} is up, without carrier",
            "no frame passes until the other end is up",
            f"ip link show dev {interface.name}",
        )
    return Check("link", Status.OK, f"{found} is up", "frames can pass")


def check_default_route(interface: Interface) -> Check:
    """Whether giving the interface to a guest would cut the host off."""
    if interface.carries_default_route:
        return Check(
            "default-route",
            Status.PROBLEM,
            f"{interface.name} carries the default route of this network namespace",
            "a guest that takes it would cut this host off",
            "use another interface: ip -brief link",
        )
    return Check("default-route", Status.OK, "does not pass here", "this host stays reachable without it")


def check_queue(interface: Interface, queue: int) -> Check:
    """Whether the interface has the queue that is meant for a guest."""
    try:
        interface.require_queue(queue)
    except HostError as error:
        return Check("queue", Status.PROBLEM, str(error), "it cannot be bound", error.remedy)
    found = f"queue {queue} of {interface.receive_queues} receive"
    return Check("queue", Status.OK, f"{found}, {interface.transmit_queues} transmit", "it can be bound")


def check_steering(name: str, steering: Steering | None, queues: range) -> Check:
    """Whether the frames that reach a guest's queues are all the guest's.

    Args:
        name: the interface.
        steering: how frames reach its queues; ``None`` if that could not be read.
        queues: those that are meant for the guest.
    """
    check, guest = "steering", queue_names(queues)
    if steering is None:
        return Check(
            check,
            Status.WARNING,
            "the driver does not say what flow rules it has",
            f"whose frames reach {guest} is not known, so mode zero-copy is refused there",
            f"ethtool -n {name}",
        )
    if why := steering.why_shared(queues):
        return Check(
            check,
            Status.WARNING,
            why,
            "a frame for somebody else would lie in the guest's memory, so mode zero-copy is refused there",
            steering.remedy(queues),
        )
    if steering.receives_all(queues):
        return Check(check, Status.OK, f"all frames go to {guest}", "it gets every frame")
    if rules := steering.rules_to(queues):
        found = ", ".join(f"{rule.location}" + (f" ({rule.mac})" if rule.mac else "") for rule in rules)
        return Check(
            check, Status.OK, f"only flow rules lead to {guest}: {found}", "the guest gets their frames alone"
        )
    return Check(
        check,
        Status.WARNING,
        f"nothing leads to {guest}: neither RSS nor a flow rule",
        "no frame reaches the guest",
        steering.remedy(queues),
    )


def check_mtu(interface: Interface, largest_mtu: int) -> Check:
    """Whether frames can be received, and whether each fits in one AF_XDP chunk."""
    found = str(interface.mtu)
    if interface.mtu > largest_mtu:
        return Check(
            "mtu",
            Status.PROBLEM,
            found,
            "frames of that length cannot be received",
            f"ip link set dev {interface.name} mtu {largest_mtu}",
        )
    if interface.mtu > LARGEST_ZERO_COPY_MTU:
        return Check(
            "mtu",
            Status.WARNING,
            found,
            "frames are too long for mode zero-copy; the longest go over several buffers",
            f"ip link set dev {interface.name} mtu {LARGEST_ZERO_COPY_MTU}",
        )
    return Check("mtu", Status.OK, found, "a frame fits in one AF_XDP chunk")


def check_xdp_program(interface: Interface) -> Check:
    """Whether the place for an XDP program is free."""
    if not interface.programs:
        return Check("xdp-program", Status.OK, "none attached", "the place is free")
    error = occupied_error(interface.name, interface.programs)
    return Check("xdp-program", Status.PROBLEM, str(error), "the place is taken", error.remedy)


def check_native_xdp(interface: Interface) -> Check:
    """Whether the XDP program runs in the driver; otherwise it runs in generic mode."""
    name = "native-xdp"
    if interface.xdp is None:
        return Check(
            name,
            Status.WARNING,
            "the kernel does not say (before 6.3)",
            "it shows when a port is attached; generic mode is the fall-back",
        )
    if not interface.xdp.native:
        return Check(
            name,
            Status.WARNING,
            f"driver {interface.driver or 'unknown'} announces none",
            f"{_GENERIC_MODE}, and without zero copy",
        )
    if refused := _peer_queues(interface):
        return Check(
            name,
            Status.WARNING,
            f"refused: {refused}",
            _GENERIC_MODE,
            peer_queues_remedy(interface),
        )
    found = ", ".join(interface.xdp.names)
    if interface.xdp.zero_copy:
        found += f"; xdp-zc-max-segs {interface.xdp.zero_copy_segments}"
    return Check(name, Status.OK, found, "the program runs in the driver")


def generic_reason(interface: Interface) -> str:
    """Say why the XDP program will run in generic mode; empty if it will not, or that cannot be known yet."""
    if interface.xdp is None:
        return ""
    if not interface.xdp.native:
        return f"driver {interface.driver or 'unknown'} announces none"
    return _peer_queues(interface)


def _peer_queues(interface: Interface) -> str:
    """Say that a veth receives on too few queues for native XDP; empty if it does not."""
    peer = interface.peer
    if peer is None or not peer.transmit_queues or peer.transmit_queues <= interface.receive_queues:
        return ""
    return (
        f"peer {peer.name} sends on {peer.transmit_queues} queues, {interface.name} receives on "
        f"{interface.receive_queues}"
    )


def check_af_xdp_modes(interface: Interface, probe: AfXdpProbe | None) -> Check:
    """Which modes a port on this interface can have."""
    name = "af-xdp-modes"
    if probe is None:
        return _announced_modes(interface)
    if not probe.copy.available:
        return Check(
            name,
            Status.PROBLEM,
            f"queue {probe.queue} cannot be bound: {probe.copy.reason}",
            "no mode is to be had",
            "ss --xdp -p, which shows who holds AF_XDP sockets",
        )
    if not probe.zero_copy.available:
        return Check(
            name,
            Status.WARNING,
            f"direct, bounce; not zero-copy: {probe.zero_copy.reason}",
            "the kernel copies each frame once, in mode direct into the guest's own buffer",
        )
    return Check(
        name,
        Status.OK,
        f"zero-copy, direct, bounce (bound to queue {probe.queue} to see)",
        "the NIC can write into the guest's own buffers",
    )


def _announced_modes(interface: Interface) -> Check:
    name, not_tried = "af-xdp-modes", "announced by the driver, not tried"
    if interface.xdp is None:
        return Check(
            name,
            Status.WARNING,
            "direct, bounce; of zero-copy the kernel does not say (before 6.3)",
            "it shows when a port is attached",
        )
    if interface.xdp.zero_copy:
        return Check(
            name,
            Status.OK,
            f"zero-copy, direct, bounce ({not_tried})",
            "the NIC can write into the guest's own buffers, if the bind succeeds",
        )
    return Check(
        name,
        Status.WARNING,
        f"direct, bounce ({not_tried})",
        "the kernel copies each frame once, in mode direct into the guest's own buffer",
    )


def check_iommu(interface: Interface) -> Check:
    """Whether huge pages stay contiguous for the device."""
    if interface.iommu_group_type is None:
        return Check("iommu", Status.OK, "none in the way", "huge pages stay contiguous")
    found = f"group type {interface.iommu_group_type}"
    if interface.iommu_group_type == "identity":
        return Check("iommu", Status.OK, found, "huge pages stay contiguous for the device")
    return Check(
        "iommu",
        Status.WARNING,
        found,
        "the IOMMU maps page by page, which scatters even huge pages, so mode zero-copy is not used",
        "boot with iommu.passthrough=1",
    )


def hands_over_unfinished_checksums(interface: Interface, generic: bool) -> bool:
    """Whether received frames may have a TCP, UDP or SCTP checksum that nobody has computed yet.

    So it is wherever software is at the other end: it leaves the checksum to a receiver that will never look
    at it. What a peer's settings are now does not count, they may change at any time.

    Args:
        interface: which one.
        generic: whether the XDP program runs in generic mode, so that it sees frames of this host, too.
    """
    return generic or interface.kind is not None or interface.driver == _XEN


def check_checksum(interface: Interface) -> Check:
    """Whether frames arrive with their checksums computed; where they do not, guestwire sees to it."""
    name, peer = "checksum", interface.peer
    seen_to = "guestwire computes them or tells the guest"
    if not hands_over_unfinished_checksums(interface, bool(generic_reason(interface))):
        return Check(name, Status.OK, "computed before frames arrive", "the guest accepts them")
    if peer is None:
        return Check(name, Status.OK, "frames from software may come without", seen_to)
    if peer.transmit_checksum_offload is False:
        return Check(name, Status.OK, f"peer {peer.name} computes checksums", "the guest accepts its frames")
    if peer.transmit_checksum_offload is None:
        found = "the other end of the veth pair is not visible: it may leave checksums to its receiver"
    else:
        found = f"peer {peer.name} leaves checksums to its receiver"
    return Check(
        name,
        Status.WARNING,
        found,
        f"{seen_to}; inside a tunnel (VXLAN, Geneve, GRE) it does not see them: the guest drops such frames",
        peer.command("ethtool -K {name} tx off"),
    )


def check_vlan(interface: Interface) -> Check:
    """Whether received frames have their VLAN tags in them.

    A NIC may take them out, and software leaves them beside the frame for the NIC that it believes to be at
    the other end; AF_XDP has no place to say that one is there.
    """
    name, lost = (
        "vlan",
        "a frame of a VLAN reaches the guest as if it had none, since AF_XDP has no place for a tag",
    )
    if interface.vlan_stripping:
        words = " ".join(f"{word} off" for word in interface.vlan_stripping)
        found = "the NIC takes the tags out of received frames"
        return Check(name, Status.WARNING, found, lost, f"ethtool -K {interface.name} {words}")
    peer = interface.peer
    if interface.kind is None or (peer is not None and peer.transmit_vlan_offload is False):
        return Check(name, Status.OK, "tags stay in the frames", "guests can use VLANs")
    if peer is None:
        return Check(
            name,
            Status.WARNING,
            f"{interface.name} is software ({interface.kind}): whether tags are in its frames is not known",
            f"where its senders leave them beside, {lost}",
            "ethtool -K SENDER txvlan off tx-vlan-stag-hw-insert off, for each interface that sends to it",
        )
    if peer.transmit_vlan_offload:
        found = f"peer {peer.name} leaves tags beside its frames"
    else:
        found = "the other end of the veth pair is not visible: it may leave tags beside its frames"
    # Offloads of this end change nothing: a tag that is beside the frame is not put into it.
    remedy = "ethtool -K {name} txvlan off tx-vlan-stag-hw-insert off"
    return Check(name, Status.WARNING, found, lost, peer.command(remedy))
