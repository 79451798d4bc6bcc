"""The wire that guests are put on."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from guestwire.testing import namespaces
from guestwire.testing.namespaces import Namespace
from guestwire.testing.wire import Wire

pytestmark = pytest.mark.root


@pytest.fixture
def wire():
    with Wire() as wire:
        yield wire


def interfaces():
    return {name for _, name in socket.if_nameindex()}


def test_frames_cross_with_complete_checksums(wire):
    with wire.near.netlink() as netlink:
        (index,) = netlink.link_lookup(ifname=wire.interface)
        netlink.addr("add", index=index, address=wire.guest_address, prefixlen=24)
    receiver = wire.near.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)))
    sender = wire.far.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with receiver, sender:
        receiver.settimeout(10)
        sender.sendto(b"payload", (wire.guest_address, 9))
        frame = receiver.recv(2048)
    udp = frame[14 + 20 :]
    assert udp.endswith(b"payload")
    pseudo_header = frame[14 + 12 : 14 + 20] + bytes((0, 17)) + len(udp).to_bytes(2, "big")
    data = pseudo_header + udp + bytes(len(udp) % 2)
    words = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
    assert words % 0xFFFF == 0  # RFC 1071: the sum over data and checksum is (minus) zero


def test_wire_is_silent(wire):
    """No router solicitation, no duplicate address detection: an idle guest stays idle."""
    for namespace, interface in ((wire.near, wire.interface), (wire.far, wire.peer_interface)):
        path = f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"
        done = namespace.run(["cat", path])
        assert done.returncode != 0 or done.stdout.strip() == "1"


def test_nothing_outside_changes_and_nothing_stays(tmp_path):
    before = interfaces()
    with Wire(mtu=3000, queues=2) as wire:
        names = (wire.near.name, wire.far.name)
        assert wire.near.call(interfaces) == {"lo", wire.interface}
        assert wire.far.call(interfaces) == {"lo", wire.peer_interface}
        assert interfaces() == before
        queues = wire.near.run(["ls", f"/sys/class/net/{wire.interface}/queues"]).stdout.split()
        assert queues == ["rx-0", "rx-1", "tx-0", "tx-1"]
        mtu = wire.near.run(["cat", f"/sys/class/net/{wire.interface}/mtu"])
        assert mtu.stdout.strip() == "3000"
    assert not any((namespaces.FOLDER / name).exists() for name in names)


def test_error_inside_reaches_the_caller(wire):
    def fail():
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        wire.near.call(fail)


def test_namespace_of_a_killed_process_is_swept():
    dead = subprocess.Popen(["true"])
    dead.wait()
    stale = Path(namespaces.FOLDER, f"gw{dead.pid}-1-stale")
    with Namespace("alive") as alive:
        subprocess.run(["ip", "netns", "add", stale.name], check=True)
        with Namespace("second"):
            assert not stale.exists()
            assert (namespaces.FOLDER / alive.name).exists()
            assert str(os.getpid()) in alive.name


def test_processes_run_inside_and_log(wire, tmp_path):
    log = tmp_path / "log"
    process = wire.near.spawn(["ip", "-brief", "link"], log)
    assert process.wait(10) == 0
    assert wire.interface in log.read_text()
