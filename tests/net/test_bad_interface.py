"""Interfaces that cannot be taken, and rights that do not suffice: one clear error that says what to do."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from backend.house import complaints, status
from backend.process import COMMAND, Backend, wait_until
from guestwire.host import af_xdp
from guestwire.host.af_xdp_probe import prepared_socket
from guestwire.host.interface import AttachedProgram, Interface
from guestwire.sizes import format_size
from guestwire.testing import BackendError, FakeGuest, FrameStream, SharedMemory, Wire
from guestwire.testing.frame_stream import ETHERTYPE
from guestwire.testing.namespaces import Namespace
from net.queues import held_queue

pytestmark = pytest.mark.root

MIB = 1 << 20
DESCRIPTION, HOST = 2, 3  # exit statuses (docs/reference.md)
NOBODY = "65534"
LIMIT = 6 * MIB  # less than the memory of a guest, more than the bounce frames take

# A user without rights who may read everything: our interpreter need not be where everybody may look.
AS_NOBODY = (
    "setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups",
    "--inh-caps", "-all,+dac_read_search", "--ambient-caps", "-all,+dac_read_search",
    "--bounding-set", "-all,+dac_read_search", "--",
)  # fmt: skip
WITHOUT_IPC_LOCK = ("setpriv", "--inh-caps", "-ipc_lock", "--bounding-set", "-ipc_lock", "--")


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire() as made:
        yield made


@pytest.fixture
def nobodys_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="guestwire-nobody-"))
    shutil.chown(folder, int(NOBODY), int(NOBODY))
    yield folder
    shutil.rmtree(folder)


def refused(
    namespace: Namespace, folder: Path, port: str, *, wrapper: Sequence[str] = (), path: Path | None = None
) -> tuple[int, str, str]:
    """Run `guestwire run` in a namespace to its end: its exit status, the error and the remedy."""
    answer = subprocess.run(
        [
            *("ip", "netns", "exec", namespace.name, *wrapper, *COMMAND),
            *("run", "--port", port, "--socket-path", str(path or folder / "guest.sock")),
        ],
        env={**os.environ, "GUESTWIRE_RUNTIME_DIRECTORY": str(folder / "run")},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    said = re.fullmatch(r"guestwire: (.*)\n  to do: (.*)\n", answer.stderr)
    assert said, answer.stderr
    assert not (folder / "guest.sock").exists()
    assert list((folder / "run").iterdir()) == []
    return answer.returncode, said[1], said[2]


def programs(wire: Wire) -> tuple[AttachedProgram, ...]:
    return wire.near.call(lambda: Interface.open(wire.interface)).programs


def test_a_queue_that_is_missing(wire: Wire, tmp_path: Path) -> None:
    code, error, remedy = refused(wire.near, tmp_path, f"xdp:{wire.interface},queue=3")
    assert code == HOST
    assert error.startswith(f"interface {wire.interface} has no receive queue 3: it has only queue 0")
    assert remedy.startswith("ethtool -")
    assert programs(wire) == ()


def test_a_mode_that_the_driver_lacks(wire: Wire, tmp_path: Path) -> None:
    code, error, remedy = refused(wire.near, tmp_path, f"xdp:{wire.interface},mode=zero-copy")
    assert code == HOST
    assert error == f"interface {wire.interface} cannot do mode=zero-copy: driver veth does not offer it"
    assert remedy.startswith("use mode=direct")
    assert programs(wire) == ()


def test_a_queue_that_another_program_holds(wire: Wire, tmp_path: Path) -> None:
    with held_queue(wire, 0):
        code, error, remedy = refused(wire.near, tmp_path, f"xdp:{wire.interface}")
    assert code == HOST
    assert error == f"interface {wire.interface} queue 0 is in use by another AF_XDP socket"
    assert "ss --xdp -p" in remedy
    assert programs(wire) == ()


def test_the_default_route_is_not_cut(wire: Wire, tmp_path: Path) -> None:
    for command in (f"ip addr add 192.0.2.2/24 dev {wire.interface}", "ip route add default via 192.0.2.1"):
        assert wire.near.run(command.split()).returncode == 0
    code, error, _ = refused(wire.near, tmp_path, f"xdp:{wire.interface}")
    assert code in {DESCRIPTION, HOST}
    assert "default route" in error
    assert programs(wire) == ()


def test_frames_that_are_too_large(tmp_path: Path) -> None:
    with Wire(mtu=12000) as wire:
        code, error, remedy = refused(wire.near, tmp_path, f"xdp:{wire.interface}")
        assert code in {DESCRIPTION, HOST}
        assert "12000" in error
        assert "ip link set dev wire0 mtu 9216" in remedy


def test_an_interface_that_another_process_serves(wire: Wire, tmp_path: Path) -> None:
    port = f"xdp:{wire.interface}"
    (tmp_path / "second").mkdir()
    with Backend(tmp_path, port, namespace=wire.near.name) as backend:
        code, error, remedy = refused(wire.near, tmp_path / "second", port)
        assert code == HOST
        assert f"process {backend.pid} (" in error
        assert ") serves guests with it" in error
        assert remedy.startswith("have that process serve this guest as well")
        assert len(programs(wire)) == 1


def test_an_unprivileged_user(wire: Wire, nobodys_folder: Path) -> None:
    code, error, remedy = refused(wire.near, nobodys_folder, f"xdp:{wire.interface}", wrapper=AS_NOBODY)
    assert code == HOST
    lacking = "this process lacks CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW"
    assert error == f"driving interface {wire.interface} through AF_XDP is not permitted: {lacking}"
    assert "AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW CAP_BPF CAP_IPC_LOCK" in remedy
    assert programs(wire) == ()


def test_a_directory_that_an_unprivileged_user_may_not_write(
    wire: Wire, nobodys_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "guest.sock"
    code, error, remedy = refused(wire.near, nobodys_folder, "echo", wrapper=AS_NOBODY, path=path)
    assert (code, error) == (HOST, f"cannot listen on socket {path}: Permission denied")
    assert remedy == f"let user {NOBODY} write to {tmp_path}, or run as root"


def test_a_queue_that_another_socket_holds(wire: Wire, tmp_path: Path) -> None:
    index = wire.near.call(lambda: socket.if_nametoindex(wire.interface))

    def bound_socket() -> socket.socket:
        made = prepared_socket(area)
        af_xdp.bind(made, index, 0, af_xdp.XDP_COPY)
        return made

    with (
        mmap.mmap(-1, 16 * 4096) as area,
        Backend(tmp_path, "xdp:wire0", namespace=wire.near.name) as backend,
    ):
        with wire.near.call(bound_socket), pytest.raises(BackendError, match="refused"):
            FakeGuest(backend.socket).start()
        (said,) = complaints(backend.text())
        assert (
            "refused: interface wire0 queue 0 is in use by another AF_XDP socket; use another queue" in said
        )
        with FakeGuest(backend.socket) as guest:
            pass_frames(wire, guest)


def pass_frames(wire: Wire, guest: FakeGuest, count: int = 20) -> None:
    """Some frames in each direction, between the guest and the far end."""

    def peer_socket() -> socket.socket:
        peer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
        peer.bind((wire.peer_interface, ETHERTYPE))
        peer.settimeout(10)
        return peer

    with wire.far.call(peer_socket) as peer:
        arriving, leaving = FrameStream((60, 1514)), FrameStream((60, 1514), identifier=1)
        guest.frontend.get_features()  # requests are followed in order: the rings run when it is answered
        for frame in arriving.take(count):
            peer.send(frame)
        assert guest.pair.receive_stream(arriving, count)[1:3] == (count, 0)
        guest.pair.send_stream(leaving, count)
        for _ in range(count):
            leaving.accept(peer.recv(65536))


@contextlib.contextmanager
def with_little_memory(wire: Wire, folder: Path, mode: str) -> Iterator[Backend]:
    """A backend that may lock very little memory."""
    wrapper = (*WITHOUT_IPC_LOCK, "prlimit", f"--memlock={LIMIT}:{LIMIT}", "--")
    port = f"xdp:{wire.interface},mode={mode}"
    with Backend(folder, port, namespace=wire.near.name, wrapper=wrapper) as backend:
        yield backend


def test_too_little_memory_to_lock(wire: Wire, tmp_path: Path) -> None:
    with with_little_memory(wire, tmp_path, "direct") as backend:
        before = backend.resources_at_rest()
        for _ in range(3):
            gone = backend.text().count("the frontend is gone")
            with pytest.raises(BackendError, match="refused"):
                start_and_close(backend)
            wait_until(lambda: backend.text().count("the frontend is gone") > gone)  # noqa: B023
        wait_until(lambda: backend.resources() == before)
        said = complaints(backend.text())
        assert len(said) == 3
        limit = f"MiB must be pinned and the limit on locked memory is {format_size(LIMIT)}"
        for line in said:
            assert re.search(
                rf"refused: interface wire0 queue 0: [0-9.]+ {limit}; raise it \(ulimit -l", line
            ), line
        # A guest that fits is served.
        with SharedMemory(MIB) as memory, FakeGuest(backend.socket, memory=memory, queue_size=64) as guest:
            pass_frames(wire, guest)
            assert status(backend)["guest"].port.mode == "direct"


def start_and_close(backend: Backend) -> None:
    guest = FakeGuest(backend.socket)
    try:
        guest.start()
    finally:
        guest.close()


def test_with_too_little_memory_to_lock_auto_copies_and_says_why(wire: Wire, tmp_path: Path) -> None:
    with with_little_memory(wire, tmp_path, "auto") as backend, FakeGuest(backend.socket) as guest:
        pass_frames(wire, guest)
        port = status(backend)["guest"].port
        assert port.mode == "bounce"
        assert f"the limit on locked memory is {format_size(LIMIT)}" in (port.mode_reason or "")
        assert complaints(backend.text()) == []


def test_an_interface_that_goes_away(wire: Wire, tmp_path: Path) -> None:
    with Backend(tmp_path, f"xdp:{wire.interface}", namespace=wire.near.name) as backend:
        with FakeGuest(backend.socket) as guest:
            pass_frames(wire, guest)
            assert wire.near.run(["ip", "link", "del", wire.interface]).returncode == 0
            assert guest.frontend.get_features()
        # It is the host's fault, and can be repaired: guests start as ever, with their link down.
        start_and_close(backend)
        said = f"the interface of port xdp:{wire.interface} is gone; guestwire rebind guest PORT"
        assert complaints(backend.text()) == [f"guestwire.guest.guest: {said}"]
        assert status(backend)["guest"].state == f"failed: {said}"


def test_memory_that_is_truncated_under_the_kernel(wire: Wire, tmp_path: Path) -> None:
    with Backend(tmp_path, f"xdp:{wire.interface},mode=direct", namespace=wire.near.name) as backend:
        with SharedMemory(2 * MIB, 8 * MIB) as memory:
            guest = FakeGuest(backend.socket, memory=memory)
            guest.start()
            try:
                pass_frames(wire, guest)
                before = len(programs(wire))
                # The rings are in the other region; the buffers are not touched on our side from here on.
                os.ftruncate(memory.regions[1].fd, 0)
                send_from_afar(wire)
                assert all(ring.is_broken() for ring in guest.rings)
                assert status(backend)["guest"].state.startswith("failed: the file behind the guest's memory")
            finally:
                guest.close()
        with FakeGuest(backend.socket) as guest:
            pass_frames(wire, guest)
            assert len(programs(wire)) == before


def send_from_afar(wire: Wire) -> None:
    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as peer:
            peer.bind((wire.peer_interface, 0))
            peer.send(FrameStream().frame(0))

    wire.far.call(send)
