"""What a real NIC's driver says of its steering and lets us change, beside ethtool and with frames.

QEMU's igb is an 82576: it has RSS, and its driver lists flow rules but takes none.
"""

from __future__ import annotations

import random
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestwire.errors import HostError
from guestwire.host import flow_rules
from guestwire.host.flow_steering import FlowSteering
from guestwire.host.interface import Interface
from guestwire.host.steering import Steering
from guestwire.host.xdp_program import XdpProgram
from lab.inside.peer import peer_socket
from lab.machine import NIC, NIC_ADDRESS, PEER_ADDRESS

QUEUES = 4
FLOWS = 64
# RSS adds up words of its key, which is a random one, for the bits in which addresses differ. A few bits may
# add up to half of the table and no more: these addresses (RFC 2544) differ in seventeen.
SOURCES = [0xC6120000 + low for low in random.Random(2010).sample(range(1 << 17), FLOWS)]
GUEST = "52:54:00:00:00:09"
IPV4, ARP = 0x0800, 0x0806


def ethtool(*arguments: str) -> str:
    return subprocess.run(["ethtool", *arguments], check=True, capture_output=True, text=True).stdout


def printed_table() -> list[int]:
    rows = re.findall(r"^\s+\d+:((?:\s+\d+)+)$", ethtool("-x", NIC), re.MULTILINE)
    return [int(queue) for row in rows for queue in row.split()]


def received() -> list[int]:
    counters = dict(re.findall(r"^\s+rx_queue_(\d+)_packets: (\d+)$", ethtool("-S", NIC), re.MULTILINE))
    return [int(counters[str(queue)]) for queue in range(QUEUES)]


def frame(ethertype: int, flow: int) -> bytes:
    addresses = bytes.fromhex((NIC_ADDRESS + PEER_ADDRESS).replace(":", ""))
    # An IPv4 header with the next protocol UDP, to 192.0.2.2.
    header = (
        bytes.fromhex("4500002e0000000040110000") + SOURCES[flow].to_bytes(4, "big") + bytes([192, 0, 2, 2])
    )
    payload = header if ethertype == IPV4 else b""
    return (addresses + ethertype.to_bytes(2, "big") + payload).ljust(60, b"\0")


def arrivals(ethertype: int) -> list[int]:
    """Send a frame of each flow from the peer, and count on which queues they arrive."""
    before = received()
    with peer_socket(ethertype) as peer:
        for flow in range(FLOWS):
            peer.send(frame(ethertype, flow))
    deadline = time.monotonic() + 30
    while sum(now := received()) < sum(before) + FLOWS:
        assert time.monotonic() < deadline, f"{sum(now) - sum(before)} of {FLOWS} frames arrived"
        time.sleep(0.05)
    return [after - first for after, first in zip(now, before, strict=True)]


def read() -> Steering:
    return Steering.read(Interface.open(NIC))


def set_queues(count: int) -> None:
    ethtool("-L", NIC, "combined", str(count))
    wait_for_carrier()


def wait_for_carrier() -> None:
    """Wait until the NIC is there again after a reset, as most changes are one."""
    deadline = time.monotonic() + 30
    while Path(f"/sys/class/net/{NIC}/carrier").read_text() != "1\n":
        assert time.monotonic() < deadline, "no carrier"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def several_queues() -> Iterator[None]:
    """Several queues for the interface, for a while."""
    set_queues(QUEUES)
    try:
        yield
    finally:
        ethtool("-X", NIC, "default")
        set_queues(1)


@pytest.fixture
def queues(several_queues: None) -> None:
    """All of them, and frames spread over all of them."""
    ethtool("-X", NIC, "default")
    if Interface.open(NIC).receive_queues != QUEUES:
        set_queues(QUEUES)


def test_one_queue() -> None:
    steering = read()
    assert steering.receive_queues == 1
    assert steering.why_shared(range(1)) is None
    assert steering.receives_all(range(1))


def test_an_address_of_this_host() -> None:
    subprocess.run(["ip", "address", "add", "192.0.2.2/24", "dev", NIC], check=True)
    try:
        assert read().why_shared(range(1)) == f"this host uses {NIC} itself: address 192.0.2.2/24"
        # The address may be what this very machine is reached by: nobody is told to delete it.
        assert (
            read()
            .remedy(range(1))
            .startswith("an interface that this host does not use itself: ip -brief address")
        )
    finally:
        subprocess.run(["ip", "address", "flush", "dev", NIC], check=True)
    assert read().why_shared(range(1)) is None


