from __future__ import annotations

import json

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from guestwire.cli import doctor as command
from guestwire.host.checks import Check, Status
from guestwire.ports import geometry

GOOD = Check("kernel", Status.OK, "Linux 6.18", "new enough")
POOR = Check("hugepages", Status.WARNING, "none [reserved]", "frames are copied", "sysctl " * 40)
BAD = Check("queue", Status.PROBLEM, "no queue 3", "it cannot be bound", "ethtool -L eth7 rx 4")


def run(
    monkeypatch: pytest.MonkeyPatch, checks: list[Check], *arguments: str
) -> tuple[int, str, list[tuple[str | None, int]]]:
    asked: list[tuple[str | None, int]] = []

    def diagnose(interface: str | None, queue: int, largest_mtu: int) -> list[Check]:
        assert largest_mtu == geometry.largest_mtu()
        asked.append((interface, queue))
        return checks

    monkeypatch.setattr(command, "diagnose", diagnose)
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
    assert "sysctl " * 40 in output
    assert "queue: ethtool -L eth7 rx 4" in output
    assert "will be refused" in output
