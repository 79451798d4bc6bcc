from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from guestwire.errors import HostError
from guestwire.host import checks
from guestwire.host.af_xdp_probe import AfXdpProbe, BindResult
from guestwire.host.capabilities import (
    AfXdpSupport,
    HostCapabilities,
    HugepagePool,
    KernelVersion,
    Kvm,
)
from guestwire.host.checks import Check, Status, interface, machine, require, worst
from guestwire.host.checks.busy_polling import check_busy_polling, probed_polling
from guestwire.host.ethtool import Channels
from guestwire.host.interface import AttachedProgram, Interface, InterruptDeferral, Peer
from guestwire.host.netlink import XdpFeature, XdpSupport
from guestwire.host.privileges import Capability

HOST = HostCapabilities(
    kernel=KernelVersion(6, 18),
    kernel_release="6.18.1",
    capabilities=frozenset(Capability),
    initial_user_namespace=True,
    memory_lock_bytes=8 << 20,
    hugepages=(HugepagePool(2 << 20, 512, 512),),
    transparent_hugepages_shmem="advise",
    af_xdp=AfXdpSupport.AVAILABLE,
    af_xdp_multi_buffer=True,
    kvm=Kvm(True, ""),
)

ZERO_COPY = XdpSupport(XdpFeature.BASIC | XdpFeature.REDIRECT | XdpFeature.XSK_ZEROCOPY, zero_copy_segments=1)
COPY_ONLY = XdpSupport(XdpFeature.BASIC | XdpFeature.REDIRECT, zero_copy_segments=1)
GENERIC_ONLY = XdpSupport(XdpFeature(0), zero_copy_segments=1)

NIC = Interface(
    name="eth7",
    index=7,
    mac="02:00:00:00:00:07",
    mtu=1500,
    ethernet=True,
    kind=None,
    driver="ice",
    up=True,
    carrier=True,
    receive_queues=1,
    transmit_queues=1,
    channels=Channels(receive=1, transmit=1, maximum_receive=8, setting="combined"),
    carries_default_route=False,
    xdp=ZERO_COPY,
    programs=(),
    peer=None,
    iommu_group_type="identity",
)

PEER = Peer(
    name="far0",
    namespace="far",
    transmit_queues=1,
    transmit_checksum_offload=False,
    transmit_vlan_offload=False,
)

YES = BindResult(True, "")
NO = BindResult(False, "the reason")


def host(**changes: Any) -> HostCapabilities:
    return dataclasses.replace(HOST, **changes)


def nic(**changes: Any) -> Interface:
    return dataclasses.replace(NIC, **changes)


def test_worst() -> None:
    ok, warning, problem = (Check("name", status, "found", "meaning") for status in Status)
    assert worst([]) is Status.OK
    assert worst([ok, ok]) is Status.OK
    assert worst([ok, warning, ok]) is Status.WARNING
    assert worst([warning, problem, ok]) is Status.PROBLEM


def test_require() -> None:
    require(Check("a", Status.OK, "f", "m"), Check("b", Status.WARNING, "f", "m", "r"))
    with pytest.raises(HostError) as caught:
        require(
            Check("a", Status.WARNING, "f", "m"),
            Check("b", Status.PROBLEM, "it is so", "it must not be", "change it"),
        )
    assert str(caught.value) == "it is so: it must not be"
    assert caught.value.remedy == "change it"


