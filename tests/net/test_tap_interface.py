"""The interface of a tap port: found, made, joined, followed, lost, and refused."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from backend.house import complaints, status
from backend.process import COMMAND, Backend, wait_until
from guestwire.host.announce import rarp_frame
from guestwire.host.tap import Offload
from guestwire.host.tap_opening import open_tap
from guestwire.testing import BufferLayout, FakeGuest, FrameStream, Wire
from guestwire.testing.driver import QueuePair
from guestwire.testing.frame_stream import ETHERTYPE
from guestwire.testing.namespaces import Namespace
from guestwire.vhost_user.constants import BackendRequest
from guestwire.virtio.features import Feature
from guestwire.virtio.net_config import NetConfig, NetStatus
from net.taps import (
    GUEST_ADDRESS,
    GUEST_MAC,
    HOST_ADDRESS,
    HOST_MAC,
    MERGEABLE,
    OFFLOADS,
    Header,
    HostEnd,
    ip,
    line,
    ready,
    require_finished,
    segmented,
)
from net.traffic import peer_socket, rebind

pytestmark = pytest.mark.root

CONFIGURATION, HOST = 2, 3  # exit statuses (docs/reference.md)
_, SMALL = segmented(UDP, 100, to_guest=True)
_, REPLY = segmented(UDP, 100, to_guest=False)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace("taps") as made:
        yield made


def link(namespace: Namespace, name: str = "tap0") -> Any:
    """What iproute2 says of an interface; None if there is none."""
    answer = namespace.run(["ip", "-json", "-details", "link", "show", name])
    return json.loads(answer.stdout)[0] if answer.returncode == 0 else None


def config(guest: FakeGuest) -> NetConfig:
    return NetConfig.decode(guest.frontend.get_config(0, 12))


def link_is_up(guest: FakeGuest) -> bool:
    return NetStatus.LINK_UP in config(guest).status


def passes(guest: FakeGuest, host: HostEnd) -> None:
    """Make sure that a frame passes each way."""
    ready(guest)
    host.send(Header(), SMALL)
    assert guest.pair.receive().data == SMALL
    guest.pair.send(REPLY)
    assert host.receive()[1] == REPLY


def refusal(namespace: Namespace, folder: Path, port: str, *arguments: str) -> tuple[int, str]:
    """What `guestwire run` says instead of serving: its exit status, and its words."""
    done = namespace.run(
        [*COMMAND, "run", "--socket-path", folder / "guest.sock", "--port", port, *arguments], timeout=20
    )
    return done.returncode, " ".join(done.stdout.split())


# --- made, found, joined -----------------------------------------------------------------------------------


def test_an_interface_that_is_made_goes_with_the_process(namespace: Namespace, tmp_path: Path) -> None:
    with Backend(tmp_path, "tap:tap0,mtu=4000", namespace=namespace.name):
        made = link(namespace)
        assert (made["mtu"], "UP" in made["flags"]) == (4000, True)
    assert link(namespace) is None


def test_an_interface_that_exists_is_left_as_it_is(namespace: Namespace, tmp_path: Path) -> None:
    ip(namespace, "tuntap add dev tap0 mode tap")
    before = link(namespace)
    with (
        Backend(tmp_path, "tap:tap0", namespace=namespace.name) as backend,
        contextlib.closing(HostEnd(namespace, "tap0")) as host,
        FakeGuest(backend.socket) as guest,
    ):
        said = "TAP interface tap0 is down; ip link set dev tap0 up"
        assert complaints(backend.text()) == [f"guestwire.ports.tap: {said}"]
        assert not link_is_up(guest)
        ip(namespace, "link set tap0 up")
        wait_until(lambda: link_is_up(guest))
        # The socket is told once that the interface was down when it was bound.
        with contextlib.suppress(OSError):
            host.receive()
        passes(guest, host)
    after = link(namespace)
    assert (after["address"], after["mtu"]) == (before["address"], before["mtu"])


def test_one_for_several_queues_serves_one_queue_pair(namespace: Namespace, tmp_path: Path) -> None:
    ip(namespace, "tuntap add dev tap0 mode tap multi_queue")
    ip(namespace, "link set tap0 up")
    with (
        Backend(tmp_path, "tap:tap0", namespace=namespace.name) as backend,
        contextlib.closing(HostEnd(namespace, "tap0")) as host,
    ):
        for _ in range(2):
            # While no guest is there, its queue is not: nothing is kept for the next one.
            with FakeGuest(backend.socket) as guest:
                passes(guest, host)
            host.send(Header(), segmented(UDP, 200, to_guest=True)[1])


def test_in_a_bridge_of_large_frames(namespace: Namespace, tmp_path: Path) -> None:
    ip(namespace, "link add br0 mtu 9000 type bridge")
    ip(namespace, "link set br0 up")
    folders = [tmp_path / name for name in ("one", "two")]
    with contextlib.ExitStack() as stack:
        guests = []
        for number, folder in enumerate(folders):
            folder.mkdir()
            port = f"tap:tap{number},bridge=br0"
            backend = stack.enter_context(Backend(folder, port, namespace=namespace.name))
            assert (link(namespace, f"tap{number}")["master"], link(namespace, f"tap{number}")["mtu"]) == (
                "br0",
                9000,
            )
            guests.append(stack.enter_context(FakeGuest(backend.socket)))
            ready(guests[-1])
            assert config(guests[-1]).mtu == 9000
        assert link(namespace, "br0")["mtu"] == 9000
        wait_until(lambda: link(namespace, "br0")["operstate"] == "UP")
        for one, other in (guests, guests[::-1]):
            one.pair.send(REPLY)
            # The bridge itself may have something to say before.
            while other.pair.receive().data != REPLY:
                pass


def test_segments_leave_a_bridge_where_nobody_takes_large_frames(
    namespace: Namespace, tmp_path: Path
) -> None:
    ip(namespace, "link add br0 type bridge")
    ip(namespace, "link set br0 up")
    header, frame = segmented(TCP, 10 * 1448, to_guest=False)
    layout = BufferLayout(length=65600)
    with (
        Backend(tmp_path, "tap:tap0,bridge=br0", namespace=namespace.name) as backend,
        FakeGuest(backend.socket, features=MERGEABLE | OFFLOADS, transmit_layout=layout) as guest,
        contextlib.closing(namespace.call(lambda: open_tap("tap1", 1))) as other,
    ):
        other.set_header_size(12)
        other.set_offloads(Offload(0))
        other.join("br0")
        other.set_up()
        wait_until(lambda: link(namespace, "br0")["operstate"] == "UP")
        guest.pair.send(frame, header=header.encode(12))
        segments: list[bytes] = []

        def all_arrive() -> bool:
            with contextlib.suppress(BlockingIOError):
                while True:
                    segments.append(os.read(other.queues[0], 65600)[12:])
            return len(segments) >= 10

        wait_until(all_arrive)
        for number, segment in enumerate(segments):
            require_finished(segment)
            assert Ether(segment)[TCP].seq == 7 + 1448 * number
        assert b"".join(bytes(Ether(segment)[TCP].payload) for segment in segments) == frame[54:]


# --- the kernel's own TCP ----------------------------------------------------------------------------------


@pytest.mark.parametrize("accepts", [True, False], ids=["large frames", "nothing"])
def test_tcp_of_the_kernel(tmp_path: Path, accepts: bool) -> None:
    wanted = MERGEABLE | (OFFLOADS if accepts else Feature(0))
    payload = bytes(i * 11 % 253 for i in range(200_000))
    with line(tmp_path) as on, FakeGuest(on.backend.socket, features=wanted) as guest:
        ready(guest)
        ip(on.namespace, f"link set tap0 address {HOST_MAC}")
        ip(on.namespace, f"addr add {HOST_ADDRESS}/24 dev tap0")
        ip(on.namespace, f"neigh replace {GUEST_ADDRESS} lladdr {GUEST_MAC} dev tap0")
        kernel = on.namespace.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        with kernel, ThreadPoolExecutor(1) as pool:
            kernel.settimeout(20)
            sending = pool.submit(send_all, kernel, payload)
            stream, longest = receive_tcp(guest, len(payload), finished=not accepts)
            sending.result()
        assert stream == payload
        counted = on.counters()["rx"]
        if accepts:
            assert longest > 1514
            assert counted["gso_frames"] > 0
        else:
            assert longest <= 1514
            assert counted["gso_frames"] == 0


def send_all(kernel: socket.socket, payload: bytes) -> None:
    kernel.connect((GUEST_ADDRESS, 80))
    kernel.sendall(payload)


def receive_tcp(guest: FakeGuest, length: int, *, finished: bool) -> tuple[bytes, int]:
    """Be the server of one connection; return the first bytes that come, and the longest frame's length."""
    stream, longest, first = bytearray(), 0, 0
    while len(stream) < length:
        received = guest.pair.receive()
        assert received is not None
        packet = Ether(received.data)
        if TCP not in packet or packet[IP].src != HOST_ADDRESS:
            continue
        if finished:
            assert received.header == Header().encode(10) + b"\1\0"
            require_finished(received.data)
        longest = max(longest, len(received.data))
        segment = packet[TCP]
        if segment.flags.S:
            first = segment.seq + 1
            options = [("MSS", 1460), ("WScale", 7)]
            reply = TCP(flags="SA", seq=0, ack=first, window=65535, options=options)
        else:
            data = bytes(segment.payload)[: packet[IP].len - 20 - 4 * segment.dataofs]
            if segment.seq == (first + len(stream)) % 2**32:
                stream += data
            reply = TCP(flags="A", seq=1, ack=(first + len(stream)) % 2**32, window=4096)
        reply.sport, reply.dport = segment.dport, segment.sport
        guest.pair.send(
            bytes(Ether(src=GUEST_MAC, dst=HOST_MAC) / IP(src=GUEST_ADDRESS, dst=HOST_ADDRESS) / reply)
        )
    return bytes(stream), longest


