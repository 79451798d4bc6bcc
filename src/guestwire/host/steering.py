"""Whose frames can reach a receive queue: one guest's alone, or others' as well.

A NIC in zero-copy mode writes a frame into the memory of the guest that owns the queue before
anybody has looked at the frame.  So the choice between guests, and between a guest and this host,
must be made before the queue, by the NIC.  A queue is *exclusive* to a guest if

- every frame that the NIC spreads goes to the guest's queues, and this host does not use the
  interface itself; or
- the NIC spreads no frames over the guest's queues: only flow rules lead there.

What is not seen: a macvlan or ipvlan that was moved to another network namespace, and rules that do
not come from ethtool (tc, RDMA).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from guestwire.errors import HostError
from guestwire.host import ethtool, flow_rules, netlink
from guestwire.host.flow_rules import FlowRule
from guestwire.host.interface import Interface

_SYSFS_PCI_DEVICES: Final = Path("/sys/bus/pci/devices")

UNHASHED_QUEUE: Final = 0
"""Where frames land that RSS cannot hash, such as ARP: on igb whatever the table says."""

FLOW_RULES_FEATURE: Final = "rx-ntuple-filter"
"""What ``ethtool -K`` calls ``ntuple``: some drivers take flow rules only while it is on."""

# These name each other as their link; neither stands on the other.
_PAIRED_KINDS: Final = frozenset({"veth", "netkit"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Steering:
    """How frames reach the receive queues of an interface, at one moment.

    Attributes:
        interface: its name.
        mac: its address.
        receive_queues: how many receive queues are in use.
        queue_setting: the word for ``ethtool -L`` that changes that: ``combined`` or ``rx``.
        indirection_table: the queue of each entry of the RSS indirection table; ``None`` if the
            driver does not show one.
        rules: its flow rules; ``None`` if its driver knows no such thing.
        sampling_remedy: the command that keeps the driver from putting a flow on the queue that
            its answers leave by, which the table does not show; ``None`` if it does not do that.
        addresses: IP addresses that this host has on it.
        upper_interfaces: interfaces of this host that stand on it: its bridge, bond, VLANs.
        virtual_functions: how many VFs its device can have.
    """

    interface: str
    mac: str | None
    receive_queues: int
    queue_setting: str
    indirection_table: tuple[int, ...] | None
    rules: tuple[FlowRule, ...] | None
    sampling_remedy: str | None
    addresses: tuple[str, ...]
    upper_interfaces: tuple[str, ...]
    virtual_functions: int

    @classmethod
    def read(cls, interface: Interface) -> Self:
        """Look at the steering of an interface of the current network namespace.

        Raises:
            HostError: it is gone, or its driver does not say what rules it has.
        """
        name = interface.name
        try:
            return cls(
                interface=name,
                mac=interface.mac,
                receive_queues=interface.receive_queues,
                queue_setting=interface.channels.setting if interface.channels else "combined",
                indirection_table=flow_rules.indirection_table(name),
                rules=flow_rules.flow_rules(name),
                sampling_remedy=_sampling_remedy(interface),
                addresses=netlink.addresses(interface.index),
                upper_interfaces=_upper_interfaces(interface.index, netlink.links()),
                virtual_functions=_virtual_functions(name),
            )
        except OSError as error:
            raise HostError(
                f"interface {name}: its steering could not be read: {error.strerror}", f"ethtool -n {name}"
            ) from error

    def why_shared(self, queues: range) -> str | None:
        """Say whose frames, other than one guest's, can land on queues; ``None`` if nobody's.

        Args:
            queues: the receive queues of one guest.
        """
        if self.receives_all(queues):
            return self._host_use()
        guest, spread = frozenset(queues), self._spread
        owner = f"and only {queue_names(guest)} {'is' if len(guest) == 1 else 'are'} the guest's"
        if self.indirection_table is None:
            return (
                f"the driver does not show how it spreads frames over {queue_names(spread)} of "
                f"{self.interface}, {owner}"
            )
        if spread & guest:
            return f"RSS spreads the frames of {self.interface} over {queue_names(spread)}, {owner}"
        if UNHASHED_QUEUE in guest:
            return f"frames that RSS cannot hash, such as ARP, land on queue {UNHASHED_QUEUE}"
        if self.sampling_remedy:
            return (
                f"the driver puts flows of this host on the queue that their answers leave by, and that may "
                f"be {queue_names(guest)}"
            )
        reasons = (self._why_rule_shares(rule, guest) for rule in self.rules or ())
        return next(filter(None, reasons), None)

    def receives_all(self, queues: range) -> bool:
        """Whether the NIC spreads frames over these queues only."""
        return self._spread <= frozenset(queues)

    def rules_to(self, queues: range) -> tuple[FlowRule, ...]:
        """The flow rules that lead to one of these queues."""
        return tuple(rule for rule in self.rules or () if rule.queues and rule.queues & frozenset(queues))

    def remedy(self, queues: range, mac: str = "MAC") -> str:
        """Say what to type to make queues exclusive, best first.

        Args:
            queues: the receive queues that are meant for one guest.
            mac: the guest's address, if it is known.
        """
        name = self.interface
        options = []
        if self.receives_all(queues) or self.indirection_table is None or self.rules is None:
            if self._host_use():
                options.append("an interface that this host does not use itself: ip -brief address")
            elif not self.receives_all(queues):
                options.append(
                    f"ethtool -L {name} {self.queue_setting} {len(queues)}, "
                    "which gives the guest the whole interface"
                )
        elif UNHASHED_QUEUE in queues:
            options.append(f"another queue: ,queue={self.receive_queues - len(queues)},steer={mac}")
        else:
            options.append(
                f"{self._spread_command(queues)} && "
                f"ethtool -N {name} flow-type ether dst {mac} action {queues.start} "
                f"(guestwire does both if the port says ,steer={mac})"
            )
            if self.sampling_remedy:
                options[-1] = f"{self.sampling_remedy} && {options[-1]}"
        if self.virtual_functions:
            options.append(f"a VF: echo 1 > /sys/class/net/{name}/device/sriov_numvfs")
        return ", or ".join(options) or f"another interface than {name}"

    @property
    def _spread(self) -> frozenset[int]:
        """The queues that frames without a flow rule are spread over."""
        if self.indirection_table is None:
            return frozenset(range(self.receive_queues))
        return frozenset(self.indirection_table)

    def _host_use(self) -> str | None:
        uses = [f"address {address}" for address in self.addresses]
        uses += [f"interface {upper} above it" for upper in self.upper_interfaces]
        return f"this host uses {self.interface} itself: {', '.join(uses)}" if uses else None

    def _why_rule_shares(self, rule: FlowRule, guest: frozenset[int]) -> str | None:
        name = f"flow rule {rule.location} of {self.interface}"
        if rule.queues is None:
            return f"{name} spreads frames over queues that the driver does not show"
        if not rule.queues & guest:
            return None
        if rule.queues - guest:
            return f"{name} spreads frames over {queue_names(rule.queues)}"
        if rule.mac and rule.mac == self.mac and (use := self._host_use()):
            return f"{name} leads frames for the interface's own address there, and {use}"
        return None

    def _spread_command(self, queues: range) -> str:
        """The command that spreads frames over all queues but these."""
        if queues.stop >= self.receive_queues:
            return f"ethtool -X {self.interface} equal {queues.start}"
        weights = " ".join("0" if queue in queues else "1" for queue in range(self.receive_queues))
        return f"ethtool -X {self.interface} weight {weights}"


def queue_names(queues: Collection[int]) -> str:
    """Name queues for a sentence: ``queue 2``, ``queues 0 to 3``, ``queues 0, 2``."""
    ordered = sorted(queues)
    if len(ordered) == 1:
        return f"queue {ordered[0]}"
    if ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"queues {ordered[0]} to {ordered[-1]}"
    return f"queues {', '.join(map(str, ordered))}"


def _sampling_remedy(interface: Interface) -> str | None:
    """The command that stops Intel's application targeted routing, if it is at work.

    The driver looks at TCP segments that it sends, and makes the NIC put the answers on the queue
    of the same number (``ixgbe_atr``, ``i40e_atr``).
    """
    name = interface.name
    if interface.driver == "ixgbe":
        rules = ethtool.feature(name, FLOW_RULES_FEATURE)
        return None if rules and rules.active else f"ethtool -K {name} ntuple on"
    if interface.driver == "i40e" and ethtool.private_flag_active(name, "flow-director-atr") is not False:
        return f"ethtool --set-priv-flags {name} flow-director-atr off"
    return None


def _upper_interfaces(index: int, links: list[Any]) -> tuple[str, ...]:
    """The bridge or bond that an interface belongs to, and VLANs and the like that stand on it."""
    masters = {link.get_attr("IFLA_MASTER") for link in links if link["index"] == index}
    return tuple(
        link.get_attr("IFLA_IFNAME")
        for link in links
        if link["index"] in masters
        or (
            link.get_attr("IFLA_LINK") == index
            and link["index"] != index
            and link.get_attr("IFLA_LINK_NETNSID") is None
            and link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") not in _PAIRED_KINDS
        )
    )


def _virtual_functions(name: str) -> int:
    driver = ethtool.driver(name)
    if driver is None or not driver.bus_address:
        return 0
    try:
        return int((_SYSFS_PCI_DEVICES / driver.bus_address / "sriov_totalvfs").read_text())
    except (OSError, ValueError):
        return 0
