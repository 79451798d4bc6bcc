"""Sessions on real sockets."""

import array
import asyncio
import os
import resource
import select
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from guestwire.errors import FrontendError, HostError
from guestwire.vhost_user.constants import HEADER_SIZE, Request
from guestwire.vhost_user.endpoint import Listener
from guestwire.vhost_user.inspection import Inspector
from guestwire.vhost_user.messages import (
    U64,
    Empty,
    Header,
    MemoryTable,
    RingDescriptor,
    encode_reply,
    encode_request,
)
from guestwire.vhost_user.session import Session
from guestwire.vhost_user.state import SPOKEN
from guestwire.vhost_user.transport import Connection, serve
from unit.vhost_user.fakes import MEMORY, OFFERED, FakeDevice


class Peer:
    """The frontend's end of a connection."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        end.settimeout(10)

    @classmethod
    def at(cls, path: Path) -> "Peer":
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        end.connect(os.fspath(path))
        return cls(end)

    def send(self, request, payload=None, *descriptors, need_reply=False):
        message = encode_request(request, payload, need_reply=need_reply)
        socket.send_fds(self.socket, [message], list(descriptors))

    def receive(self) -> bytes:
        header = self.socket.recv(HEADER_SIZE, socket.MSG_WAITALL)
        size = Header.decode(header).size if header else 0
        return header + (self.socket.recv(size, socket.MSG_WAITALL) if size else b"")

    def ask(self, request, payload=None, *descriptors, need_reply=False) -> bytes:
        self.send(request, payload, *descriptors, need_reply=need_reply)
        return self.receive()

    def synchronise(self) -> None:
        """Wait until all that was sent has been dealt with."""
        assert self.ask(Request.GET_FEATURES) == encode_reply(Request.GET_FEATURES, U64(OFFERED))

    def is_closed(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:  # it was closed before all was read
            return True


def play(scenario, device: FakeDevice | None = None) -> BaseException | None:
    """Run a session against a frontend in a thread; return what the session raised."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    async def both():
        inspector = Inspector()
        connection = Connection(ours, Session(device or FakeDevice(), lambda _: None), inspector)
        session = asyncio.create_task(connection.run())
        try:
            with theirs:
                await asyncio.wait_for(asyncio.to_thread(scenario, Peer(theirs)), 20)
        finally:
            [outcome] = await asyncio.gather(session, return_exceptions=True)
            inspector.close()
        return outcome

    return asyncio.run(both())


def test_request_and_reply():
    assert play(Peer.synchronise) is None


def test_device_is_released_when_the_frontend_goes():
    device = FakeDevice()

    def scenario(peer):
        memory = os.memfd_create("guest")
        peer.send(Request.SET_MEM_TABLE, MemoryTable((MEMORY,)), memory)
        os.close(memory)
        peer.synchronise()
        assert len(device.memory) == 1

    assert play(scenario, device) is None
    assert device.memory == ()


def test_pipelined_messages_keep_their_own_descriptors():
    device = FakeDevice()

    def scenario(peer):
        first, second = os.eventfd(0), os.eventfd(0)
        peer.send(Request.SET_OWNER)
        peer.send(Request.SET_VRING_CALL, RingDescriptor(0), first)
        peer.send(Request.SET_VRING_CALL, RingDescriptor(1, has_descriptor=False))
        peer.send(Request.SET_VRING_ERR, RingDescriptor(1), second)
        peer.synchronise()
        for descriptor in (first, second):
            os.close(descriptor)

    assert play(scenario, device) is None


def test_one_byte_at_a_time_with_the_descriptor_on_the_last():
    def scenario(peer):
        eventfd = os.eventfd(0)
        message = encode_request(Request.SET_VRING_CALL, RingDescriptor(0))
        for byte in message[:-1]:
            peer.socket.sendall(bytes([byte]))
        socket.send_fds(peer.socket, [message[-1:]], [eventfd])
        os.close(eventfd)
        peer.synchronise()

    assert play(scenario) is None


