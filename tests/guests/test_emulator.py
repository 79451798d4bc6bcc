"""Which QEMU is run: the installed one if it will do."""

import re
import shutil
import subprocess

import pytest

from guestwire.errors import HostError
from guestwire.testing import emulator
from guestwire.testing.accelerator import QEMU
from guestwire.testing.emulator import emulator_with
from guestwire.testing.packages import Apt


@pytest.fixture
def installed():
    path = shutil.which(QEMU)
    if path is None:
        pytest.skip(f"{QEMU} is not installed")
    return path


def test_the_installed_one_is_taken_if_it_has_the_device(installed):
    assert emulator_with("virtio-net-pci") == [installed]


def test_another_one_runs_from_where_it_was_unpacked(installed):
    try:
        command = emulator_with("igb")
    except HostError as error:
        pytest.skip(str(error))
    answer = subprocess.run([*command, "-device", "igb,help"], capture_output=True, text=True, check=True)
    assert "netdev=" in answer.stdout


def test_the_newest_one_runs_by_its_own_loader(newest):
    (version,) = re.findall(r"version (\d+)", run([*newest["emulator"], "--version"]))
    assert int(version) >= 11
    assert "mrg_rxbuf=" in run([*newest["emulator"], "-device", "virtio-net-pci,help"])


def run(command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_without_one_the_package_is_named(monkeypatch):
    monkeypatch.setattr(emulator.shutil, "which", lambda _: None)
    with pytest.raises(HostError, match="is not installed") as raised:
        emulator_with("igb")
    assert "qemu-system-x86" in raised.value.remedy


def test_only_what_the_emulator_needs_is_taken():
    class Plan(Apt):
        def additions(self, package, suite):
            assert (package, suite) == ("qemu-system-x86", "codename-backports")
            names = ("libnew1", "qemu-utils", "qemu-system-common", "qemu-system-gui", "qemu-block-extra")
            return [f"{name}=1:10.0" for name in (*names, "qemu-system-x86", "seabios")]

    taken = emulator._packages(Plan(), "codename-backports")
    assert [name.partition("=")[0] for name in taken] == [
        "libnew1",
        "qemu-system-common",
        "qemu-system-x86",
        "seabios",
    ]


def test_the_newest_one_is_taken_whole():
    class Plan(Apt):
        def additions(self, package, suite):
            assert (package, suite) == ("qemu-system-x86", "sid")
            names = ("base-files", "libc6", "libc6-dev", "libc-bin", "libpython3.14", "libnew1", "qemu-utils")
            return [f"{name}=1:11.1" for name in (*names, "qemu-system-x86", "zstd")]

    taken = emulator._newest_packages(Plan())
    assert sorted(name.partition("=")[0] for name in taken) == [
        "ipxe-qemu/sid",
        "libc6/sid",
        "libnew1",
        "qemu-system-common/sid",
        "qemu-system-data/sid",
        "qemu-system-x86/sid",
        "seabios/sid",
    ]