def test_the_table_is_what_ethtool_prints(queues: None) -> None:
    assert flow_rules.indirection_table(NIC) == tuple(printed_table())
    ethtool("-X", NIC, "weight", "1", "0", "2", "1")
    table = flow_rules.indirection_table(NIC)
    assert table == tuple(printed_table())
    assert set(table) == {0, 2, 3}
    changed = [(slot * slot) % 3 for slot in range(len(table))]
    flow_rules.set_indirection_table(NIC, changed)
    assert printed_table() == changed
    flow_rules.set_indirection_table(NIC, [])
    assert printed_table() == [slot % QUEUES for slot in range(len(table))]


def test_what_may_be_spread_over_all_queues_is_shared(queues: None) -> None:
    steering = read()
    assert steering.why_shared(range(QUEUES)) is None
    why = steering.why_shared(range(2, 3))
    assert why == f"RSS spreads the frames of {NIC} over queues 0 to 3, and only queue 2 is the guest's"
    assert steering.virtual_functions == 7
    assert f"echo 1 > /sys/class/net/{NIC}/device/sriov_numvfs" in steering.remedy(range(2, 3))
    assert all(arrivals(IPV4)), "frames arrive on every queue"


def test_no_frame_reaches_a_queue_that_is_called_exclusive(queues: None) -> None:
    command = read().remedy(range(2, 3)).partition(" && ")[0].split()
    assert command == ["ethtool", "-X", NIC, "weight", "1", "1", "0", "1"]
    ethtool(*command[1:])
    assert read().why_shared(range(2, 3)) is None
    landed = arrivals(IPV4)
    assert landed[2] == 0
    assert all(count for queue, count in enumerate(landed) if queue != 2), landed


def test_what_resets_the_nic_does_not_share_a_queue(queues: None) -> None:
    ethtool("-X", NIC, "equal", "2")
    interface = Interface.open(NIC)
    program = XdpProgram.attach(interface.index, QUEUES)
    try:
        wait_for_carrier()
        assert read().why_shared(range(2, 4)) is None
        assert arrivals(IPV4)[2:] == [0, 0]
    finally:
        program.close()
    for state in ("down", "up"):
        subprocess.run(["ip", "link", "set", NIC, state], check=True)
    wait_for_carrier()
    assert read().why_shared(range(2, 4)) is None
    assert arrivals(IPV4)[2:] == [0, 0]


def test_frames_without_a_hash_land_on_queue_0_whatever_the_table_says(queues: None) -> None:
    flow_rules.set_indirection_table(NIC, [1, 2] * 64)
    assert arrivals(IPV4)[0] == 0
    assert arrivals(ARP) == [FLOWS, 0, 0, 0]
    why = read().why_shared(range(1))
    assert why is not None
    assert "land on queue 0" in why


def test_a_rule_that_the_driver_refuses_leaves_no_trace(queues: None) -> None:
    assert flow_rules.flow_rules(NIC) == ()
    with pytest.raises(OSError, match="not supported"):
        flow_rules.insert_mac_rule(NIC, GUEST, 2)
    with pytest.raises(HostError, match=f"did not add a flow rule that leads {GUEST} to queue 2") as caught:
        FlowSteering(Interface.open(NIC), range(2, 3), GUEST)
    assert caught.value.remedy is not None
    assert caught.value.remedy.startswith(f"ethtool -L {NIC} combined 1, which gives the guest the whole")
    assert printed_table() == [slot % QUEUES for slot in range(128)]
    # Linux refuses this while a table that somebody has set names queue 2 or 3.
    ethtool("-L", NIC, "combined", "2")


def test_the_table_is_ours_while_a_rule_stands(queues: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a driver that takes rules; here that part is made up, and the table is real."""
    rules: dict[int, flow_rules.FlowRule] = {}

    def insert(name: str, mac: str, queue: int) -> flow_rules.FlowRule:
        rules[15] = flow_rules.FlowRule(15, mac, frozenset({queue}))
        return rules[15]

    monkeypatch.setattr(flow_rules, "insert_mac_rule", insert)
    monkeypatch.setattr(flow_rules, "flow_rules", lambda name: tuple(rules.values()))
    monkeypatch.setattr(flow_rules, "flow_rule", lambda name, location: rules.get(location))
    monkeypatch.setattr(flow_rules, "delete_rule", lambda name, location: rules.pop(location))
    ethtool("-X", NIC, "weight", "2", "1", "4", "1")
    before = printed_table()
    with FlowSteering(Interface.open(NIC), range(2, 3), GUEST):
        assert set(printed_table()) == {0, 1, 3}
        assert arrivals(IPV4)[2] == 0
    assert printed_table() == before
    assert rules == {}
