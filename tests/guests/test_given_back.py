"""QEMU takes memory back from a guest on `xdp`: free page reporting, virtio-mem."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from backend.process import wait_until
from guests.attached import Attached, Place, booted
from guestwire.testing import Wire, transfer
from net.traffic import rebind

pytestmark = [pytest.mark.root, pytest.mark.slow]

MIB = 1 << 20
FILE = 2 * MIB
OLD = 32 * MIB
PLUGGABLE = 512 * MIB
PATTERN = b"what this page held before"
TAKEN = "pages of the guest's memory were taken away"
DIRECT = f"xdp:{Wire.interface},mode=direct"


class Listener:
    """Counts the frames on a wire that carry the pattern, in either direction."""

    def __init__(self, wire: Wire) -> None:
        self.frames = self.old = 0
        self._socket = wire.far.call(
            lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        )
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * MIB)
        self._socket.bind((wire.peer_interface, 3))
        self._socket.settimeout(0.1)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen)

    def _listen(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                frame = self._socket.recv(65536)
                self.frames += 1
                self.old += PATTERN in frame

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close()


class Monitor:
    """QEMU's monitor (QMP)."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")
        self._lines.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> Any:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while "event" in (answer := json.loads(self._lines.readline())):
            pass
        return answer["return"]

    def resize(self, size: int) -> None:
        """Have virtio-mem plug so many bytes, and wait until the guest has them."""
        self.execute("qom-set", path="/machine/peripheral/vmem", property="requested-size", value=size)
        wait_until(
            lambda: self.execute("qom-get", path="/machine/peripheral/vmem", property="size") == size, 60
        )

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def leave_pattern(attached: Attached) -> None:
    """Have the guest fill memory with the pattern, and free it."""
    attached.guest.check(f"yes '{PATTERN.decode()}' | head -c {OLD} >/tmp/old; rm /tmp/old", 120)


def bounces(attached: Attached) -> bool:
    port = attached.backend.guest()["port"]
    return port["mode"] == "bounce" and port["mode_reason"].startswith(TAKEN)


def files_cross(attached: Attached) -> None:
    for move in (transfer.to_guest, transfer.from_guest):
        assert move(attached.network, attached.guest, FILE, 120).intact


@contextlib.contextmanager
def at_work(attached: Attached) -> Iterator[Listener]:
    with attached.configured(), Listener(attached.network) as listener:
        attached.guest.wait_until(f"ping -c 1 -W 1 {attached.network.peer_address}")
        yield listener
        assert listener.frames > 0
        assert listener.old == 0


def test_free_pages_are_reported(newest: dict[str, Any], tmp_path: Path) -> None:
    options = {
        **newest,
        "modules": ["virtio_balloon"],
        "arguments": ["-device", "virtio-balloon-pci,free-page-reporting=on,vectors=0"],
    }
    with booted("qemu", {"direct": Place(DIRECT)}, tmp_path, **options) as interfaces:
        attached = interfaces["direct"]
        with at_work(attached):
            leave_pattern(attached)
            wait_until(lambda: bounces(attached), 60)
            files_cross(attached)
            assert attached.backend.guest()["memory"]["taken"] == 1


def test_virtio_mem_is_shrunk_and_grown(newest: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    options = {
        **newest,
        "modules": ["virtio_mem"],
        "kernel_options": "memhp_default_state=online_movable",
        "arguments": [
            *("-m", "maxmem=2G,slots=1", "-qmp", f"unix:{path},server=on,wait=off"),
            *("-object", f"memory-backend-memfd,id=pluggable,size={PLUGGABLE},share=on,reserve=off"),
            *("-device", "virtio-mem-pci,id=vmem,memdev=pluggable,requested-size=0"),
        ],
    }
    places = {"direct": Place(DIRECT), "auto": Place(f"xdp:{Wire.interface}")}
    with booted("qemu", places, tmp_path, **options) as interfaces:
        attached, other = interfaces["direct"], interfaces["auto"]
        wait_until(lambda: other.backend.guest()["port"]["mode"] == "bounce")
        assert "as if virtio-mem had not plugged it" in other.backend.guest()["port"]["mode_reason"]
        with contextlib.closing(Monitor(path)) as monitor, at_work(attached):
            for taken in range(1, 4):
                rebind(attached.backend, DIRECT)
                assert attached.backend.guest()["port"]["mode"] == "direct"
                monitor.resize(PLUGGABLE)
                leave_pattern(attached)
                with ThreadPoolExecutor(1) as pool:
                    load = pool.submit(files_cross, attached)
                    monitor.resize(0)
                    load.result()
                wait_until(lambda: bounces(attached))
                assert attached.backend.guest()["memory"]["taken"] == taken
                files_cross(attached)