# --- several queues ----------------------------------------------------------------------------------------


def flows(host: HostEnd, count: int) -> list[bytes]:
    """Send frames of so many flows to the guest; return them."""
    frames = []
    for port in range(count):
        head = Ether(src=HOST_MAC, dst=GUEST_MAC) / IP(src=HOST_ADDRESS, dst=GUEST_ADDRESS)
        frames.append(bytes(head / UDP(sport=1000 + port, dport=2000) / bytes(60)))
        host.send(Header(), frames[-1])
    return frames


def taken(pair: QueuePair, frames: list[bytes]) -> int:
    """Take what has come to a queue pair out of `frames`; return how many are left."""
    while (received := pair.receive(timeout=0, wait=False)) is not None:
        frames.remove(received.data)
    return len(frames)


def test_flows_are_spread_over_the_queue_pairs_that_work(tmp_path: Path) -> None:
    with (
        line(tmp_path, arguments=("--queue-pairs", "2")) as on,
        FakeGuest(on.backend.socket, queue_pairs=2) as guest,
    ):
        ready(guest)
        one, other = guest.pairs
        frames = flows(on.host, 64)
        wait_until(lambda: taken(one, frames) + taken(other, frames) == 0)
        # The second queue pair stops: all flows come to the first.
        for ring in guest.rings[2:]:
            guest.stop_ring(ring)
        frames = flows(on.host, 64)
        wait_until(lambda: taken(one, frames) == 0)
        # And starts again: some come to it.
        for ring in guest.rings[2:]:
            guest.start_ring(ring)
        ready(guest)
        frames = flows(on.host, 64)
        wait_until(lambda: (taken(one, frames) < 64 and taken(other, frames) == 0) or taken(one, frames) == 0)
        assert frames == []


