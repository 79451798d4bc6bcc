"""The XDP program on real interfaces, in network namespaces of our own."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guestwire.errors import HostError
from guestwire.host import af_xdp, bpf
from guestwire.host.af_xdp_probe import prepared_socket
from guestwire.host.interface import Interface, attached_programs
from guestwire.host.xdp_program import XdpProgram, load_and_drop
from guestwire.testing.namespaces import Namespace
from guestwire.testing.wire import Wire

pytestmark = pytest.mark.root

XDP_STATISTICS = 7  # linux/if_xdp.h
ETHERTYPE = 0x88B5  # IEEE 802: for local experiments

HOLD = """
import signal, socket, sys
from guestwire.host.xdp_program import XdpProgram
program = XdpProgram.attach(socket.if_nametoindex(sys.argv[1]), 1)
print("attached", flush=True)
signal.pause()
"""

ATTACH = """
import sys
from guestwire.errors import HostError
from guestwire.host.xdp_program import XdpProgram
try:
    XdpProgram.attach(1, 1)
except HostError as error:
    print(error, error.remedy, sep="\\n")
"""


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire() as made:
        yield made


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def index_in(namespace: Namespace, name: str) -> int:
    return namespace.call(lambda: socket.if_nametoindex(name))


def attach(namespace: Namespace, name: str, **options: object) -> XdpProgram:
    def inside() -> XdpProgram:
        return XdpProgram.attach(socket.if_nametoindex(name), 1, **options)  # type: ignore[arg-type]

    return namespace.call(inside)


def programs(namespace: Namespace, name: str) -> list[tuple[int, str]]:
    def inside() -> list[tuple[int, str]]:
        return [(entry.id, entry.mode) for entry in attached_programs(socket.if_nametoindex(name))]

    return namespace.call(inside)


def add_links(namespace: Namespace, *commands: str) -> None:
    for command in commands:
        done = namespace.run(command.split())
        if "Unknown device type" in done.stdout:
            pytest.skip(f"this kernel has no such interface: {command}")
        assert done.returncode == 0, f"{command}: {done.stdout}"


def open_descriptors() -> set[int]:
    return {int(entry.name) for entry in Path("/proc/self/fd").iterdir() if entry.exists()}


def test_native_mode_first(wire: Wire) -> None:
    with attach(wire.near, wire.interface) as program:
        assert program.mode == "native"
        assert program.mode_reason == ""
        assert programs(wire.near, wire.interface) == [(program.program_id, "native")]
        assert bpf.program_name(program.program_id) == "guestwire"
    assert programs(wire.near, wire.interface) == []


def test_generic_mode_on_request(wire: Wire) -> None:
    with attach(wire.near, wire.interface, mode="generic") as program:
        assert program.mode == "generic"
        assert program.mode_reason == "generic mode was asked for"
        assert programs(wire.near, wire.interface) == [(program.program_id, "generic")]
    assert programs(wire.near, wire.interface) == []


def test_generic_mode_as_fall_back() -> None:
    with Namespace("fallback") as namespace:
        with attach(namespace, "lo") as program:
            assert program.mode == "generic"
            assert "lo refuses an XDP program in native mode" in program.mode_reason
            assert programs(namespace, "lo") == [(program.program_id, "generic")]
        with pytest.raises(HostError, match="lo refuses an XDP program in native mode"):
            attach(namespace, "lo", mode="native")


@pytest.mark.parametrize(("maximum", "remedy"), [(4, "ethtool -L few rx 3"), (1, "ethtool -L many tx 1")])
def test_peer_with_more_queues(maximum: int, remedy: str) -> None:
    with Namespace("queues") as namespace:
        add_links(
            namespace,
            f"ip link add few numrxqueues {maximum} type veth peer name many numtxqueues 4",
            "ethtool -L many tx 3",
            *(["ethtool -L few rx 1"] if maximum > 1 else []),
        )
        with pytest.raises(HostError, match="peer sends on more queues") as caught:
            attach(namespace, "few", mode="native")
        assert caught.value.remedy == remedy
        with attach(namespace, "few") as program:
            assert program.mode == "generic"
            assert "queues" in program.mode_reason
        add_links(namespace, remedy)
        with attach(namespace, "few") as program:
            assert program.mode == "native"


def test_large_mtu_needs_multi_buffer() -> None:
    with Wire(mtu=9000) as wire:
        with pytest.raises(HostError, match="MTU of its peer") as caught:
            attach(wire.near, wire.interface, mode="native")
        peer = f"ip link set dev {wire.peer_interface} mtu 1500"
        assert caught.value.remedy == f"ip netns exec {wire.far.name} {peer}"
        with attach(wire.near, wire.interface) as program:
            assert program.mode == "generic"
        with attach(wire.near, wire.interface, multi_buffer=True) as program:
            assert program.mode == "native"


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_second_guestwire_is_told_of_the_first(wire: Wire, mode: str) -> None:
    with attach(wire.near, wire.interface, mode=mode) as first:
        for second in ("auto", "native", "generic"):
            with pytest.raises(HostError) as caught:
                attach(wire.near, wire.interface, mode=second)
            message = str(caught.value)
            assert wire.interface in message
            assert f"number {first.program_id}" in message
            assert f"{mode} mode" in message
            assert f"process {os.getpid()} (" in message
            assert caught.value.remedy is not None
            assert "have that process serve this guest as well" in caught.value.remedy
        assert programs(wire.near, wire.interface) == [(first.program_id, mode)]


def test_foreign_program_is_named(wire: Wire) -> None:
    pass_all = bpf.instruction(0xB7, immediate=2) + bpf.instruction(0x95)
    program_fd = bpf.load_program(
        pass_all,
        program_type=bpf.PROGRAM_TYPE_XDP,
        attach_type=bpf.ATTACH_TYPE_XDP,
        flags=0,
        name=b"somebody_else",
    )
    index = index_in(wire.near, wire.interface)
    link_fd = wire.near.call(lambda: bpf.create_xdp_link(program_fd, index, 1 << 2))
    try:
        with pytest.raises(HostError, match="named 'somebody_else', in native mode") as caught:
            attach(wire.near, wire.interface)
        assert f"process {os.getpid()} (" in str(caught.value)
        assert caught.value.remedy is not None
        assert "bpftool prog show id" in caught.value.remedy
    finally:
        os.close(link_fd)
        os.close(program_fd)


def test_unknown_interface_index() -> None:
    with pytest.raises(HostError, match="no interface number 2147483647"):
        XdpProgram.attach(0x7FFFFFFF, 1)


def test_failed_attach_leaks_no_descriptor() -> None:
    before = open_descriptors()
    with pytest.raises(HostError):
        XdpProgram.attach(0x7FFFFFFF, 1)
    assert open_descriptors() == before


def test_descriptors_are_close_on_exec_and_closed(wire: Wire) -> None:
    before = open_descriptors()
    program = attach(wire.near, wire.interface)
    added = open_descriptors() - before
    assert len(added) == 3
    assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in added)
    program.close()
    assert open_descriptors() == before
    program.close()
    with pytest.raises(ValueError, match="closed"):
        program.clear_socket(0)
    with pytest.raises(ValueError, match="closed"):
        program.set_socket(0, 0)


def test_killed_process_leaves_no_program(wire: Wire, tmp_path: Path) -> None:
    log = tmp_path / "log"
    holder = wire.near.spawn([sys.executable, "-c", HOLD, wire.interface], log)
    try:
        wait_for(lambda: "attached" in log.read_text() or holder.poll() is not None, "never attached")
        assert programs(wire.near, wire.interface) != [], log.read_text()
    finally:
        holder.kill()
        holder.wait()
    wait_for(lambda: programs(wire.near, wire.interface) == [], "the program stayed attached")
    with attach(wire.near, wire.interface) as successor:
        assert successor.mode == "native"


def test_interface_may_go_first() -> None:
    with Namespace("gone") as namespace:
        add_links(namespace, "ip link add one type veth peer name two")
        program = attach(namespace, "one")
        add_links(namespace, "ip link del one")
        program.close()


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_frames_go_to_the_socket_of_their_queue_or_to_the_host(wire: Wire, mode: str) -> None:
    index = index_in(wire.near, wire.interface)

    def near_socket() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
        made.bind((wire.interface, ETHERTYPE))
        made.settimeout(10)
        return made

    def far_socket() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        made.bind((wire.peer_interface, 0))
        return made

    def bound_socket(area: mmap.mmap) -> socket.socket:
        made = prepared_socket(area)
        af_xdp.bind(made, index, 0, af_xdp.XDP_COPY)
        return made

    def frame(number: int) -> bytes:
        return b"\xff" * 6 + b"\x02" * 6 + struct.pack(">HI", ETHERTYPE, number) + bytes(46)

    def starved() -> int:
        # The fill ring is empty, so a frame that reaches the socket is counted and dropped.
        values = xdp_socket.getsockopt(af_xdp.SOL_XDP, XDP_STATISTICS, 48)
        return int(struct.unpack("=6Q", values)[4])

    with (
        mmap.mmap(-1, 16 * 4096) as area,
        wire.near.call(near_socket) as host,
        wire.far.call(far_socket) as peer,
        wire.near.call(lambda: bound_socket(area)) as xdp_socket,
        attach(wire.near, wire.interface, mode=mode) as program,
    ):
        peer.send(frame(1))
        assert host.recv(2048) == frame(1), "a queue without a socket serves the host"
        program.set_socket(0, xdp_socket.fileno())
        peer.send(frame(2))
        wait_for(lambda: starved() == 1, "the frame did not reach the socket")
        program.clear_socket(0)
        peer.send(frame(3))
        assert host.recv(2048) == frame(3), "frame 2 must not have reached the host"


def test_set_socket_refuses_what_is_no_socket_or_no_queue(wire: Wire) -> None:
    with attach(wire.near, wire.interface) as program:
        with pytest.raises(HostError, match="cannot serve queue 0: Bad file descriptor"):
            program.set_socket(0, -1)
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
            pytest.raises(HostError, match=f"descriptor {other.fileno()} cannot serve"),
        ):
            program.set_socket(0, other.fileno())
        for queue in (-1, 1):
            with pytest.raises(HostError, match=f"places for 1 queues, not for {queue}"):
                program.set_socket(queue, 0)
            with pytest.raises(HostError, match=f"places for 1 queues, not for {queue}"):
                program.clear_socket(queue)


def test_verifier_log() -> None:
    # exit without a return value in r0
    with pytest.raises(bpf.VerifierError) as caught:
        bpf.load_program(
            bpf.instruction(0x95),
            program_type=bpf.PROGRAM_TYPE_XDP,
            attach_type=bpf.ATTACH_TYPE_XDP,
            flags=0,
            name=b"broken",
        )
    assert "R0 !read_ok" in caught.value.log


def test_load_and_drop_leaves_nothing() -> None:
    before = open_descriptors()
    assert isinstance(load_and_drop(), bool)
    assert open_descriptors() == before


def run_python(wrapper: list[str], script: str) -> str:
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_missing_capabilities_are_named() -> None:
    answer = run_python(["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"], ATTACH)
    assert "lacks CAP_BPF, CAP_NET_ADMIN" in answer
    assert "AmbientCapabilities" in answer


def test_user_namespace_is_named() -> None:
    unshare = ["unshare", "--user", "--map-root-user", "--net", "--"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("user namespaces cannot be made here")
    answer = run_python(unshare, ATTACH)
    assert "user namespace" in answer


def test_interface_reports_the_program(wire: Wire) -> None:
    with attach(wire.near, wire.interface) as program:
        interface = wire.near.call(lambda: Interface.open(wire.interface))
        assert [entry.id for entry in interface.programs] == [program.program_id]