def test_broken_protocol_ends_the_connection():
    def scenario(peer):
        memory = os.memfd_create("guest")
        peer.send(Request.SET_MEM_TABLE, MemoryTable(()), memory)
        os.close(memory)
        assert peer.is_closed()

    error = play(scenario)
    assert isinstance(error, FrontendError)
    assert "VHOST_USER_SET_MEM_TABLE" in str(error)


@pytest.mark.parametrize("length", [1, 12, 19])
def test_truncated_message(length):
    message = encode_request(Request.SET_FEATURES, U64(OFFERED))
    error = play(lambda peer: peer.socket.sendall(message[:length]))
    assert isinstance(error, FrontendError)
    assert "the connection ended" in str(error)


def test_frontend_that_does_not_wait_for_its_reply():
    def scenario(peer):
        for _ in range(100):
            peer.send(Request.GET_FEATURES)

    assert play(scenario) is None


@pytest.mark.parametrize("count", [9, 253])
def test_more_descriptors_than_any_message_has(count):
    def scenario(peer):
        descriptor = os.eventfd(0)
        peer.send(Request.GET_FEATURES, None, *[descriptor] * count)
        os.close(descriptor)
        assert peer.is_closed()

    error = play(scenario)
    assert isinstance(error, FrontendError)
    assert f"{count} file descriptors came with one message" in str(error)


def test_descriptors_that_the_process_may_not_open():
    def scenario(peer):
        descriptor = os.eventfd(0)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.dup(descriptor)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 3, hard))
        try:
            peer.send(Request.SET_MEM_TABLE, MemoryTable((MEMORY,) * 8), *[descriptor] * 8)
            assert peer.is_closed()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            os.close(descriptor)

    error = play(scenario)
    assert isinstance(error, HostError)
    assert "ulimit -n" in error.remedy


