"""What this machine allows this process: the facts that do not hang on one interface.

Everything is read, nothing is changed.  What a process without privileges cannot see is ``None``.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import re
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from guestwire.host import af_xdp
from guestwire.host.privileges import (
    Capability,
    effective_capabilities,
    in_initial_user_namespace,
)

_HUGEPAGES: Final = Path("/sys/kernel/mm/hugepages")
_TRANSPARENT_HUGEPAGES: Final = Path("/sys/kernel/mm/transparent_hugepage")
_KVM: Final = Path("/dev/kvm")
_TUN: Final = Path("/dev/net/tun")

# linux/kvm.h: _IO(KVMIO, 0x00), _IO(KVMIO, 0x01), and the only version since 2007.
_KVM_GET_API_VERSION: Final = 0xAE00
_KVM_CREATE_VM: Final = 0xAE01
_KVM_API_VERSION: Final = 12

# An interface index that no kernel gives out.
_NO_INTERFACE: Final = 0x7FFFFFFF


class AfXdpSupport(enum.Enum):
    """Whether a socket of family AF_XDP can be made here."""

    AVAILABLE = "available"
    NOT_PERMITTED = "not permitted"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True, order=True)
class KernelVersion:
    """What a kernel calls itself; a distribution's may have features of later versions."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


@dataclass(frozen=True, slots=True)
class HugepagePool:
    """The kernel's reserved pages of one size.

    Attributes:
        page_bytes: the size of a page.
        total: how many pages there are.
        free: how many of them nobody uses.
    """

    page_bytes: int
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Kvm:
    """Whether guests can run at full speed.

    Attributes:
        usable: whether a virtual machine can be made with KVM, and, where that was tried, runs; None if it
            could not be tried.
        reason: why not; empty if it can.
    """

    usable: bool | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCapabilities:
    """The machine and this process's rights on it, at one moment.

    Attributes:
        kernel: the kernel's version.
        kernel_release: the kernel's full name for itself, as ``uname -r`` prints it.
        capabilities: the effective capabilities out of those that matter.
        initial_user_namespace: ``False`` in a user namespace of its own, where capabilities do not
            count for BPF and locked memory.
        memory_lock_bytes: the limit on locked memory (RLIMIT_MEMLOCK); ``None`` if there is none.
        hugepages: the pools, smallest pages first.
        transparent_hugepages_shmem: the policy for shared memory: ``always``, ``within_size``,
            ``advise``, ``never``, ``deny`` or ``force``.
        af_xdp: whether a socket of the family can be made.
        af_xdp_multi_buffer: whether the kernel knows frames of several buffers (XDP_USE_SG, 6.6).
        kvm: whether guests can run at full speed.
        tap_reason: why there can be no TAP interfaces; empty if there can.
    """

    kernel: KernelVersion
    kernel_release: str
    capabilities: frozenset[Capability]
    initial_user_namespace: bool
    memory_lock_bytes: int | None
    hugepages: tuple[HugepagePool, ...]
    transparent_hugepages_shmem: str | None
    af_xdp: AfXdpSupport
    af_xdp_multi_buffer: bool | None
    kvm: Kvm
    tap_reason: str = ""

    @classmethod
    def read(cls) -> HostCapabilities:
        """Look at this machine."""
        family, multi_buffer = af_xdp_support()
        return cls(
            kernel=kernel_version(),
            kernel_release=os.uname().release,
            capabilities=effective_capabilities(),
            initial_user_namespace=in_initial_user_namespace(),
            memory_lock_bytes=memory_lock_bytes(),
            hugepages=hugepage_pools(),
            transparent_hugepages_shmem=transparent_hugepages_shmem(),
            af_xdp=family,
            af_xdp_multi_buffer=multi_buffer,
            kvm=kvm(),
            tap_reason=tap_reason(),
        )


def kernel_version(release: str | None = None) -> KernelVersion:
    """The version in a kernel's release string, by default the running one's."""
    release = os.uname().release if release is None else release
    match = re.match(r"(\d+)\.(\d+)", release)
    return KernelVersion(int(match[1]), int(match[2])) if match else KernelVersion(0, 0)


def memory_lock_bytes() -> int | None:
    """The limit on memory that the processes of this user may lock; ``None`` if there is none."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft


def hugepage_pools(directory: Path = _HUGEPAGES) -> tuple[HugepagePool, ...]:
    """The pools of reserved pages, smallest pages first; none if the kernel has none."""
    pools = []
    for pool in directory.glob("hugepages-*kB"):
        kibibytes = pool.name.removeprefix("hugepages-").removesuffix("kB")
        total, free = _number(pool / "nr_hugepages"), _number(pool / "free_hugepages")
        pools.append(HugepagePool(int(kibibytes) * 1024, total or 0, free or 0))
    return tuple(sorted(pools, key=lambda pool: pool.page_bytes))


def transparent_hugepages_shmem(directory: Path = _TRANSPARENT_HUGEPAGES) -> str | None:
    """The policy that is in force for shared memory, which a guest's memory is."""
    try:
        text = (directory / "shmem_enabled").read_text()
    except OSError:
        return None
    match = re.search(r"\[(\w+)\]", text)
    return match[1] if match else None


def af_xdp_support() -> tuple[AfXdpSupport, bool | None]:
    """Whether AF_XDP sockets can be made, and whether the kernel knows multi-buffer frames.

    The second answer comes from binding to an interface that cannot exist: ``bind`` looks at its
    flags first (``EINVAL`` for an unknown one) and for the interface afterwards (``ENODEV``).
    """
    try:
        probe = af_xdp.open_socket()
    except PermissionError:
        return AfXdpSupport.NOT_PERMITTED, None
    except OSError:
        return AfXdpSupport.ABSENT, None
    with probe:
        try:
            af_xdp.bind(probe, _NO_INTERFACE, 0, af_xdp.XDP_USE_SG)
        except OSError as error:
            return AfXdpSupport.AVAILABLE, error.errno == errno.ENODEV
    return AfXdpSupport.AVAILABLE, None


def kvm(device: Path = _KVM) -> Kvm:
    """Whether this process can make a virtual machine with KVM; none is left behind, and none is run.

    Whether one would run, `guestwire.testing.accelerator` tries.
    """
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return Kvm(False, f"{device} does not exist")
    except OSError as error:
        return Kvm(False, f"{device} cannot be opened: {error.strerror}")
    try:
        version = fcntl.ioctl(descriptor, _KVM_GET_API_VERSION, 0)
        if version != _KVM_API_VERSION:
            return Kvm(False, f"{device} speaks version {version}, not {_KVM_API_VERSION}")
        os.close(fcntl.ioctl(descriptor, _KVM_CREATE_VM, 0))
    except OSError as error:
        return Kvm(False, f"{device} cannot make a virtual machine: {error.strerror}")
    finally:
        os.close(descriptor)
    return Kvm(True, "")


def tap_reason(device: Path = _TUN) -> str:
    """Say why this process cannot open a queue of a TAP interface; empty if it can. None is left behind."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{device}: {error.strerror}"
    return ""


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
