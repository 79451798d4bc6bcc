"""``guestwire bench``: short real runs, without privileges, that leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from backend.process import wait_until

COMMAND = (sys.executable, "-m", "guestwire", "bench")
# Within a window both sides have a processor now and then, on a busy machine, too.
SECONDS = ("--seconds", "0.25")
SHORT = ("--rings", "256", "--queue-pairs", "1", "--windows", "2", *SECONDS)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the command keeps its files; sockets have short names."""
    with tempfile.TemporaryDirectory(prefix="gw-") as name:
        yield Path(name)


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env={**os.environ, "TMPDIR": str(folder), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def results(text: str) -> list[dict[str, Any]]:
    return list(json.loads(text)["results"])


def test_echo_with_every_kind_of_frame(folder: Path) -> None:
    picture = folder / "bench.html"
    done = bench(
        folder, "--port", "echo", "--sizes", "64,1500,65536", *SHORT, "--json", "-", "--picture", picture
    )
    assert done.returncode == 0, done.stderr
    measured = results(done.stdout)
    assert [result["frame_bytes"] for result in measured] == [64, 1500, 65536]
    for result in measured:
        assert result["frames_per_second"]["median"] > 0
        assert result["backend_cpu_seconds"] > 0
        assert result["limit"]["evidence"]
        assert result["round_trips"]["count"] > 0
        assert 0 < result["round_trips"]["p50"] <= result["round_trips"]["p99"]
        for window in result["windows"]:
            # An echo returns what it takes: what differs is on its way at the window's ends.
            assert abs(window["sent"] - window["received"]) <= 1024
            assert window["received_bytes"] == window["received"] * result["frame_bytes"]
            assert not window["drops"]
    assert "echo" in done.stderr
    ET.fromstring(picture.read_text().removeprefix("<!DOCTYPE html>\n"))
    picture.unlink()
    assert not list(folder.iterdir())


def test_null_with_two_queue_pairs(folder: Path) -> None:
    figures = folder / "bench.json"
    options = ("--sizes", "64", "--rings", "64", "--queue-pairs", "2", "--windows", "1", *SECONDS)
    done = bench(folder, "--port", "null", *options, "--json", str(figures))
    assert done.returncode == 0, done.stderr
    (result,) = results(figures.read_text())
    assert result["queue_pairs"] == 2
    assert result["frames_per_second"]["median"] > 0
    assert result["windows"][0]["received"] == 0
    assert "limited by" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_can_be_interrupted(folder: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        # A test run in the background ignores SIGINT, and what it starts would, too.
        ["env", "--default-signal=INT,HUP", *COMMAND, "--seconds", "0.5"],
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        # The counter file is there as soon as the backend serves the first guest.
        wait_until(lambda: list(folder.rglob("*.counters")), 30)
        (backend,) = (int(path.parent.name) for path in folder.rglob("*.counters"))
        process.send_signal(number)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output
    assert not Path(f"/proc/{backend}").exists()
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--sizes", "many"), "--sizes many"),
        (("--cpus", "0,9999"), "CPU 9999 is not among ours"),
        (("--picture", "bench.png"), "bench.png is neither .html nor .svg"),
        (("--port", "nonsense"), "nonsense"),
    ],
)
def test_what_cannot_be_done(folder: Path, options: tuple[str, ...], error: str) -> None:
    done = bench(folder, *options)
    assert done.returncode != 0
    assert error in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(folder.iterdir())
