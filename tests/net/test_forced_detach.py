"""Somebody takes our XDP program off its interface: it is put back, or it is said why that cannot be."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path
from socket import if_nametoindex
from typing import Any

import pytest

from backend.house import complaints, status
from backend.process import Backend, wait_until
from guestwire.host import bpf
from guestwire.testing import Wire
from guestwire.virtio.net_config import NetConfig, NetStatus
from net.queues import queues_by_address
from net.tenants import QUEUES, programs, tenants

pytestmark = pytest.mark.root

LINK_GET_FD_BY_ID, LINK_DETACH = 30, 34  # enum bpf_cmd
NATIVE = 1 << 2
PASS_ALL = bpf.instruction(0xB7, immediate=2) + bpf.instruction(0x95)


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire(queues=QUEUES) as made, queues_by_address(made):
        yield made


class _Number(ctypes.Structure):
    _fields_ = (("number", ctypes.c_uint32),)


def ask(command: Any, number: int) -> int:
    return bpf._bpf(command, _Number(number))


def detach(backend: Backend) -> None:
    """Detach the link of a process's XDP program, as `bpftool link detach` does."""
    identifiers = set()
    for descriptor in Path(f"/proc/{backend.pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            identifiers |= set(re.findall(r"^link_id:\s*(\d+)$", descriptor.read_text(), re.MULTILINE))
    (identifier,) = identifiers
    fd = ask(LINK_GET_FD_BY_ID, int(identifier))
    try:
        ask(LINK_DETACH, fd)
    finally:
        os.close(fd)


def test_it_is_put_back(wire: Wire, tmp_path: Path) -> None:
    with tenants(tmp_path, wire, 2) as house:
        house.exchange(*house.all)
        before = programs(wire)
        for times in (1, 2):
            detach(house.backend)
            wait_until(lambda: programs(wire) == before)
            house.exchange(*house.all)
            wait_until(lambda: {guest.state for guest in status(house.backend).values()} == {"running"})
            said = complaints(house.backend.text())
            assert len(said) == times
            assert said[-1].endswith(
                f"{wire.interface}: somebody had taken the XDP program off; it is attached anew"
            )


def test_it_is_put_back_after_a_rebind_from_a_port_without_an_interface(wire: Wire, tmp_path: Path) -> None:
    with tenants(tmp_path, wire, 1) as house:
        (name,) = status(house.backend)
        port = status(house.backend)[name].port.description
        for description in ("null", port):
            assert house.backend.run("rebind", name, description).returncode == 0
        before = programs(wire)
        detach(house.backend)
        wait_until(lambda: programs(wire) == before)


def test_another_program_is_in_its_place(wire: Wire, tmp_path: Path) -> None:
    def link_is_up() -> bool:
        config = NetConfig.decode(house.all[0].guest.frontend.get_config(0, 12))
        return NetStatus.LINK_UP in config.status

    with tenants(tmp_path, wire, 1) as house:
        house.exchange(*house.all)
        other = in_its_place(wire, house.backend)
        try:
            wait_until(lambda: status(house.backend)["vm0"].state != "running")
            state = status(house.backend)["vm0"].state
            assert state.startswith("cut off: somebody has taken the XDP program off: interface wire0 has an")
            assert "named 'somebody_else', in native mode" in state
            assert f"process {os.getpid()} (" in state
            assert not link_is_up()
        finally:
            os.close(other)
        wait_until(lambda: status(house.backend)["vm0"].state == "running")
        assert link_is_up()
        house.exchange(*house.all)
        (error,) = [line for line in complaints(house.backend.text()) if "attached anew" not in line]
        assert "somebody has taken the XDP program off" in error
        assert error.endswith("; or use another interface")


def in_its_place(wire: Wire, backend: Backend) -> int:
    """Detach a process's XDP program and attach another; return the descriptor that keeps it attached."""
    program = bpf.load_program(
        PASS_ALL,
        program_type=bpf.PROGRAM_TYPE_XDP,
        attach_type=bpf.ATTACH_TYPE_XDP,
        flags=0,
        name=b"somebody_else",
    )
    try:
        while True:
            detach(backend)
            # It may be back already.
            with contextlib.suppress(OSError):
                return wire.near.call(
                    lambda: bpf.create_xdp_link(program, if_nametoindex(wire.interface), NATIVE)
                )
    finally:
        os.close(program)
