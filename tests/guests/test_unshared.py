"""QEMU guests whose memory is not shared, of which guestwire says so, and one that shares it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.process import Backend, wait_until
from guestwire.start_watch import EMPTY_MEMORY, NO_MEMORY
from guestwire.testing.guests import QemuGuest, VhostUserDevice

pytestmark = [pytest.mark.root, pytest.mark.slow]


class Unshared(QemuGuest):
    """A guest whose memory backend is not shared, or that has none."""

    backend = True

    def _command(self, channel_fd: int, folder: Path) -> list[str]:
        command = super()._command(channel_fd, folder)
        if self.backend:
            return [word.replace("share=on", "share=off") for word in command]
        at = next(i for i, word in enumerate(command) if word.startswith("memory-backend-memfd"))
        del command[at - 1 : at + 1]
        return [word.replace(",memory-backend=memory", "") for word in command]


class WithoutBackend(Unshared):
    backend = False


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    with Backend(tmp_path, "echo") as made:
        yield made


@pytest.mark.parametrize(
    ("kind", "notice"),
    [(Unshared, EMPTY_MEMORY), (WithoutBackend, NO_MEMORY)],
    ids=["share=off", "no backend"],
)
def test_memory_that_is_not_shared(backend: Backend, kind: type[Unshared], notice: str) -> None:
    with kind([VhostUserDevice(backend.socket)]):
        wait_until(lambda: backend.guest()["notices"] == [notice], 60)
        assert backend.text().count(notice) == 1


def test_nothing_is_said_of_a_guest_whose_interface_is_down(backend: Backend) -> None:
    with QemuGuest([VhostUserDevice(backend.socket)]):
        wait_until(lambda: backend.guest()["state"] == "running", 60)
        assert backend.guest()["counters"]["worker"]["kicks"] > 0  # of QEMU's own
        time.sleep(2)  # several looks
        assert backend.guest()["notices"] == []
