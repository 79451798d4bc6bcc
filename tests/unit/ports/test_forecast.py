"""What doctor foresees for a guest: the decision is that of ``run``, from facts made up here."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from guestwire.host.af_xdp_probe import AfXdpProbe
from guestwire.host.checks import Check, Findings, Status
from guestwire.host.steering import Steering
from guestwire.ports import forecast
from guestwire.ports.forecast import PlannedGuest, guest_checks
from unit.host.test_checks import COPY_ONLY, NO, YES, host, nic

MIB, GIB = 1 << 20, 1 << 30
SMALL = PlannedGuest(memory_bytes=1 << 20)


# Every frame goes to one of four queues.
FOUR_QUEUES = Steering(
    interface="eth7",
    mac="02:00:00:00:00:07",
    receive_queues=4,
    queue_setting="combined",
    indirection_table=(0, 1, 2, 3),
    rules=(),
    sampling_remedy=None,
    addresses=(),
    upper_interfaces=(),
    virtual_functions=0,
)
ONE_QUEUE = dataclasses.replace(FOUR_QUEUES, receive_queues=1, indirection_table=(0,))


@pytest.fixture(autouse=True)
def circumstances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "BOUNCE_FRAMES", 512)


def foresee(
    guest: PlannedGuest = SMALL,
    *,
    rights: bool = True,
    probe: AfXdpProbe | None = None,
    steering: Steering | None = ONE_QUEUE,
    checks: tuple[Check, ...] = (),
    **interface: Any,
) -> dict[str, Check]:
    machine = host() if rights else host(capabilities=frozenset())
    findings = Findings(machine, 0, nic(**interface), probe=probe, steering=steering)
    return {check.name: check for check in guest_checks(findings, guest, checks)}


@pytest.mark.parametrize(
    ("facts", "mode", "why"),
    [
        ({}, "zero-copy", "nobody copies"),
        ({"probe": AfXdpProbe(0, YES, YES)}, "zero-copy", "nobody copies"),
        ({"probe": AfXdpProbe(0, YES, NO)}, "direct", "zero-copy: the reason"),
        ({"xdp": COPY_ONLY}, "direct", "zero-copy: driver ice does not offer it"),
        ({"xdp": None}, "zero-copy", "nobody copies"),
        ({"mtu": 3822, "driver": "igb"}, "direct", "frames of MTU 3822 do not fit"),
        ({"iommu_group_type": "DMA"}, "direct", "zero-copy: the IOMMU translates"),
        ({"rights": False, "guest": PlannedGuest(memory_bytes=GIB)}, "bounce", "(RLIMIT_MEMLOCK) is 8 MiB"),
        ({"guest": PlannedGuest(memory_bytes=GIB, max_pinned=GIB)}, "bounce", "and max_pinned is 1 GiB"),
        ({"guest": PlannedGuest(memory_bytes=1 << 46)}, "bounce", "the kernel binds at most"),
    ],
)
def test_mode(facts: dict[str, Any], mode: str, why: str) -> None:
    found = foresee(**facts)["mode"]
    assert found.found == f"mode=auto comes to {mode}"
    assert why in found.meaning
    assert found.status is (Status.OK if mode == "zero-copy" else Status.WARNING)


@pytest.mark.parametrize(
    ("steering", "queue_pairs", "why"),
    [
        (FOUR_QUEUES, 1, "zero-copy: RSS spreads the frames of eth7 over queues 0 to 3"),
        (None, 4, "zero-copy: the driver does not say whose frames can reach the queues"),
        (FOUR_QUEUES, 4, ""),
    ],
)
def test_queues_are_the_guests_alone(steering: Steering | None, queue_pairs: int, why: str) -> None:
    guest = PlannedGuest(memory_bytes=MIB, queue_pairs=queue_pairs)
    found = foresee(guest, steering=steering, receive_queues=4)["mode"]
    assert found.found == f"mode=auto comes to {'direct' if why else 'zero-copy'}"
    assert why in found.meaning


def test_no_mode_where_run_refuses() -> None:
    route = Check("default-route", Status.PROBLEM, "f", "m")
    found = foresee(checks=(route, Check("kvm", Status.WARNING, "f", "m")))["mode"]
    assert found.status is Status.PROBLEM
    assert found.meaning == "an xdp port is refused: see default-route"
    found = foresee(PlannedGuest(memory_bytes=MIB, max_pinned=MIB))["mode"]
    assert found.meaning == "an xdp port is refused: see guest-memory"


def test_a_queue_for_each_pair() -> None:
    found = foresee(PlannedGuest(memory_bytes=MIB, queue_pairs=4), receive_queues=4)
    assert found["guest-queues"].status is Status.OK
    found = foresee(PlannedGuest(memory_bytes=MIB, queue_pairs=4), receive_queues=3)
    assert "no receive queue 3" in found["guest-queues"].found
    assert found["guest-queues"].remedy == "ethtool -L eth7 combined 4"
    assert found["mode"].meaning == "an xdp port is refused: see guest-queues"


def test_what_memory_costs() -> None:
    found = foresee(PlannedGuest(memory_bytes=4 * GIB))["guest-memory"]
    assert found.status is Status.OK
    # 1,049,600 pages: 152 bytes each in mode direct; in chunks of 2 KiB and zero copy 304.
    assert found.found == (
        "4 GiB and 1 queue pair: modes zero-copy and direct pin 4,100 MiB; kernel memory for each queue: "
        "152.15 MiB in mode direct, at most 304.3 MiB in mode zero-copy"
    )
    assert found.meaning.startswith("the guest's memory can be registered: no limit stands against it")
    assert "free-page-reporting=on, virtio-mem, an inflated balloon" in found.meaning
    assert "choose mode=bounce" in found.meaning
    found = foresee(PlannedGuest(memory_bytes=4 * GIB, queue_pairs=2, max_pinned=9 * GIB))["guest-memory"]
    assert "pin 4,102 MiB once for each of them, 8,204 MiB as limits count" in found.found
    assert ": max_pinned is 9 GiB; " in found.meaning


def test_not_even_bounce_frames() -> None:
    # Three queue pairs register three times 2 MiB each, for themselves.
    found = foresee(PlannedGuest(memory_bytes=GIB, queue_pairs=3), rights=False)["guest-memory"]
    assert found.status is Status.PROBLEM
    assert "not even bounce frames can be registered: 18 MiB" in found.meaning
    assert found.remedy is not None
    assert "CAP_IPC_LOCK" in found.remedy


def test_without_an_interface() -> None:
    (found,) = guest_checks(Findings(host()), SMALL, ())
    assert found.name == "guest-memory"