MACHINE = [
    (machine.check_kernel, {}, Status.OK, "6.18.1"),
    (machine.check_kernel, {"kernel": KernelVersion(5, 10)}, Status.PROBLEM, "5.11"),
    (machine.check_capabilities, {}, Status.OK, "CAP_NET_RAW"),
    (machine.check_capabilities, {"capabilities": frozenset()}, Status.PROBLEM, "lacks CAP_BPF"),
    (
        machine.check_capabilities,
        {"initial_user_namespace": False},
        Status.PROBLEM,
        "a user namesp",
    ),
    (machine.check_af_xdp, {}, Status.OK, "with multi-buffer"),
    (machine.check_af_xdp, {"af_xdp_multi_buffer": False}, Status.OK, "without multi-buffer"),
    (machine.check_af_xdp, {"af_xdp": AfXdpSupport.ABSENT}, Status.PROBLEM, "CONFIG_XDP_SOCKETS"),
    (machine.check_af_xdp, {"af_xdp": AfXdpSupport.NOT_PERMITTED}, Status.WARNING, "CAP_NET_RAW"),
    (machine.check_bpf, {"capabilities": frozenset()}, Status.WARNING, "not tried"),
    (machine.check_bpf, {"initial_user_namespace": False}, Status.WARNING, "not tried"),
    (machine.check_memory_lock, {}, Status.OK, "CAP_IPC_LOCK"),
    (machine.check_memory_lock, {"capabilities": frozenset()}, Status.WARNING, "8 MiB"),
    (machine.check_memory_lock, {"initial_user_namespace": False}, Status.WARNING, "LimitMEMLOCK"),
    (
        machine.check_memory_lock,
        {"capabilities": frozenset(), "memory_lock_bytes": None},
        Status.OK,
        "no limit",
    ),
    (machine.check_hugepages, {}, Status.OK, "512 of 512 pages of 2 MiB free"),
    (machine.check_hugepages, {"hugepages": ()}, Status.WARNING, "vm.nr_hugepages"),
    (
        machine.check_hugepages,
        {"hugepages": (HugepagePool(2 << 20, 0, 0),)},
        Status.WARNING,
        "none reserved",
    ),
    (machine.check_transparent_hugepages, {}, Status.OK, "advise"),
    (
        machine.check_transparent_hugepages,
        {"transparent_hugepages_shmem": "never"},
        Status.WARNING,
        "echo advise",
    ),
    (
        machine.check_transparent_hugepages,
        {"transparent_hugepages_shmem": None},
        Status.WARNING,
        "the kernel has none",
    ),
    (machine.check_kvm, {}, Status.OK, "usable"),
    (machine.check_kvm, {"kvm": Kvm(False, "no /dev/kvm")}, Status.WARNING, "no /dev/kvm"),
    (machine.check_kvm, {"kvm": Kvm(None, "no kernel at hand")}, Status.WARNING, "no kernel at hand"),
    (machine.check_tap, {}, Status.OK, "usable"),
    (machine.check_tap, {"capabilities": frozenset()}, Status.OK, "usable without CAP_NET_ADMIN"),
    (machine.check_tap, {"tap_reason": "/dev/net/tun: gone"}, Status.WARNING, "/dev/net/tun: gone"),
]

INTERFACE = [
    (interface.check_link, {}, Status.OK, "ice"),
    (interface.check_link, {"up": False}, Status.WARNING, "ip link set dev eth7 up"),
    (interface.check_link, {"carrier": False}, Status.WARNING, "without carrier"),
    (interface.check_link, {"ethernet": False}, Status.PROBLEM, "Ethernet header"),
    (interface.check_default_route, {}, Status.OK, "reachable"),
    (interface.check_default_route, {"carries_default_route": True}, Status.PROBLEM, "cut"),
    (interface.check_xdp_program, {}, Status.OK, "none attached"),
    (
        interface.check_xdp_program,
        {"programs": (AttachedProgram(0x7FFFFFFF, "native"),)},
        Status.PROBLEM,
        "number 2147483647, in native mode",
    ),
    (interface.check_native_xdp, {}, Status.OK, "basic, redirect, xsk-zerocopy; xdp-zc-max-segs 1"),
    (interface.check_native_xdp, {"xdp": None}, Status.WARNING, "does not say"),
    (interface.check_native_xdp, {"xdp": GENERIC_ONLY}, Status.WARNING, "generic mode"),
    (interface.check_native_xdp, {"peer": PEER}, Status.OK, "in the driver"),
    (
        interface.check_native_xdp,
        {"peer": dataclasses.replace(PEER, transmit_queues=4)},
        Status.WARNING,
        "ethtool -L eth7 rx 4",
    ),
    (interface.check_iommu, {}, Status.OK, "identity"),
    (interface.check_iommu, {"iommu_group_type": None}, Status.OK, "none in the way"),
    (interface.check_iommu, {"iommu_group_type": "DMA-FQ"}, Status.WARNING, "iommu.passthrough=1"),
    (interface.check_checksum, {}, Status.OK, "computed before"),
    (interface.check_checksum, {"kind": "tun"}, Status.OK, "guestwire computes them"),
    (interface.check_checksum, {"driver": "vif"}, Status.OK, "guestwire computes them"),
    (interface.check_checksum, {"xdp": GENERIC_ONLY}, Status.OK, "guestwire computes them"),
    (interface.check_checksum, {"kind": "veth", "peer": PEER}, Status.OK, "far0 computes checksums"),
    (
        interface.check_checksum,
        {"kind": "veth", "peer": dataclasses.replace(PEER, transmit_checksum_offload=True)},
        Status.WARNING,
        "ip netns exec far ethtool -K far0 tx off",
    ),
    (
        interface.check_checksum,
        {"kind": "veth", "peer": dataclasses.replace(PEER, transmit_checksum_offload=None, namespace=None)},
        Status.WARNING,
        "not visible",
    ),
    (interface.check_vlan, {}, Status.OK, "guests can use VLANs"),
    (
        interface.check_vlan,
        {"vlan_stripping": ("rx-vlan-hw-parse",)},
        Status.WARNING,
        "eth7 rx-vlan-hw-parse off",
    ),
    (interface.check_vlan, {"kind": "veth", "peer": PEER}, Status.OK, "guests can use VLANs"),
    (
        interface.check_vlan,
        {"kind": "veth", "peer": dataclasses.replace(PEER, transmit_vlan_offload=True)},
        Status.WARNING,
        "ip netns exec far ethtool -K far0 txvlan off tx-vlan-stag-hw-insert off",
    ),
    (
        interface.check_vlan,
        {"kind": "veth", "peer": dataclasses.replace(PEER, transmit_vlan_offload=None, namespace=None)},
        Status.WARNING,
        "not visible",
    ),
    *[
        (interface.check_vlan, {"kind": kind}, Status.WARNING, f"is software ({kind}): whether tags are")
        for kind in ("bridge", "tun", "macvtap")
    ],
]


