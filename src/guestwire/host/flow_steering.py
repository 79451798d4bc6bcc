"""Keeping receive queues of a NIC that others use as well to one guest."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import logging
import os
import re
import threading
from collections.abc import Iterator
from socket import if_indextoname
from types import TracebackType
from typing import Self

from guestwire.errors import ConfigurationError, HostError
from guestwire.host import ethtool, flow_rules
from guestwire.host.flow_rules import FlowRule
from guestwire.host.interface import Interface
from guestwire.host.privileges import Capability, permission_error
from guestwire.host.steering import FLOW_RULES_FEATURE, UNHASHED_QUEUE, Steering, queue_names

log = logging.getLogger(__name__)

_changing = threading.Lock()  # a table is read, changed and written back: one at a time


class FlowSteering:
    """Makes receive queues exclusive to the guest with one MAC address, until it is closed.

    It takes the queues out of the RSS indirection table and leads frames to that address to the
    first of them by a flow rule.  Broadcast and multicast frames stay with the host: a guest that
    needs them (to be found by ARP) needs a VF, or an interface of its own.

    Several may be at work on one interface, in several processes, and be closed in any order: each
    changes only the entries of the table that name its own queues, and changes only those back that
    still are as it left them.  So no table ever names another guest's queue, but if the first to
    come is the first to go, some entries of its queue stay with a queue of the others.

    A process that is killed leaves its rule and its table behind: the queues stay exclusive.  The
    next one finds them so, uses them, and leaves them as it found them.

    Close it only when the NIC has let go of the guest's memory: from then on frames for others land
    on the queues again.

    Args:
        interface: which one.
        queues: the guest's receive queues, counted from 0.
        mac: the guest's address, such as ``02:00:00:00:00:01``.

    Raises:
        ConfigurationError: that is no unicast address.
        HostError: the interface has no queue to spare, its driver refuses, or the queues would be
            shared nevertheless.  Nothing is changed then.
    """

    def __init__(self, interface: Interface, queues: range, mac: str) -> None:
        self.interface, self.queues, self.mac = interface, queues, _unicast(mac)
        self._replaced: dict[int, tuple[int, int]] = {}
        self._rule: FlowRule | None = None
        with _changing:
            steering = Steering.read(interface)
            _require_possible(interface, steering, queues, self.mac)
            try:
                self._empty_table(steering)
                self._insert_rule(steering)
                self._verify()
            except BaseException:
                self._undo()
                raise

    @property
    def rule(self) -> FlowRule | None:
        """The flow rule that was made here, if one was."""
        return self._rule

    def close(self) -> None:
        """Undo what was changed; what cannot be undone is logged.  May be called again."""
        with _changing:
            self._undo()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _undo(self) -> None:
        rule, self._rule = self._rule, None
        replaced, self._replaced = self._replaced, {}
        try:
            # Another interface may have the name now.
            name = if_indextoname(self.interface.index)
        except OSError as error:
            if error.errno != errno.ENXIO:
                log.warning("%s: steering could not be undone: %s", self.interface.name, error)
            return
        with self._logging_failure(f"ethtool -n {name} rule {rule.location if rule else 0}"):
            if rule and flow_rules.flow_rule(name, rule.location) == rule:
                flow_rules.delete_rule(name, rule.location)
        with self._logging_failure(f"ethtool -x {name}"):
            if replaced:
                self._restore_table(name, replaced)

    def _empty_table(self, steering: Steering) -> None:
        """Take the queues out of the indirection table; other entries stay as they are."""
        table = steering.indirection_table
        assert table is not None
        others = sorted(frozenset(table) - frozenset(self.queues)) or [UNHASHED_QUEUE]
        places = (slot for slot, queue in enumerate(table) if queue in self.queues)
        replaced = {slot: (table[slot], other) for slot, other in zip(places, itertools.cycle(others))}
        if not replaced:
            return
        changed = [replaced[slot][1] if slot in replaced else queue for slot, queue in enumerate(table)]
        with _explaining(
            steering, self.queues, self.mac, f"take {queue_names(self.queues)} out of the RSS table"
        ):
            flow_rules.set_indirection_table(self.interface.name, changed)
        self._replaced = replaced

    def _restore_table(self, name: str, replaced: dict[int, tuple[int, int]]) -> None:
        present = flow_rules.indirection_table(name)
        if present is None:
            raise OSError(errno.EIO, "the RSS table cannot be read")
        table = list(present)
        for slot, (before, after) in replaced.items():
            if slot < len(table) and table[slot] == after:
                table[slot] = before
        # The default is not told apart from a table that was set like it; but only what is set as
        # the default lets the number of queues be changed (ethtool -L) as before.
        flow_rules.set_indirection_table(name, [] if self._favours_none(table) else table)

    def _favours_none(self, table: list[int]) -> bool:
        """Whether a table names all queues, and each as often as the others."""
        times = [table.count(queue) for queue in range(self.interface.receive_queues)]
        return min(times) > 0 and max(times) - min(times) <= 1

    def _insert_rule(self, steering: Steering) -> None:
        if any(rule.mac == self.mac for rule in steering.rules or ()):
            return
        queue = self.queues.start
        action = f"add a flow rule that leads {self.mac} to queue {queue}"
        with _explaining(steering, self.queues, self.mac, action):
            self._rule = flow_rules.insert_mac_rule(self.interface.name, self.mac, queue)

    def _verify(self) -> None:
        steering = Steering.read(self.interface)
        if why := steering.why_shared(self.queues):
            raise HostError(
                f"interface {self.interface.name}: {queue_names(self.queues)} cannot be kept "
                f"to one guest: {why}",
                steering.remedy(self.queues, self.mac),
            )

    @contextlib.contextmanager
    def _logging_failure(self, remedy: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno != errno.ENODEV:
                log.warning("%s: steering could not be undone: %s; %s", self.interface.name, error, remedy)


def _unicast(mac: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", mac, re.IGNORECASE) or int(mac[:2], 16) & 1:
        raise ConfigurationError(
            f"{mac!r} is not the address of one network device", "use one such as 52:54:00:12:34:56"
        )
    return mac.lower()


def require_steerable(
    interface: Interface, queues: range, mac: str, present: FlowSteering | None = None
) -> None:
    """Make sure, while nobody's frames are led elsewhere, that `FlowSteering` will not be refused.

    Args:
        interface: which one.
        queues: the guest's receive queues.
        mac: the guest's address.
        present: one that is closed before, if any.

    Raises:
        GuestwireError: it would be.
    """
    mac, steering = _unicast(mac), Steering.read(interface)
    _require_possible(interface, steering, queues, mac, present)
    if any(rule.mac == mac for rule in steering.rules or ()):
        return
    # Whether the driver takes rules at all shows when it gets one: it is for an address that nobody has.
    nobody = bytes([0x02, *os.urandom(5)]).hex(":")
    with _explaining(steering, queues, mac, f"add a flow rule that leads {mac} to queue {queues.start}"):
        rule = flow_rules.insert_mac_rule(interface.name, nobody, queues.start)
        flow_rules.delete_rule(interface.name, rule.location)


@contextlib.contextmanager
def _explaining(steering: Steering, queues: range, mac: str, action: str) -> Iterator[None]:
    name = steering.interface
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPERM:
            raise permission_error(f"steering interface {name}", {Capability.CAP_NET_ADMIN}) from error
        remedy = f"ethtool -n {name}; dmesg | tail"
        if error.errno == errno.EOPNOTSUPP:
            remedy = _other_remedy(steering, queues, mac)
        raise HostError(f"interface {name}: its driver did not {action}: {error.strerror}", remedy) from error


def _other_remedy(steering: Steering, queues: range, mac: str) -> str:
    """What to do about a driver that shows its flow rules and takes none."""
    feature = ethtool.feature(steering.interface, FLOW_RULES_FEATURE)
    if feature and feature.changeable and not feature.active:
        return f"ethtool -K {steering.interface} ntuple on"
    return dataclasses.replace(steering, rules=None).remedy(queues, mac)


def _require_possible(
    interface: Interface, steering: Steering, queues: range, mac: str, present: FlowSteering | None = None
) -> None:
    name, remedy = interface.name, steering.remedy(queues, mac)
    if steering.indirection_table is None:
        raise HostError(f"interface {name} cannot be steered: its driver shows no RSS table", remedy)
    if steering.rules is None:
        raise HostError(f"interface {name} cannot be steered: its driver has no flow rules", remedy)
    if UNHASHED_QUEUE in queues:
        raise HostError(
            f"interface {name}: queue {UNHASHED_QUEUE} cannot be kept to one guest: "
            "frames that RSS cannot hash, such as ARP, land there",
            f"use a queue from 1 on (,queue=1); ethtool -l {name} shows how many there can be",
        )
    for rule in steering.rules:
        if present is not None and rule == present.rule:
            continue
        if rule.mac == mac and not (rule.queues and rule.queues <= frozenset(queues)):
            where = queue_names(rule.queues) if rule.queues else "somewhere else"
            raise HostError(
                f"interface {name}: flow rule {rule.location} leads frames for {mac} to {where}",
                f"ethtool -n {name} shows it; if it is nobody's, ethtool -N {name} delete {rule.location}",
            )
