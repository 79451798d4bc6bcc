"""`guestwire rebind` among processes, guests and frontends that are busy with something else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.house import House, house, status
from backend.process import COMMAND, Backend, another_region, wait_until
from guestwire.control import ask_rebind
from guestwire.errors import ConfigurationError, GuestwireError
from guestwire.runtime import CONTROL_SOCKET
from guestwire.testing import FakeGuest, FrameStream, processes

DESCRIPTION = 2


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("house")) as made:
        yield made


def rebind(backend: Backend, guest: str, port: str) -> None:
    ask_rebind(backend.log.parent / "run" / str(backend.pid) / CONTROL_SOCKET, guest, port)


def test_the_neighbour_notices_nothing(home: House) -> None:
    with home.visitor(), FakeGuest(home.rogue) as guest:
        guest.pair.exchange(FrameStream(), 100)
        for _ in range(20):
            rebind(home.backend, "rogue", "null")
            rebind(home.backend, "rogue", "echo")
        assert guest.pair.exchange(FrameStream(), 100).received == 100
    home.neighbour.check()
    assert "Traceback" not in home.backend.text()


def test_a_frontend_that_is_busy_meanwhile(home: House) -> None:
    """Memory comes and goes, rings stop and start, and the port changes, all at the same time."""
    enough = threading.Event()
    errors: list[GuestwireError] = []

    def change_ports() -> None:
        try:
            while not enough.is_set():
                for port in ("echo", "pcap:,/dev/null"):
                    rebind(home.backend, "rogue", port)
        except GuestwireError as error:
            errors.append(error)

    with home.visitor(), another_region() as region, FakeGuest(home.rogue) as guest:
        changing = threading.Thread(target=change_ports)
        changing.start()
        try:
            stream = FrameStream()
            for _ in range(30):
                guest.frontend.add_memory_region(region)
                guest.pair.send_stream(stream, 20)
                for ring in guest.rings:
                    guest.stop_ring(ring)
                    guest.start_ring(ring)
                guest.frontend.remove_memory_region(region)
        finally:
            enough.set()
            changing.join()
        assert errors == []
        rebind(home.backend, "rogue", "echo")
        while guest.pair.receive(timeout=0, wait=False) is not None:
            pass
        assert guest.pair.exchange(FrameStream(identifier=1), 100).received == 100
        assert guest.stop_ring(guest.rings[1]) == stream.sent + 100
    home.neighbour.check()


def test_a_guest_without_a_frontend(home: House) -> None:
    rebind(home.backend, "rogue", "null")
    state = status(home.backend)["rogue"]
    assert (state.state, state.port.description) == ("listening", "null")
    rebind(home.backend, "rogue", "echo")
    with home.visitor(), FakeGuest(home.rogue) as guest:
        assert guest.pair.exchange(FrameStream(), 100).received == 100


def test_a_guest_that_is_not_there(home: House) -> None:
    with pytest.raises(ConfigurationError, match="serves no guest 'vm1'; it serves: rogue, neighbour"):
        rebind(home.backend, "vm1", "null")


def test_several_guests_of_one_name(tmp_path: Path) -> None:
    with Backend(tmp_path, "echo") as backend:
        log = tmp_path / "other.log"
        other = processes.spawn(
            [*COMMAND, "run", "--socket-path", tmp_path / "other.sock", "--name", "guest", "--port", "echo"],
            log,
            environment={"GUESTWIRE_RUNTIME_DIRECTORY": str(tmp_path / "run")},
        )
        try:
            wait_until(lambda: "listening on" in log.read_text())
            answer = backend.run("rebind", "guest", "null")
            assert answer.returncode == DESCRIPTION
            first, second = sorted((backend.pid, other.pid), key=str)
            assert f"several processes serve a guest named guest: {first}, {second}" in answer.stderr
            assert f"guestwire rebind guest PORT --pid {first}" in answer.stderr
            answer = backend.run("rebind", "guest", "null", "--pid", str(other.pid))
            assert answer.returncode == 0, answer.stderr
            assert "port null instead of echo" in log.read_text()
            assert status(backend)["guest"].port.description == "echo"
        finally:
            assert processes.stop(other) == 0
