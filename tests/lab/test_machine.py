"""The lab's machine has what the tests inside it count on."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestwire.testing import images
from lab.machine import NAMESPACE, NIC, PEER, LabMachine, run_inside

pytestmark = [pytest.mark.root, pytest.mark.slow]


def test_frames_cross_between_the_two_interfaces(machine: LabMachine) -> None:
    machine.check(f"ip address add 192.0.2.2/24 dev {NIC}")
    machine.check(f"ip -n {NAMESPACE} address add 192.0.2.1/24 dev {PEER}")
    try:
        machine.check(f"{images.busybox()} ping -q -c 3 -i 0.2 -W 5 192.0.2.1")
    finally:
        machine.check(f"ip address flush dev {NIC} && ip -n {NAMESPACE} address flush dev {PEER}")


def test_what_is_written_inside_stays_inside_but_for_results(machine: LabMachine, tmp_path: Path) -> None:
    machine.check(f"echo inside >{tmp_path}/file && echo result >/run/out/file")
    assert not (tmp_path / "file").exists()
    assert (machine.results / "file").read_text() == "result\n"


def test_guestwire_finds_zero_copy_and_serves_a_guest_with_it(machine: LabMachine) -> None:
    run_inside(machine, "test_smoke.py")