# --- given as open queues ----------------------------------------------------------------------------------

OPEN_QUEUES = """
import fcntl, os, struct, sys
name, flags, numbers = sys.argv[1], int(sys.argv[2]), sys.argv[3].split("+")
for number in map(int, numbers):
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), flags))
    os.dup2(fd, number)
    os.close(fd)
os.system(f"ip link set {name} up")
os.execvp(sys.argv[4], sys.argv[4:])
"""
TAP, MULTI_QUEUE, NO_PI, VNET_HDR = 2, 0x100, 0x1000, 0x4000


def opener(numbers: str, flags: int = TAP | NO_PI | VNET_HDR) -> tuple[str, ...]:
    """A command that runs another one with such queues of `tap0`, which block."""
    return (sys.executable, "-c", OPEN_QUEUES, "tap0", str(flags), numbers)


@pytest.mark.parametrize("queues", [1, 2])
def test_queues_that_are_open_already(namespace: Namespace, tmp_path: Path, queues: int) -> None:
    numbers = "50+51" if queues == 2 else "50"
    wrapper = opener(numbers, TAP | NO_PI | VNET_HDR | (MULTI_QUEUE if queues == 2 else 0))
    arguments = ("--queue-pairs", str(queues))
    with (
        Backend(
            tmp_path, f"tap:fd={numbers}", arguments, namespace=namespace.name, wrapper=wrapper
        ) as backend,
        contextlib.closing(HostEnd(namespace, "tap0")) as host,
        FakeGuest(backend.socket, queue_pairs=queues, features=MERGEABLE | OFFLOADS) as guest,
    ):
        assert status(backend)["guest"].port.interface == "tap0"
        ready(guest)
        frames = flows(host, 32)
        wait_until(lambda: min(taken(pair, frames) for pair in guest.pairs) == 0)
        guest.pair.send(REPLY)
        assert host.receive()[1] == REPLY
        # The interface stays for as long as somebody has it.
        rebind(backend, "tap:tap9")
        rebind(backend, f"tap:fd={numbers}")
        frames = flows(host, 32)
        wait_until(lambda: min(taken(pair, frames) for pair in guest.pairs) == 0)


