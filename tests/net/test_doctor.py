"""guestwire doctor as a person runs it, on this machine's kernel."""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any

import pytest

from guestwire.host import netlink
from guestwire.host.xdp_program import XdpProgram
from guestwire.testing.namespaces import Namespace
from guestwire.testing.wire import Wire

pytestmark = pytest.mark.root

DOCTOR = """
import typer
from guestwire.cli.doctor import doctor
app = typer.Typer()
app.command()(doctor)
app()
"""

WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"]


def run_doctor(namespace: Namespace, *arguments: str, wrapper: list[str] | None = None) -> tuple[int, str]:
    done = namespace.run([*(wrapper or []), sys.executable, "-c", DOCTOR, *arguments])
    return done.returncode, done.stdout


def ask_doctor(
    namespace: Namespace, *arguments: str, wrapper: list[str] | None = None
) -> tuple[int, dict[str, Any], dict[str, dict[str, Any]]]:
    status, output = run_doctor(namespace, *arguments, "--json", wrapper=wrapper)
    answer = json.loads(output)
    return status, answer, {check["name"]: check for check in answer["checks"]}


def test_veth_is_usable() -> None:
    with Wire() as wire:
        status, answer, checks = ask_doctor(wire.near, wire.interface)
    assert status == 0, answer
    assert answer["version"] == 1
    assert answer["interface"] == wire.interface
    assert answer["status"] == "warning"
    assert [check["name"] for check in answer["checks"]] == [
        "kernel",
        "capabilities",
        "af-xdp",
        "bpf",
        "memory-lock",
        "hugepages",
        "transparent-hugepages",
        "kvm",
        "tap",
        "link",
        "default-route",
        "queue",
        "steering",
        "mtu",
        "xdp-program",
        "native-xdp",
        "af-xdp-modes",
        "iommu",
        "checksum",
        "vlan",
        "busy-polling",
    ]
    for name in ("kernel", "capabilities", "af-xdp", "bpf", "link", "checksum"):
        assert checks[name]["status"] == "ok", checks[name]
    assert checks["busy-polling"]["status"] == "ok"  # it is off unless asked for
    kernel_says = netlink.xdp_support(1) is not None
    assert checks["native-xdp"]["status"] == ("ok" if kernel_says else "warning")
    assert "direct" in checks["af-xdp-modes"]["found"]


def test_table_for_people() -> None:
    with Wire() as wire:
        status, output = run_doctor(wire.near, wire.interface)
        assert status == 0
        assert wire.interface in output
        status, output = run_doctor(wire.near, "nosuch0")
        assert status == 1
        assert "nosuch0" in output
        assert "link: ip -brief link" in output


def test_queue_that_is_missing() -> None:
    with Wire() as wire:
        status, _, checks = ask_doctor(wire.near, wire.interface, "--queue", "9")
    assert status == 1
    assert checks["queue"]["status"] == "problem"
    assert checks["queue"]["remedy"] == f"ethtool -l {wire.interface}"


def test_program_attached() -> None:
    with Wire() as wire:
        interface = wire.interface

        def attach() -> XdpProgram:
            return XdpProgram.attach(socket.if_nametoindex(interface), 1)

        with wire.near.call(attach):
            status, _, checks = ask_doctor(wire.near, interface)
        assert status == 1
        assert f"process {os.getpid()} (" in checks["xdp-program"]["found"]
        assert "not tried" in checks["af-xdp-modes"]["found"]
        status, _, checks = ask_doctor(wire.near, interface)
        assert status == 0


def test_default_route() -> None:
    with Wire() as wire:
        for command in (
            f"ip addr add {wire.guest_address}/24 dev {wire.interface}",
            f"ip route add default via {wire.peer_address}",
        ):
            assert wire.near.run(command.split()).returncode == 0
        status, _, checks = ask_doctor(wire.near, wire.interface)
    assert status == 1
    assert checks["default-route"]["status"] == "problem"
    assert "not tried" in checks["af-xdp-modes"]["found"]


def test_without_rights() -> None:
    with Wire() as wire:
        status, _, checks = ask_doctor(wire.near, wire.interface, wrapper=WITHOUT_RIGHTS)
    assert status == 1
    assert checks["capabilities"]["status"] == "problem"
    assert checks["capabilities"]["found"] == "none"
    assert checks["af-xdp"]["found"] == "not visible without CAP_NET_RAW"
    assert checks["bpf"]["found"] == "not tried"
    assert checks["memory-lock"]["status"] == "warning"
    assert "not tried" in checks["af-xdp-modes"]["found"]
    problems = [name for name, check in checks.items() if check["status"] == "problem"]
    assert problems == ["capabilities"]


def test_in_a_user_namespace() -> None:
    wrapper = ["unshare", "--user", "--map-root-user", "--"]
    with Namespace("user") as namespace:
        if namespace.run([*wrapper, "true"]).returncode != 0:
            pytest.skip("user namespaces cannot be made here")
        status, _, checks = ask_doctor(namespace, wrapper=wrapper)
    assert status == 1
    assert "user namespace" in checks["capabilities"]["meaning"]
    assert checks["bpf"]["found"] == "not tried"
    assert checks["memory-lock"]["status"] == "warning"


def test_what_a_guest_would_get() -> None:
    with Wire() as wire:
        status, _, checks = ask_doctor(wire.near, wire.interface, "--guest-memory", "1G")
        assert status == 0
        assert checks["guest-memory"]["status"] == "ok"
        assert checks["guest-memory"]["found"].startswith("1 GiB and 1 queue pair: ")
        assert checks["mode"]["found"] == "mode=auto comes to direct"
        assert checks["mode"]["meaning"] == "zero-copy: driver veth does not offer it"
        limit = ["--guest-memory", "1G", "--max-pinned", "1G"]
        status, _, checks = ask_doctor(wire.near, wire.interface, *limit)
        assert status == 0
        assert "max_pinned is 1 GiB" in checks["guest-memory"]["meaning"]
        assert checks["mode"]["found"] == "mode=auto comes to bounce"
        status, _, checks = ask_doctor(wire.near, wire.interface, "--guest-memory", "1G", "--queues", "2")
        assert status == 1
        assert "no receive queue 1" in checks["guest-queues"]["found"]
        assert checks["mode"]["found"] == "none"


def test_what_a_guest_would_get_without_the_right_to_lock_memory() -> None:
    wrapper = ["prlimit", "--memlock=8388608", "setpriv", "--bounding-set=-ipc_lock", "--"]
    with Wire() as wire:
        arguments = (wire.interface, "--guest-memory", "512M")
        status, _, checks = ask_doctor(wire.near, *arguments, wrapper=wrapper)
    assert status == 0
    assert checks["capabilities"]["status"] == "ok"
    assert "limit on locked memory (RLIMIT_MEMLOCK) is 8 MiB" in checks["guest-memory"]["meaning"]
    assert "CAP_IPC_LOCK" in checks["guest-memory"]["remedy"]
    assert checks["mode"]["found"] == "mode=auto comes to bounce"