def text(check: Check) -> str:
    return f"{check.found} {check.meaning} {check.remedy}"


@pytest.mark.parametrize(("function", "changes", "status", "words"), MACHINE)
def test_machine(function: Any, changes: dict[str, Any], status: Status, words: str) -> None:
    check = function(host(**changes))
    assert check.status is status
    assert words in text(check)
    if status is Status.PROBLEM:
        assert check.remedy


@pytest.mark.parametrize(("function", "changes", "status", "words"), INTERFACE)
def test_interface(function: Any, changes: dict[str, Any], status: Status, words: str) -> None:
    check = function(nic(**changes))
    assert check.status is status
    assert words in text(check)
    if status is Status.PROBLEM:
        assert check.remedy


@pytest.mark.parametrize(
    ("mtu", "status", "remedy"),
    [
        (3814, Status.OK, None),
        (3815, Status.WARNING, "ip link set dev eth7 mtu 3814"),
        (3822, Status.WARNING, "ip link set dev eth7 mtu 3814"),
        (3823, Status.PROBLEM, "ip link set dev eth7 mtu 3822"),
    ],
)
def test_mtu(mtu: int, status: Status, remedy: str | None) -> None:
    check = interface.check_mtu(nic(mtu=mtu), 3822)
    assert check.status is status
    assert check.remedy == remedy


@pytest.mark.parametrize(
    ("changes", "generic", "unfinished"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"kind": "veth", "peer": PEER}, False, True),
        ({"kind": "tun"}, False, True),
        ({"driver": "vif"}, False, True),
    ],
)
def test_unfinished_checksums(changes: dict[str, Any], generic: bool, unfinished: bool) -> None:
    assert interface.hands_over_unfinished_checksums(nic(**changes), generic) is unfinished


def test_queue() -> None:
    assert interface.check_queue(NIC, 0).status is Status.OK
    missing = interface.check_queue(NIC, 1)
    assert missing.status is Status.PROBLEM
    assert missing.remedy == "ethtool -L eth7 combined 2"


@pytest.mark.parametrize(
    ("copy", "zero_copy", "status", "words"),
    [
        (YES, YES, Status.OK, "zero-copy, direct, bounce"),
        (YES, NO, Status.WARNING, "not zero-copy: the reason"),
        (NO, NO, Status.PROBLEM, "queue 3 cannot be bound: the reason"),
    ],
)
def test_modes_found_by_binding(copy: BindResult, zero_copy: BindResult, status: Status, words: str) -> None:
    check = interface.check_af_xdp_modes(NIC, AfXdpProbe(3, copy, zero_copy))
    assert check.status is status
    assert words in check.found


