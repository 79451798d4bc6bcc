from __future__ import annotations

import json
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from guestwire.cli import doctor as command
from guestwire.errors import ConfigurationError
from guestwire.host.checks import Check, Findings, Status
from guestwire.ports import geometry
from guestwire.ports.forecast import PlannedGuest
from unit.host.test_checks import HOST

GOOD = Check("kernel", Status.OK, "Linux 6.18", "new enough")
POOR = Check("hugepages", Status.WARNING, "none [reserved]", "frames are copied", " ".join(["sysctl"] * 40))
BAD = Check("queue", Status.PROBLEM, "no queue 3", "it cannot be bound", "ethtool -L eth7 rx 4")


def run(
    monkeypatch: pytest.MonkeyPatch, checks: list[Check], *arguments: str
) -> tuple[int, str, list[tuple[str | None, int]]]:
    asked: list[tuple[str | None, int]] = []

    def inspect(interface: str | None, queue: int) -> Findings:
        asked.append((interface, queue))
        return Findings(HOST, queue)

    def diagnose(findings: Findings, largest_mtu: int, queue_pairs: int) -> list[Check]:
        assert findings.host == HOST
        assert largest_mtu == geometry.largest_mtu(multi_buffer=bool(HOST.af_xdp_multi_buffer))
        assert queue_pairs == (2 if "--queues" in arguments else 1)
        return list(checks)

    def guest_checks(findings: Findings, guest: PlannedGuest, so_far: list[Check]) -> list[Check]:
        assert so_far == checks
        return [Check("guest-memory", Status.OK, repr(guest), "m")]

    monkeypatch.setattr(command, "inspect", inspect)
    monkeypatch.setattr(command, "tried_kvm", lambda: HOST.kvm)
    monkeypatch.setattr(command, "diagnose", diagnose)
    monkeypatch.setattr(command, "guest_checks", guest_checks)
    application = typer.Typer()
    application.command()(command.doctor)
    result = CliRunner().invoke(application, list(arguments))
    return result.exit_code, result.stdout, asked


@pytest.mark.parametrize(("checks", "status"), [([GOOD], 0), ([GOOD, POOR], 0), ([GOOD, BAD, POOR], 1)])
def test_exit_status(monkeypatch: pytest.MonkeyPatch, checks: list[Check], status: int) -> None:
    for arguments in ((), ("--json",)):
        assert run(monkeypatch, checks, *arguments)[0] == status


def test_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, [GOOD])[2] == [(None, 0)]
    assert run(monkeypatch, [GOOD], "eth7", "--queue", "3")[2] == [("eth7", 3)]
    assert run(monkeypatch, [GOOD], "--queue", "-1")[0] == 2


def test_json(monkeypatch: pytest.MonkeyPatch) -> None:
    _, output, _ = run(monkeypatch, [GOOD, BAD], "eth7", "--json")
    assert json.loads(output) == {
        "version": 1,
        "interface": "eth7",
        "status": "problem",
        "checks": [
            {
                "name": "kernel",
                "status": "ok",
                "found": "Linux 6.18",
                "meaning": "new enough",
                "remedy": None,
            },
            {
                "name": "queue",
                "status": "problem",
                "found": "no queue 3",
                "meaning": "it cannot be bound",
                "remedy": "ethtool -L eth7 rx 4",
            },
        ],
    }


def test_table_keeps_brackets_and_does_not_break_commands() -> None:
    console = Console(width=60, record=True)
    command.show([GOOD, POOR, BAD], console)
    output = console.export_text()
    assert "none [reserved]" in output
    assert POOR.remedy in output
    assert "queue: ethtool -L eth7 rx 4" in output
    assert "will be refused" in output


@pytest.mark.parametrize(
    ("options", "guest"),
    [
        (["--guest-memory", "4G"], PlannedGuest(memory_bytes=4 << 30)),
        (
            ["--guest-memory", "1.5G", "--queues", "2", "--max-pinned", "4G"],
            PlannedGuest(memory_bytes=3 << 29, queue_pairs=2, max_pinned=4 << 30),
        ),
    ],
)
def test_a_planned_guest(monkeypatch: pytest.MonkeyPatch, options: list[str], guest: PlannedGuest) -> None:
    status, output, _ = run(monkeypatch, [GOOD], "eth7", "--json", *options)
    assert status == 0
    answers = {check["name"]: check["found"] for check in json.loads(output)["checks"]}
    assert answers == {"kernel": GOOD.found, "guest-memory": repr(guest)}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"guest_memory": "4096"}, "--guest-memory: '4096' is no size"),
        ({"guest_memory": "4G", "max_pinned": "much"}, "--max-pinned: 'much' is no size"),
        ({"max_pinned": "4G"}, "--queues and --max-pinned describe a guest"),
        ({"queues": 2}, "--queues and --max-pinned describe a guest"),
    ],
)
def test_what_describes_no_guest(options: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigurationError, match=error):
        command.doctor(None, **options)
