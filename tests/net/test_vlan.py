"""VLAN tags that senders leave beside their frames, and frames with two tags, on every port."""

from __future__ import annotations

import contextlib
import json
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backend.process import Backend
from guestwire.host.tap import FLAGS, TUNSETIFF, QueueFlag, tap_request
from guestwire.testing import BufferLayout, FakeGuest, Wire
from guestwire.testing.namespaces import Namespace
from net.tags import C_TAG, S_TAG, tagging
from net.taps import ip

pytestmark = pytest.mark.root

ETHERTYPE = 0x88B5  # IEEE 802, for local experiments
ADDRESSES = bytes.fromhex("ffffffffffff020000000099")
PAYLOAD = ETHERTYPE.to_bytes(2, "big") + bytes(range(60))
FULL = bytes(index % 251 for index in range(1500))
NUMBER = 100


def tag(ethertype: int, number: int = NUMBER) -> bytes:
    return ethertype.to_bytes(2, "big") + number.to_bytes(2, "big")


def raw_socket(interface: str, ethertype: int = ETHERTYPE) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ethertype))
    made.bind((interface, ethertype))
    return made


def vlan_check(wire: Wire) -> dict[str, Any]:
    done = wire.near.run([sys.executable, "-m", "guestwire", "doctor", wire.interface, "--json"])
    (check,) = [check for check in json.loads(done.stdout)["checks"] if check["name"] == "vlan"]
    return dict(check)


@pytest.mark.parametrize("ethertype", [C_TAG, S_TAG], ids=["802.1Q", "802.1ad"])
def test_the_remedy_puts_tags_into_frames_and_nothing_else_does(tmp_path: Path, ethertype: int) -> None:
    with contextlib.ExitStack() as stack:
        wire = stack.enter_context(Wire(complete_frames=False))
        wire.far.call(lambda: stack.enter_context(tagging(wire.peer_interface, ethertype, NUMBER)))
        sender = stack.enter_context(wire.far.call(lambda: raw_socket(wire.peer_interface)))
        backend = stack.enter_context(Backend(tmp_path, f"xdp:{wire.interface}", namespace=wire.near.name))
        guest = stack.enter_context(FakeGuest(backend.socket))

        def received() -> bytes:
            guest.frontend.get_features()
            sender.send(ADDRESSES + PAYLOAD)
            frame = guest.pair.receive(timeout=10)
            assert frame is not None
            return bytes(frame.data)

        check = vlan_check(wire)
        assert check["status"] == "warning", check
        assert f"peer {wire.peer_interface} leaves tags beside its frames" in backend.text()
        assert check["remedy"] in backend.text()
        assert received() == ADDRESSES + PAYLOAD
        for end, namespace in ((wire.interface, wire.near), (wire.peer_interface, wire.far)):
            namespace.run(["ethtool", "-K", end, "rxvlan", "off", "rx-vlan-stag-hw-parse", "off"])
            assert received() == ADDRESSES + PAYLOAD
        subprocess.run(shlex.split(check["remedy"]), check=True)
        assert received() == ADDRESSES + tag(ethertype) + PAYLOAD
        assert vlan_check(wire)["status"] == "ok"


def test_wires_of_ours_have_their_tags_in_the_frames(tmp_path: Path) -> None:
    with Wire() as wire:
        assert vlan_check(wire)["status"] == "ok"
        with Backend(tmp_path, f"xdp:{wire.interface}", namespace=wire.near.name) as backend:
            assert "WARNING" not in backend.text()


# --- a payload of the MTU behind two tags: 1,522 bytes -------------------------------------------------

QINQ = ADDRESSES + tag(S_TAG) + tag(C_TAG) + ETHERTYPE.to_bytes(2, "big") + FULL
assert len(QINQ) == 1522
LINUX = BufferLayout(length=1536)  # mergeable


@pytest.mark.parametrize("mode", ["direct", "bounce"])
def test_two_tags_on_xdp(tmp_path: Path, mode: str) -> None:
    """A TAP interface lets them through at an MTU of 1,500; whoever has it open is the other end."""
    with (
        Namespace("qinq") as namespace,
        namespace.call(lambda: Path("/dev/net/tun").open("r+b", buffering=0)) as far,
    ):
        tap_request(far.fileno(), TUNSETIFF, "tap0", FLAGS.pack(QueueFlag.IFF_TAP | QueueFlag.IFF_NO_PI))
        ip(namespace, "link set tap0 up")
        with (
            Backend(tmp_path, f"xdp:tap0,mode={mode}", namespace=namespace.name) as backend,
            FakeGuest(backend.socket, receive_layout=LINUX) as guest,
        ):
            guest.frontend.get_features()
            far.write(QINQ)
            frame = guest.pair.receive(timeout=10)
            assert frame is not None
            assert bytes(frame.data) == QINQ
            guest.pair.send(QINQ)
            assert far.read(4096) == QINQ
            (received, sent) = (backend.guest()["counters"][way] for way in ("rx", "tx"))
            assert received["copied_frames"] == ({} if mode == "direct" else {"bounce_mode": 1})
            assert received["drops"] == sent["drops"] == {}


def test_two_tags_on_tap(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        namespace = stack.enter_context(Namespace("qinq"))
        backend = stack.enter_context(Backend(tmp_path, "tap:tap0", namespace=namespace.name))
        host = stack.enter_context(namespace.call(lambda: raw_socket("tap0", C_TAG)))
        guest = stack.enter_context(FakeGuest(backend.socket, receive_layout=LINUX))
        host.settimeout(10)
        guest.frontend.get_features()
        # The outer tag is beside the frame in the host's network stack.
        within = ADDRESSES + QINQ[16:]
        namespace.call(lambda: stack.enter_context(tagging("tap0", S_TAG, NUMBER)))
        host.send(within)
        frame = guest.pair.receive(timeout=10)
        assert frame is not None
        assert bytes(frame.data) == QINQ
        guest.pair.send(QINQ)
        data, address = host.recvfrom(4096)
        while address[2] == socket.PACKET_OUTGOING:
            data, address = host.recvfrom(4096)
        assert data == within


def test_two_tags_on_a_wire(tmp_path: Path) -> None:
    sockets = [tmp_path / "one.sock", tmp_path / "other.sock"]
    file = tmp_path / "guests.toml"
    file.write_text("\n".join(f'[[guest]]\nsocket_path = "{path}"\nport = "wire:lab"' for path in sockets))
    with (
        Backend(tmp_path, arguments=[str(file)], sockets=sockets),
        FakeGuest(sockets[0], receive_layout=LINUX) as one,
        FakeGuest(sockets[1], receive_layout=LINUX) as other,
    ):
        for sender, receiver in ((one, other), (other, one)):
            receiver.frontend.get_features()
            sender.pair.send(QINQ)
            frame = receiver.pair.receive(timeout=10)
            assert frame is not None
            assert bytes(frame.data) == QINQ