@pytest.mark.parametrize(
    ("xdp", "status", "words"),
    [
        (ZERO_COPY, Status.OK, "zero-copy, direct, bounce (announced"),
        (COPY_ONLY, Status.WARNING, "direct, bounce (announced"),
        (None, Status.WARNING, "does not say"),
    ],
)
def test_modes_by_announcement(xdp: XdpSupport | None, status: Status, words: str) -> None:
    check = interface.check_af_xdp_modes(nic(xdp=xdp), None)
    assert check.status is status
    assert words in check.found


def test_bpf_is_really_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> bool:
        raise HostError("the verifier is in a bad mood", "ask again")

    monkeypatch.setattr(machine, "load_and_drop", refuse)
    refused = machine.check_bpf(HOST)
    assert refused.status is Status.PROBLEM
    assert "bad mood" in refused.meaning
    assert refused.remedy == "ask again"
    monkeypatch.setattr(machine, "load_and_drop", lambda: False)
    assert machine.check_bpf(HOST).status is Status.WARNING
    monkeypatch.setattr(machine, "load_and_drop", lambda: True)
    assert machine.check_bpf(HOST).status is Status.OK


@pytest.mark.parametrize(
    ("changes", "rights", "bound"),
    [
        ({}, frozenset(Capability), True),
        ({}, frozenset(), False),
        ({"carries_default_route": True}, frozenset(Capability), False),
        ({"programs": (AttachedProgram(0x7FFFFFFF, "native"),)}, frozenset(Capability), False),
    ],
)
def test_only_harmless_interfaces_are_bound_to(
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    rights: frozenset[Capability],
    bound: bool,
) -> None:
    probed = []

    def probe(interface: Interface, queue: int) -> AfXdpProbe:
        probed.append((interface.name, queue))
        return AfXdpProbe(queue, YES, YES)

    monkeypatch.setattr(checks, "probe", probe)
    monkeypatch.setattr(machine, "load_and_drop", lambda: True)
    monkeypatch.setattr(checks.HostCapabilities, "read", lambda: host(capabilities=rights))
    monkeypatch.setattr(checks.Interface, "open", lambda _: nic(**changes))
    found = checks.diagnose(checks.inspect("eth7", 0), 3822)
    assert probed == ([("eth7", 0)] if bound else [])
    (modes,) = [check for check in found if check.name == "af-xdp-modes"]
    assert ("not tried" in modes.found) == (not bound)


@pytest.mark.parametrize(
    ("deferral", "polls_queue", "missing", "meaning", "remedy"),
    [
        (InterruptDeferral(2, 200_000), True, False, "is not interrupted", None),
        (InterruptDeferral(2, 200_000), None, False, "is not interrupted", None),
        (InterruptDeferral(0, 0), True, True, "would go on interrupting", "echo 2 > /sys/class/net/eth7"),
        (InterruptDeferral(2, 0), None, True, "would go on interrupting", "echo 200000 > "),
        (InterruptDeferral(2, 200_000), False, True, "has no effect", "leave busy-poll out"),
        (None, True, True, "only if it does", "head /sys/class/net/eth7/"),
    ],
)
def test_busy_polling(
    deferral: InterruptDeferral | None,
    polls_queue: bool | None,
    missing: bool,
    meaning: str,
    remedy: str | None,
) -> None:
    check = check_busy_polling(nic(deferral=deferral), polls_queue, asked=True)
    assert check.status is (Status.WARNING if missing else Status.OK)
    assert meaning in check.meaning
    assert (check.remedy is None) == (remedy is None)
    assert (remedy or "") in (check.remedy or "")
    # Who does not ask for it need not care.
    assert check_busy_polling(nic(deferral=deferral), polls_queue, asked=False).status is Status.OK


def test_busy_polling_is_judged_by_the_best_mode() -> None:
    polls = BindResult(True, "", polls_queue=True)
    assert probed_polling(AfXdpProbe(0, YES, polls)) is True
    assert probed_polling(AfXdpProbe(0, polls, YES)) is False
    assert probed_polling(AfXdpProbe(0, polls, NO)) is True
    assert probed_polling(AfXdpProbe(0, NO, NO)) is None
    assert probed_polling(None) is None


def test_names_are_unique() -> None:
    found = [
        *machine.machine_checks(host(capabilities=frozenset())),
        *interface.interface_checks(nic(peer=PEER), 0, 3822, None, None),
    ]
    names = [check.name for check in found]
    assert len(set(names)) == len(names)