def test_open_queues_take_no_rights(namespace: Namespace, tmp_path: Path) -> None:
    wrapper = (*opener("50"), "setpriv", "--bounding-set=-all", "--inh-caps=-all", "--")
    with (
        Backend(tmp_path, "tap:fd=50", namespace=namespace.name, wrapper=wrapper) as backend,
        contextlib.closing(HostEnd(namespace, "tap0")) as host,
        FakeGuest(backend.socket, features=MERGEABLE | OFFLOADS) as guest,
    ):
        passes(guest, host)
        header, frame = segmented(TCP, 20000, to_guest=True)
        host.send(header, frame)
        assert guest.pair.receive().data == frame
        # It is recognised as one of this namespace, and followed.
        ip(namespace, "link set tap0 down")
        wait_until(lambda: not link_is_up(guest))


def descriptor_of(process: int, number: int) -> int:
    """Share an open file of another process (pidfd_getfd(2))."""
    pidfd = os.pidfd_open(process)
    try:
        fd: int = ctypes.CDLL(None, use_errno=True).syscall(438, pidfd, number, 0)
    finally:
        os.close(pidfd)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    return fd


def test_nobody_waits_for_a_queue_that_blocks(namespace: Namespace, tmp_path: Path) -> None:
    with (
        Backend(tmp_path, "tap:fd=50", namespace=namespace.name, wrapper=opener("50")) as backend,
        contextlib.closing(HostEnd(namespace, "tap0")) as host,
        FakeGuest(backend.socket) as guest,
    ):
        shared = descriptor_of(backend.pid, 50)
        try:
            assert not os.get_blocking(shared)
            os.set_blocking(shared, True)
            for _ in range(3):
                passes(guest, host)
            for ring in guest.rings:
                guest.stop_ring(ring)
        finally:
            os.close(shared)


def test_descriptors_that_are_refused(namespace: Namespace, tmp_path: Path) -> None:
    def refused(port: str, wrapper: tuple[str, ...] = (), *arguments: str) -> str:
        done = namespace.run(
            [*wrapper, *COMMAND, "run", "--socket-path", tmp_path / "s", "--port", port, *arguments],
            timeout=20,
        )
        assert done.returncode == CONFIGURATION, done.stdout
        return " ".join(done.stdout.split())

    assert "descriptor 50 is no queue of a TAP interface: it is not open" in refused("tap:fd=50")
    assert "it is something else" in refused("tap:fd=2")
    without = refused("tap:fd=50", opener("50", TAP | NO_PI))
    assert "descriptor 50, of interface tap0, was opened without IFF_VNET_HDR" in without
    two = opener("50+51", TAP | NO_PI | VNET_HDR | MULTI_QUEUE)
    assert "2 descriptors for 1 queue pairs" in refused("tap:fd=50+51", two)


