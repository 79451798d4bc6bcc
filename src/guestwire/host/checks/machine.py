"""Checks of the machine and of this process's rights on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from guestwire.errors import HostError
from guestwire.host.capabilities import AfXdpSupport, HostCapabilities
from guestwire.host.checks.check import Check, Status
from guestwire.host.pinned_memory import locked_memory_limit
from guestwire.host.privileges import Capability, permission_error
from guestwire.host.xdp_program import MINIMUM_KERNEL, REQUIRED_CAPABILITIES, load_and_drop
from guestwire.sizes import format_size

XDP_PORT_CAPABILITIES: Final = REQUIRED_CAPABILITIES | {Capability.CAP_NET_RAW}
"""What an ``xdp`` port takes: the program, and a socket of family AF_XDP."""

# Policies under which a memfd that asks for it (MADV_HUGEPAGE, as QEMU does) gets huge pages.
_SHMEM_POLICIES_WITH_HUGE_PAGES: Final = frozenset({"always", "within_size", "advise", "force"})


def machine_checks(host: HostCapabilities) -> Iterator[Check]:
    """All checks that do not hang on one interface."""
    yield check_kernel(host)
    yield check_capabilities(host)
    yield check_af_xdp(host)
    yield check_bpf(host)
    yield check_memory_lock(host)
    yield check_hugepages(host)
    yield check_transparent_hugepages(host)
    yield check_kvm(host)
    yield check_tap(host)


def check_kernel(host: HostCapabilities) -> Check:
    """Whether the kernel is new enough for a program attached by a BPF link."""
    found = f"Linux {host.kernel_release}"
    if host.kernel < MINIMUM_KERNEL:
        return Check(
            "kernel",
            Status.PROBLEM,
            found,
            f"xdp ports need kernel {MINIMUM_KERNEL} or newer",
            f"install a kernel of version {MINIMUM_KERNEL} or newer",
        )
    return Check("kernel", Status.OK, found, f"new enough: xdp ports need {MINIMUM_KERNEL}")


def check_capabilities(host: HostCapabilities) -> Check:
    """Whether this process may load XDP programs and make AF_XDP sockets."""
    held = XDP_PORT_CAPABILITIES & host.capabilities
    found = ", ".join(sorted(capability.name for capability in held)) or "none"
    if held == XDP_PORT_CAPABILITIES and host.initial_user_namespace:
        return Check("capabilities", Status.OK, found, "sufficient for xdp ports")
    error = permission_error(
        "an xdp port",
        XDP_PORT_CAPABILITIES,
        held=host.capabilities,
        initial_user_namespace=host.initial_user_namespace,
    )
    return Check("capabilities", Status.PROBLEM, found, str(error), error.remedy)


def check_af_xdp(host: HostCapabilities) -> Check:
    """Whether the kernel has AF_XDP sockets."""
    name = "af-xdp"
    if host.af_xdp is AfXdpSupport.ABSENT:
        return Check(
            name,
            Status.PROBLEM,
            "the kernel has no AF_XDP sockets",
            "xdp ports are not possible",
            "use a kernel built with CONFIG_XDP_SOCKETS",
        )
    if host.af_xdp is AfXdpSupport.NOT_PERMITTED:
        return Check(name, Status.WARNING, "not visible without CAP_NET_RAW", "xdp ports may be possible")
    if host.af_xdp_multi_buffer:
        return Check(name, Status.OK, "present, with multi-buffer frames", "xdp ports are possible")
    return Check(
        name,
        Status.OK,
        "present, without multi-buffer frames (kernel 6.6)",
        "xdp ports are possible for frames that fit in one buffer",
    )


def check_bpf(host: HostCapabilities) -> Check:
    """Whether this process can really load the XDP program: tried, not guessed."""
    if not host.capabilities >= REQUIRED_CAPABILITIES or not host.initial_user_namespace:
        return Check("bpf", Status.WARNING, "not tried", "loading takes CAP_BPF and CAP_NET_ADMIN")
    try:
        compiled = load_and_drop()
    except HostError as error:
        return Check("bpf", Status.PROBLEM, "the XDP program is refused", str(error), error.remedy)
    if not compiled:
        return Check(
            "bpf",
            Status.WARNING,
            "the XDP program loads, but is interpreted",
            "every frame takes longer",
            "sysctl net.core.bpf_jit_enable=1",
        )
    return Check("bpf", Status.OK, "the XDP program loads, compiled", "frames can be redirected")


def check_memory_lock(host: HostCapabilities) -> Check:
    """Whether guest memory can be registered with AF_XDP, which pins all of it."""
    name = "memory-lock"
    limit = locked_memory_limit(host)
    if limit is None:
        found = "no limit" if host.memory_lock_bytes is None else "no limit (CAP_IPC_LOCK)"
        return Check(name, Status.OK, found, "guest memory can be registered")
    return Check(
        name,
        Status.WARNING,
        f"{format_size(limit)} for all processes of this user",
        "modes zero-copy and direct pin all memory of a guest; without that only bounce is left",
        "grant CAP_IPC_LOCK, or set LimitMEMLOCK=infinity (systemd) or `ulimit -l unlimited`",
    )


def check_hugepages(host: HostCapabilities) -> Check:
    """Whether there are reserved huge pages to give to guests."""
    pools = [pool for pool in host.hugepages if pool.total]
    if pools:
        found = ", ".join(
            f"{pool.free} of {pool.total} pages of {format_size(pool.page_bytes)} free" for pool in pools
        )
        return Check("hugepages", Status.OK, found, "guests on them can have every frame in zero copy")
    return Check(
        "hugepages",
        Status.WARNING,
        "none reserved",
        "in mode zero-copy, frames that cross the border of scattered 4 KiB pages are copied",
        "sysctl vm.nr_hugepages=512 for each GiB of guest memory, and hugetlb=on for the guest's "
        "memory-backend-memfd",
    )


def check_transparent_hugepages(host: HostCapabilities) -> Check:
    """Whether shared memory, which guest memory is, gets huge pages without reservation."""
    name = "transparent-hugepages"
    policy = host.transparent_hugepages_shmem
    if policy is None:
        return Check(name, Status.WARNING, "the kernel has none", "only reserved huge pages are left")
    found = f"shared memory: {policy}"
    if policy in _SHMEM_POLICIES_WITH_HUGE_PAGES:
        return Check(name, Status.OK, found, "guest memory gets huge pages where there are some")
    return Check(
        name,
        Status.WARNING,
        found,
        "guest memory lies in scattered 4 KiB pages unless it is on reserved huge pages",
        "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled",
    )


def check_kvm(host: HostCapabilities) -> Check:
    """Whether guests run at full speed; guestwire itself does not need KVM."""
    if host.kvm.usable:
        return Check("kvm", Status.OK, "usable", "guests can run at full speed")
    if host.kvm.usable is None:
        return Check(
            "kvm", Status.WARNING, host.kvm.reason, "whether guests run is not known", "guestwire demo"
        )
    return Check(
        "kvm",
        Status.WARNING,
        host.kvm.reason,
        "guests run only with -accel tcg, which is many times slower, and with QEMU 7.2 only without MSI-X",
        "modprobe kvm_intel or kvm_amd; join the group that owns /dev/kvm; without KVM add vectors=0 to the "
        "device (README.md)",
    )


def check_tap(host: HostCapabilities) -> Check:
    """Whether TAP interfaces can be opened; making one takes CAP_NET_ADMIN as well."""
    if host.tap_reason:
        return Check(
            "tap",
            Status.WARNING,
            host.tap_reason,
            "tap ports are possible only on queues that are open already (tap:fd=N)",
            "modprobe tun; in a container, give it /dev/net/tun",
        )
    if Capability.CAP_NET_ADMIN not in host.capabilities:
        meaning = "tap ports can use interfaces that were made for this user (ip tuntap add ... user NAME)"
        return Check("tap", Status.OK, "usable without CAP_NET_ADMIN", meaning)
    return Check("tap", Status.OK, "usable", "tap ports are possible")
