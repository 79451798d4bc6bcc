"""What ``make demo`` shows, on the fastest guest."""

import subprocess
import sys

import pytest

from guestwire.errors import HostError
from guestwire.testing import images


def demo(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "guestwire", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.fixture
def uml():
    try:
        images.uml_kernel()
    except HostError as error:
        pytest.skip(str(error))


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize(("mode", "row"), [("direct", "copied once"), ("bounce", "copied twice")])
def test_guest(uml, mode, row):
    # What comes from the guest has up to 64 KiB a frame, and in direct mode may be copied once more.
    done = demo("--guest", "uml", "--size", "8", "--mode", mode)
    assert done.returncode == 0, done.stdout
    assert "Everything held" in done.stdout
    counts = [
        [int(cell.replace(",", "")) for cell in line.split("│")[2:4]]
        for line in done.stdout.splitlines()
        if row in line
    ]
    assert counts, done.stdout
    to_guest, from_guest = counts[0]
    assert to_guest >= (8 << 20) // 1500, done.stdout
    if mode == "bounce":
        assert from_guest >= (8 << 20) // (1 << 16), done.stdout


@pytest.mark.slow
def test_embedded():
    done = demo("--embedded")
    assert done.returncode == 0, done.stdout
    assert "1,000,000" in done.stdout
    assert "Everything held" in done.stdout


def test_unknown_mode():
    done = demo("--mode", "teleport")
    assert done.returncode != 0
    assert "auto, zero-copy, direct, bounce" in done.stdout