# --- in another network namespace --------------------------------------------------------------------------


def test_an_interface_in_another_network_namespace(namespace: Namespace, tmp_path: Path) -> None:
    with Namespace("other") as other:
        with (
            Backend(tmp_path, f"tap:tap0,netns={other.name}", namespace=namespace.name) as backend,
            contextlib.closing(HostEnd(other, "tap0")) as host,
            FakeGuest(backend.socket) as guest,
        ):
            assert link(namespace) is None
            passes(guest, host)
            port = status(backend)["guest"].port
            assert port.mode_reason == "in another network namespace: its link and its MTU are not followed"
            assert link_is_up(guest)
            ip(other, "link del tap0")
            wait_until(lambda: status(backend)["guest"].state.startswith("failed: "))
            assert not link_is_up(guest)
        code, said = refusal(namespace, tmp_path, "tap:tap0,netns=nowhere-at-all")
        assert (code, "there is no network namespace nowhere-at-all" in said) == (HOST, True)


# --- followed and lost -------------------------------------------------------------------------------------


def test_down_and_up_and_another_mtu(tmp_path: Path) -> None:
    with (
        line(tmp_path) as on,
        FakeGuest(on.backend.socket) as guest,
        guest.frontend.open_backend_channel() as channel,
    ):
        passes(guest, on.host)
        for up in (False, True):
            ip(on.namespace, f"link set tap0 {'up' if up else 'down'}")
            assert channel.next().request is BackendRequest.CONFIG_CHANGE_MSG
            assert link_is_up(guest) is up
            if not up:
                guest.pair.send(REPLY)
                guest.pair.drain()
                assert on.counters()["tx"]["drops"] == {"no_receiver": 1}
        with contextlib.suppress(OSError):
            on.host.receive()
        passes(guest, on.host)
        ip(on.namespace, "link set tap0 mtu 1000")
        wait_until(lambda: "MTU of port tap:tap0 is 1000 now, was 1500" in on.backend.text())
        guest.pair.send(bytes(1023))
        guest.pair.drain()
        assert on.counters()["tx"]["drops"] == {"no_receiver": 1, "too_long": 1}


def test_deleted_while_frames_pass(tmp_path: Path) -> None:
    with (
        line(tmp_path) as on,
        FakeGuest(on.backend.socket, features=MERGEABLE | OFFLOADS) as guest,
    ):
        passes(guest, on.host)
        ip(on.namespace, "link del tap0")
        wait_until(lambda: on.state()["state"].startswith("failed: the interface of port tap:tap0 is gone"))
        assert not link_is_up(guest)
        guest.pair.send(REPLY)
        guest.pair.drain()
        assert on.counters()["tx"]["drops"] == {"no_receiver": 1}
        rebind(on.backend, "tap:tap0")
        assert link_is_up(guest)
        with contextlib.closing(HostEnd(on.namespace, "tap0")) as host:
            passes(guest, host)


def test_to_other_ports_and_back(tmp_path: Path) -> None:
    with (
        Wire() as wire,
        Backend(tmp_path, "echo", namespace=wire.near.name) as backend,
        peer_socket(wire) as peer,
        FakeGuest(backend.socket) as guest,
    ):
        stream = FrameStream((60, 1514))
        guest.pair.exchange(stream, 100)
        rebind(backend, "tap:tap0")
        with contextlib.closing(HostEnd(wire.near, "tap0", ETHERTYPE)) as host:
            guest.pair.send_stream(stream, 20)
            for frame in (host.receive()[1] for _ in range(20)):
                stream.accept(frame)
        index = link(wire.near)["ifindex"]
        # The same interface otherwise: it is not made anew.
        rebind(backend, "tap:tap0,offloads=no")
        assert link(wire.near)["ifindex"] == index
        rebind(backend, f"xdp:{wire.interface}")
        assert link(wire.near) is None
        peer.settimeout(10)
        guest.pair.send_stream(stream, 20)
        for frame in (peer.recv(65536) for _ in range(20)):
            stream.accept(frame)
        rebind(backend, "echo")
        guest.pair.exchange(stream, 100)
        assert complaints(backend.text()) == []


