"""Listening, connecting and inheriting, with real sockets."""

import asyncio
import fcntl
import os
import resource
import socket
import stat
import threading
from pathlib import Path

import pytest

from guestwire.errors import ConfigurationError, HostError
from guestwire.vhost_user import endpoint, socket_file
from guestwire.vhost_user.endpoint import Connector, Inherited, Listener
from guestwire.vhost_user.socket_file import SocketAccess, group_number


@pytest.fixture
def path(tmp_path):
    return tmp_path / "guest.sock"


def connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(10)
    client.connect(os.fspath(path))
    return client


def listening(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.settimeout(10)
    server.bind(os.fspath(path))
    server.listen(1)
    return server


def first_byte(endpoint, client: socket.socket) -> bytes:
    """Take the endpoint's next connection and see that it leads to the client."""
    connection = asyncio.run(endpoint.connection())
    with connection:
        assert not connection.getblocking()
        client.sendall(b"x")
        return connection.recv(1)


def test_listener_accepts_one_after_the_other(path):
    listener = Listener(path)
    for _ in range(2):
        with connected(path) as client:
            assert first_byte(listener, client) == b"x"
    listener.close()


def test_listener_waits_while_the_process_has_no_descriptor_left(path, caplog):
    async def scenario():
        listener = Listener(path)
        client = connected(path)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            pending = asyncio.create_task(listener.connection())
            while not caplog.records:
                await asyncio.sleep(0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        (await pending).close()
        client.close()
        listener.close()

    asyncio.run(asyncio.wait_for(scenario(), 10))
    assert "cannot accept a frontend's connection yet: Too many open files" in caplog.text


def test_connector_waits_while_the_process_has_no_descriptor_left(path):
    async def scenario():
        connector = Connector(path, retry_interval=0.01)
        with listening(path):
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                pending = asyncio.create_task(connector.connection())
                await asyncio.sleep(0.03)
                assert not pending.done()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            (await pending).close()

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_listener_removes_its_socket(path):
    listener = Listener(path)
    assert stat.S_ISSOCK(path.stat().st_mode)
    listener.close()
    assert not path.exists()
    listener.close()


@pytest.mark.parametrize("umask", [0, 0o022, 0o077], ids=oct)
def test_a_socket_is_never_more_open_than_asked(path, monkeypatch, umask):
    before = []

    def open_to(path, access):
        before.append(stat.S_IMODE(path.stat().st_mode))
        complete(path, access)

    complete = socket_file._open_to
    monkeypatch.setattr(socket_file, "_open_to", open_to)
    usual = os.umask(umask)
    try:
        for access, mode in (
            (SocketAccess(0o666), 0o666),
            (SocketAccess(0o600), 0o600),
            (SocketAccess(None, os.getgid()), 0o660),
            (SocketAccess(0o620, os.getgid()), 0o620),
        ):
            listener = Listener(path, access)
            assert stat.S_IMODE(path.stat().st_mode) == mode
            with connected(path) as client:
                assert first_byte(listener, client) == b"x"
            listener.close()
            assert not path.exists()
    finally:
        os.umask(usual)
    assert before == [0, 0, 0, 0]


def test_a_socket_that_cannot_be_given_away_is_removed(path, monkeypatch):
    def chown(*arguments):
        raise PermissionError(1, "no")

    monkeypatch.setattr(socket_file.os, "chown", chown)
    with pytest.raises(HostError, match=r"cannot give socket .* to group 12: user .* is not a member"):
        Listener(path, SocketAccess(group=12))
    assert not path.exists()


def test_groups_have_names_and_numbers():
    assert group_number("root") == group_number("0") == group_number(0) == 0
    assert group_number(4711) == 4711
    assert group_number((1 << 32) - 2) == (1 << 32) - 2  # the last one
    for name in ("no such group", "-1", str((1 << 32) - 1), "٣"):
        with pytest.raises(ConfigurationError, match="there is no group"):
            group_number(name)


def test_listener_leaves_what_has_taken_its_place(path):
    listener = Listener(path)
    path.unlink()
    successor = Listener(path)
    listener.close()
    with connected(path) as client:
        assert first_byte(successor, client) == b"x"
    successor.close()


def test_stale_socket_is_replaced(path):
    listening(path).close()
    assert path.exists()
    listener = Listener(path)
    with connected(path) as client:
        assert first_byte(listener, client) == b"x"
    listener.close()


def test_a_lock_on_the_directory_holds_up_nobody(path):
    directory = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    listener = Listener(path)
    assert list(path.parent.iterdir()) == [path]
    listener.close()
    os.close(directory)


def test_a_lock_of_ones_own_is_not_waited_for_forever(path, monkeypatch):
    monkeypatch.setattr(endpoint, "_LOCK_SECONDS", 0.05)
    lock = os.open(path.with_name(".guest.sock.lock"), os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(HostError, match=r"somebody keeps the lock on .*/\.guest\.sock\.lock"):
        Listener(path)
    assert not path.exists()
    os.close(lock)
    # What a killed process left is in nobody's way.
    Listener(path).close()
    assert list(path.parent.iterdir()) == []


def test_a_lock_that_is_removed_meanwhile_is_no_lock(path, monkeypatch):
    real = fcntl.flock

    def flock(descriptor, operation):
        real(descriptor, operation)
        monkeypatch.setattr(fcntl, "flock", real)
        path.with_name(".guest.sock.lock").unlink()

    monkeypatch.setattr(fcntl, "flock", flock)
    Listener(path).close()
    assert fcntl.flock is real
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        lambda path: path.symlink_to("/dev/null"),
        lambda path: path.mkdir(),
        lambda path: path.write_text("precious"),
    ],
    ids=["pipe", "link", "directory", "file"],
)
def test_what_lies_in_the_lock_s_place_is_not_touched(path, monkeypatch, make):
    monkeypatch.setattr(endpoint, "_LOCK_SECONDS", 0.05)
    lock = path.with_name(".guest.sock.lock")
    make(lock)
    with pytest.raises(HostError, match=f"{lock} is in the way|cannot listen on socket {path}"):
        Listener(path)
    assert lock.lstat()
    assert not path.exists()


def test_only_one_of_many_replaces_a_stale_socket(path):
    listening(path).close()
    made, refused = [], []

    def start():
        try:
            made.append(Listener(path))
        except ConfigurationError as error:
            refused.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(refused) == 7
    assert all("is in use by" in str(error) for error in refused)
    made[0].close()
    assert list(path.parent.iterdir()) == []


def test_live_socket_is_not_replaced(path):
    with listening(path) as server:
        with pytest.raises(ConfigurationError) as caught:
            Listener(path)
        assert str(caught.value).startswith(f"socket path {path} is in use by process {os.getpid()} (")
        assert "choose another socket path" in caught.value.remedy
        server.accept()[0].close()
        with connected(path) as client:
            server.accept()[0].close()
            assert client.recv(1) == b"", "it still belongs to its owner"


def test_live_socket_with_a_full_queue_is_not_replaced(path):
    with listening(path) as server:
        server.listen(0)
        waiting = connected(path)
        with pytest.raises(ConfigurationError, match="in use by a process with connections waiting"):
            Listener(path)
        waiting.close()


@pytest.mark.parametrize("endpoint", [Listener, Connector])
def test_other_files_are_refused(path, endpoint):
    path.write_text("precious")
    with pytest.raises(ConfigurationError, match="exists and is not a socket") as caught:
        endpoint(path)
    assert caught.value.remedy == f"choose another path; what is there: ls -ld {path}"
    assert path.read_text() == "precious"


@pytest.mark.parametrize("endpoint", [Listener, Connector])
def test_paths_have_a_limit(tmp_path, endpoint):
    with pytest.raises(ConfigurationError, match="longer than the 107 bytes"):
        endpoint(tmp_path / ("x" * 108))


def test_directory_must_exist(tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        Listener(tmp_path / "nowhere" / "guest.sock")
    assert caught.value.remedy == f"create the directory: mkdir -p {tmp_path / 'nowhere'}"


def test_directory_must_be_writable(tmp_path):
    tmp_path.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises((HostError, ConfigurationError)) as caught:
            Listener(tmp_path / "guest.sock")
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o755)
    assert "ermission denied" in str(caught.value)
    assert isinstance(caught.value, HostError)
    assert caught.value.remedy


def test_connector_waits_for_the_frontend(path):
    async def scenario():
        connector = Connector(path, retry_interval=0.01)
        pending = asyncio.create_task(connector.connection())
        await asyncio.sleep(0.03)
        assert not pending.done()
        server = listening(path)
        connection = await pending
        assert server.accept()[0].close() is None
        connection.close()
        server.close()
        connector.close()

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_connector_waits_while_nobody_listens(path):
    async def scenario():
        listening(path).close()
        connector = Connector(path, retry_interval=0.01)
        pending = asyncio.create_task(connector.connection())
        await asyncio.sleep(0.03)
        assert not pending.done()
        path.unlink()
        with listening(path):
            (await pending).close()

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_connector_outlives_what_is_in_the_way(path, caplog):
    """A file, a socket of another kind, and one that another user may not use: each is said once."""

    async def said(words):
        while words not in caplog.text:
            await asyncio.sleep(0.001)

    async def scenario():
        connector = Connector(path, retry_interval=0.01)
        pending = asyncio.create_task(connector.connection())
        path.write_text("no socket")
        await said("exists and is not a socket")
        path.unlink()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.bind(os.fspath(path))
            await said("Protocol wrong type for socket")
            await asyncio.sleep(0.05)
        assert not pending.done()
        path.unlink()
        with listening(path) as server:
            (await pending).close()
            server.accept()[0].close()
        assert caplog.text.count("Protocol wrong type for socket") == 1
        assert caplog.text.count("it is tried again until it works") == 2

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_connector_comes_again(path):
    async def scenario():
        connector = Connector(path, retry_interval=0.01)
        with listening(path) as server:
            for _ in range(3):
                connection = await connector.connection()
                server.accept()[0].close()
                connection.close()

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_connector_does_not_hammer(path):
    async def scenario():
        loop = asyncio.get_running_loop()
        connector = Connector(path, retry_interval=0.05)
        with listening(path) as server:
            began = loop.time()
            for _ in range(3):
                (await connector.connection()).close()
                server.accept()[0].close()
            assert loop.time() - began >= 0.1

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_inherited_connection_is_given_once():
    ours, theirs = socket.socketpair()
    inherited = Inherited(ours.detach())
    assert first_byte(inherited, theirs) == b"x"
    assert asyncio.run(inherited.connection()) is None
    inherited.close()
    theirs.close()


def test_inherited_connection_that_nobody_wanted_is_closed():
    ours, theirs = socket.socketpair()
    Inherited(ours.detach()).close()
    assert theirs.recv(1) == b""
    theirs.close()


def test_inherited_listener_accepts_one_after_the_other(path):
    inherited = Inherited(listening(path).detach())
    for _ in range(2):
        with connected(path) as client:
            assert first_byte(inherited, client) == b"x"
    inherited.close()


@pytest.mark.parametrize("number", [-1, 1 << 20])
def test_inherited_must_be_open(number):
    with pytest.raises(ConfigurationError, match=f"file descriptor {number} cannot be the"):
        Inherited(number)


def test_inherited_must_be_a_socket():
    descriptor = os.eventfd(0)
    with pytest.raises(ConfigurationError, match="cannot be the vhost-user socket"):
        Inherited(descriptor)
    os.close(descriptor)


@pytest.mark.parametrize(
    ("family", "kind"),
    [(socket.AF_INET, socket.SOCK_STREAM), (socket.AF_UNIX, socket.SOCK_DGRAM)],
)
def test_inherited_must_be_a_unix_stream_socket(family, kind):
    other = socket.socket(family, kind)
    with pytest.raises(ConfigurationError, match="it is not a Unix stream socket") as caught:
        Inherited(other.detach())
    assert "--fd" in caught.value.remedy


def test_inherited_must_lead_somewhere():
    idle = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with pytest.raises(ConfigurationError, match="not connected"):
        Inherited(idle.detach())
