"""The testing frontend against a backend of which every word is scripted."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestwire.testing import BackendError, Frontend, SharedMemory
from guestwire.vhost_user import messages
from guestwire.vhost_user.constants import BackendRequest, MessageFlag, ProtocolFeature, Request
from guestwire.virtio.features import DeviceStatus, Feature


class Script:
    """The backend's end: say things in advance, look at what came afterwards."""

    def __init__(self) -> None:
        ours, self.socket = socket.socketpair()
        self.frontend = Frontend(ours, timeout=0.2)

    def reply(self, request: Request, payload: messages.Payload) -> None:
        self.socket.sendall(messages.encode_reply(request, payload))

    def next(self) -> tuple[messages.Header, bytes, list[int]]:
        data, fds, _, _ = socket.recv_fds(self.socket, 12, 16)
        header = messages.Header.decode(data)
        body = self.socket.recv(header.size) if header.size else b""
        return header, body, list(fds)

    def close(self) -> None:
        self.frontend.close()
        self.socket.close()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def script() -> Iterator[Script]:
    script = Script()
    before = open_descriptors()
    yield script
    assert open_descriptors() <= before
    script.close()


def test_a_request_with_a_reply(script: Script) -> None:
    script.reply(Request.GET_FEATURES, messages.U64(Feature.VIRTIO_F_VERSION_1))
    assert script.frontend.get_features() == Feature.VIRTIO_F_VERSION_1
    header, body, fds = script.next()
    assert (header.request, header.need_reply, body, fds) == (Request.GET_FEATURES, False, b"", [])


def test_acknowledgements_are_asked_for_once_negotiated(script: Script) -> None:
    script.frontend.set_owner()
    script.frontend.set_protocol_features(ProtocolFeature.REPLY_ACK)
    script.reply(Request.SET_STATUS, messages.U64(0))
    script.frontend.set_status(DeviceStatus.DRIVER)
    assert [script.next()[0].need_reply for _ in range(3)] == [False, False, True]


def test_a_refusal(script: Script) -> None:
    script.frontend.protocol_features = ProtocolFeature.REPLY_ACK
    script.reply(Request.NET_SET_MTU, messages.U64(1))
    with pytest.raises(BackendError, match="refused VHOST_USER_NET_SET_MTU"):
        script.frontend.set_mtu(9000)


def test_a_configuration_that_is_refused(script: Script) -> None:
    script.reply(Request.GET_CONFIG, messages.Empty())
    with pytest.raises(BackendError, match="refused VHOST_USER_GET_CONFIG"):
        script.frontend.get_config(0, 6)


def test_a_reply_to_something_else(script: Script) -> None:
    script.reply(Request.GET_STATUS, messages.U64(0))
    with pytest.raises(BackendError, match="VHOST_USER_GET_FEATURES: expected its reply"):
        script.frontend.get_features()


def test_no_reply(script: Script) -> None:
    with pytest.raises(BackendError, match=r"VHOST_USER_GET_FEATURES: .*has not answered in time"):
        script.frontend.get_features()


def test_half_a_reply(script: Script) -> None:
    reply = messages.encode_reply(Request.GET_FEATURES, messages.U64(1))
    script.socket.sendall(reply[:-1])
    script.socket.shutdown(socket.SHUT_WR)
    with pytest.raises(BackendError, match="closed the connection where 1 more bytes"):
        script.frontend.get_features()


def test_nonsense(script: Script) -> None:
    script.socket.sendall(b"\xff" * 12)
    with pytest.raises(BackendError, match=r"no message: .*version 3"):
        script.frontend.get_features()


def test_a_closed_connection(script: Script) -> None:
    script.socket.close()
    with pytest.raises(BackendError, match="has closed the connection"):
        script.frontend.get_features()


def test_memory_is_passed_by_descriptors(script: Script) -> None:
    with SharedMemory(4096, 8192) as memory:
        memory.regions[1].bytes[0] = 7
        script.frontend.set_memory_table(memory.regions)
        header, body, fds = script.next()
        table = messages.MemoryTable.decode(body)
        assert header.request == Request.SET_MEM_TABLE
        assert [region.size for region in table.regions] == [4096, 8192]
        assert os.pread(fds[1], 1, table.regions[1].mmap_offset) == b"\7"
        for fd in fds:
            os.close(fd)


def test_a_ring_without_a_kick_is_polled(script: Script) -> None:
    script.frontend.set_ring_kick(3, None)
    _, body, fds = script.next()
    assert messages.RingDescriptor.decode(body) == messages.RingDescriptor(3, False)
    assert not fds


def test_the_backend_asks_for_something(script: Script) -> None:
    with script.frontend.open_backend_channel() as channel:
        _, _, (fd,) = script.next()
        with socket.socket(fileno=fd) as theirs:
            question = messages.encode_request(BackendRequest.CONFIG_CHANGE_MSG, need_reply=True)
            theirs.sendall(question)
            message = channel.next()
            assert message.request == BackendRequest.CONFIG_CHANGE_MSG
            assert message.need_reply
            channel.reply(message)
            header = messages.Header.decode(theirs.recv(12))
            assert header.flags == MessageFlag.REPLY
            assert theirs.recv(8) == bytes(8)
            with pytest.raises(BackendError, match="not answered in time"):
                channel.next(timeout=0.05)


def test_the_end_of_a_session(script: Script) -> None:
    with pytest.raises(BackendError, match="keeps the connection open"):
        script.frontend.expect_end(timeout=0.05)
    script.socket.close()
    script.frontend.expect_end()


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"no backend listens on .*: No such file"):
        Frontend.connect(tmp_path / "none", timeout=0.1)


def test_a_backend_that_connects(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with (
        Frontend.listen(path, timeout=5) as accept,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as backend,
    ):
        backend.connect(str(path))
        with accept() as frontend:
            backend.sendall(messages.encode_reply(Request.GET_STATUS, messages.U64(4)))
            assert frontend.get_status() == DeviceStatus.DRIVER_OK
    assert not path.exists()


def test_no_backend_connects(tmp_path: Path) -> None:
    with (
        Frontend.listen(tmp_path / "socket", timeout=0.05) as accept,
        pytest.raises(BackendError, match="no backend has connected"),
    ):
        accept()


def test_connecting_waits_for_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:

        def listen() -> None:
            listener.bind(str(path))
            listener.listen(1)

        timer = threading.Timer(0.1, listen)
        timer.start()
        Frontend.connect(path, timeout=5).close()
        timer.join()