def test_a_port_that_cannot_do_what_the_guest_uses_is_refused(tmp_path: Path) -> None:
    with line(tmp_path) as on, FakeGuest(on.backend.socket, features=MERGEABLE | OFFLOADS) as guest:
        passes(guest, on.host)
        before = link(on.namespace)["ifindex"]
        answer = on.backend.run("rebind", "guest", "tap:tap0,offloads=no")
        assert answer.returncode == HOST
        assert "VIRTIO_NET_F_HOST_TSO4" in answer.stderr
        # The interface, which the ports would have shared, is what it was.
        assert link(on.namespace)["ifindex"] == before
        passes(guest, on.host)


def test_the_guest_is_announced_from_its_own_end(tmp_path: Path) -> None:
    with line(tmp_path, ethertype=0x8035) as on, FakeGuest(on.backend.socket) as guest:
        ready(guest)
        guest.frontend.send_rarp(bytes.fromhex(GUEST_MAC.replace(":", "")))
        assert on.host.receive()[1] == rarp_frame(bytes.fromhex(GUEST_MAC.replace(":", "")))


# --- refused -----------------------------------------------------------------------------------------------


def test_interfaces_that_are_refused(namespace: Namespace, tmp_path: Path) -> None:
    ip(namespace, "link add veth0 type veth peer name veth1")
    ip(namespace, "tuntap add dev tun0 mode tun")
    ip(namespace, "tuntap add dev tap0 mode tap")
    ip(namespace, "tuntap add dev tap1 mode tap")
    ip(namespace, "link set tap1 up")
    ip(namespace, "route add default dev tap1")
    for port, arguments, expected in (
        ("tap:veth0", (), "interface veth0 is no TAP interface (its kind is veth) to fix it: use xdp:veth0"),
        ("tap:lo", (), "interface lo is no TAP interface (it is a device)"),
        ("tap:tun0", (), "interface tun0 is a TUN interface: its frames have no Ethernet header"),
        ("tap:tap0", ("--queue-pairs", "2"), "was made for one queue, and the guest has 2 queue pairs"),
        ("tap:tap1", (), "TAP interface tap1 carries the default route"),
        ("tap:tap2,bridge=br9", (), "adding TAP interface tap2 to bridge br9 is refused: No such device"),
        ("tap:tap2,bridge=veth0", (), "adding TAP interface tap2 to bridge veth0 is refused"),
    ):
        code, said = refusal(namespace, tmp_path, port, *arguments)
        assert code == HOST, said
        assert expected.split(" to fix it: ")[0] in said
        assert expected.split(" to fix it: ")[-1] in said
    assert link(namespace, "tap2") is None


def test_an_interface_in_use_is_refused(namespace: Namespace, tmp_path: Path) -> None:
    for name, more in (("tap0", ""), ("tap1", "multi_queue")):
        ip(namespace, f"tuntap add dev {name} mode tap {more}")
        with contextlib.closing(namespace.call(lambda name=name: open_tap(name, 1))):
            code, said = refusal(namespace, tmp_path, f"tap:{name}")
            assert code == HOST
            assert f"TAP interface {name} is in use by another process" in said
            assert f"grep -l 'iff:.*{name}' /proc" in said


def test_without_rights(namespace: Namespace, tmp_path: Path) -> None:
    nobody = ("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", "--")
    done = namespace.run(
        [*nobody, *COMMAND, "run", "--socket-path", tmp_path / "s", "--port", "tap:tap0"], timeout=20
    )
    said = " ".join(done.stdout.split())
    assert done.returncode == HOST
    assert "making TAP interface tap0 is not permitted: this process lacks CAP_NET_ADMIN" in said
    assert f"ip tuntap add dev tap0 mode tap user {os.geteuid()}" in said
    # What was made for this user needs no rights.
    ip(namespace, "tuntap add dev tap0 mode tap user 0")
    ip(namespace, "link set tap0 up")
    with (
        Backend(tmp_path, "tap:tap0", namespace=namespace.name, wrapper=nobody) as backend,
        contextlib.closing(HostEnd(namespace, "tap0")) as host,
        FakeGuest(backend.socket) as guest,
    ):
        passes(guest, host)