class SlowDevice(FakeDevice):
    """A device whose memory takes as long as the test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.working = threading.Event()
        self.go_on = threading.Event()

    def set_memory(self, regions):
        if regions:
            self.working.set()
            assert self.go_on.wait(10)
        super().set_memory(regions)


def test_other_guests_do_not_wait_for_a_slow_one():
    slow = SlowDevice()

    async def both():
        ends = [socket.socketpair() for _ in range(2)]
        for ours, _ in ends:
            ours.setblocking(False)
        (slow_end, slow_peer), (quick_end, quick_peer) = ends
        sessions = [
            asyncio.create_task(Connection(slow_end, Session(slow), Inspector()).run()),
            asyncio.create_task(Connection(quick_end, Session(FakeDevice()), Inspector()).run()),
        ]
        memory = os.memfd_create("guest")
        Peer(slow_peer).send(Request.SET_MEM_TABLE, MemoryTable((MEMORY,)), memory)
        os.close(memory)
        await asyncio.to_thread(slow.working.wait, 10)
        await asyncio.to_thread(Peer(quick_peer).synchronise)
        assert slow.memory == ()
        slow.go_on.set()
        slow_peer.close()
        quick_peer.close()
        await asyncio.gather(*sessions)

    asyncio.run(asyncio.wait_for(both(), 20))


def test_cancellation_waits_for_the_device():
    device = SlowDevice()

    async def scenario():
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        session = asyncio.create_task(Connection(ours, Session(device), Inspector()).run())
        memory = os.memfd_create("guest")
        Peer(theirs).send(Request.SET_MEM_TABLE, MemoryTable((MEMORY,)), memory)
        os.close(memory)
        await asyncio.to_thread(device.working.wait, 10)
        for _ in range(3):
            session.cancel()
            await asyncio.sleep(0)
        assert not session.done()
        device.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await session
        theirs.close()

    asyncio.run(asyncio.wait_for(scenario(), 20))
    assert [call[0] for call in device.calls] == ["set_memory", "reset", "set_memory"]
    assert device.memory == ()


def announce_to(channel_end: int, times: int = 1) -> None:
    """Run a session whose frontend has given this descriptor, and announce changes to it."""

    async def scenario():
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        connection = Connection(ours, Session(FakeDevice()), Inspector())
        session = asyncio.create_task(connection.run())
        peer = Peer(theirs)
        await connection.announce_config_change()
        peer.send(Request.SET_PROTOCOL_FEATURES, U64(SPOKEN))
        peer.send(Request.SET_BACKEND_REQ_FD, Empty(), channel_end)
        await asyncio.to_thread(peer.synchronise)
        for _ in range(times):
            await connection.announce_config_change()
        theirs.close()
        await session

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_configuration_change_reaches_a_socket():
    ours, theirs = socket.socketpair()
    announce_to(ours.fileno())
    assert theirs.recv(100) == array.array("I", [2, 1, 0]).tobytes()
    ours.close()
    theirs.close()


def test_frontend_that_does_not_read_changes_is_not_waited_for(caplog):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    while select.select([], [writing], [], 0)[1]:
        os.write(writing, bytes(4096))
    announce_to(writing)
    assert "cannot announce a configuration change" in caplog.text
    os.close(reading)
    os.close(writing)


def test_frontend_that_has_closed_its_channel(caplog):
    reading, writing = os.pipe()
    os.close(reading)
    announce_to(writing, times=2)
    assert "Broken pipe" in caplog.text
    os.close(writing)


def serving(tmp_path, scenario, open_session=None):
    """Serve a path while a scenario runs; return the errors that ended sessions."""
    path = tmp_path / "guest.sock"
    errors = []

    async def both():
        def session():
            return Session(FakeDevice(), lambda _: None)

        service = asyncio.create_task(serve(Listener(path), open_session or session, errors.append))
        try:
            await asyncio.wait_for(asyncio.to_thread(scenario, path), 20)
        finally:
            service.cancel()
            with pytest.raises(asyncio.CancelledError):
                await service

    asyncio.run(both())
    assert not path.exists()
    return errors


def test_frontends_are_served_one_after_the_other(tmp_path):
    def scenario(path):
        first = Peer.at(path)
        first.synchronise()
        second = Peer.at(path)
        second.send(Request.GET_FEATURES)
        first.synchronise()
        first.socket.close()
        assert second.receive() == encode_reply(Request.GET_FEATURES, U64(OFFERED))
        second.socket.close()

    assert serving(tmp_path, scenario) == []


def test_bad_frontend_does_not_end_the_service(tmp_path):
    def scenario(path):
        for message in (bytes(12), b"\1\0\0\0\1\0\0\0\377\0\0\0", b"short"):
            bad = Peer.at(path)
            bad.socket.sendall(message)
            bad.socket.shutdown(socket.SHUT_WR)
            assert bad.is_closed()
            bad.socket.close()
        good = Peer.at(path)
        good.synchronise()
        good.socket.close()

    errors = serving(tmp_path, scenario)
    assert [type(error) for error in errors] == [FrontendError] * 3


def test_session_that_cannot_begin_does_not_end_the_service(tmp_path):
    attempts = []

    def open_session():
        attempts.append(1)
        if len(attempts) == 1:
            raise HostError("no memory left")
        return Session(FakeDevice())

    def scenario(path):
        bad = Peer.at(path)
        assert bad.is_closed()
        bad.socket.close()
        good = Peer.at(path)
        good.synchronise()
        good.socket.close()

    errors = serving(tmp_path, scenario, open_session)
    assert [type(error) for error in errors] == [HostError]


def test_frontend_that_is_killed_makes_room(tmp_path):
    def scenario(path):
        frontend = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
            "s.send(bytes.fromhex('010000000100000000000000')); s.recv(20); print(flush=True);"
            "s.recv(1)"
        )
        command = [sys.executable, "-c", frontend, os.fspath(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout.read(1) == b"\n", "it has had an answer"
            process.kill()
        good = Peer.at(path)
        good.synchronise()
        good.socket.close()

    assert serving(tmp_path, scenario) == []
