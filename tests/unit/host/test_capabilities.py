from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from guestwire.host import capabilities
from guestwire.host.capabilities import (
    AfXdpSupport,
    HostCapabilities,
    HugepagePool,
    KernelVersion,
    hugepage_pools,
    kernel_version,
    kvm,
    memory_lock_bytes,
    tap_reason,
    transparent_hugepages_shmem,
)


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.1.0-28-amd64", KernelVersion(6, 1)),
        ("5.15.0-1062-aws", KernelVersion(5, 15)),
        ("7.2.13+deb14-amd64", KernelVersion(7, 2)),
        ("6.18", KernelVersion(6, 18)),
        ("unversioned", KernelVersion(0, 0)),
    ],
)
def test_kernel_version(release: str, version: KernelVersion) -> None:
    assert kernel_version(release) == version


def test_kernel_versions_compare_as_numbers() -> None:
    assert KernelVersion(5, 9) < KernelVersion(5, 11) < KernelVersion(6, 1)
    assert str(KernelVersion(5, 11)) == "5.11"


def make_pool(directory: Path, kibibytes: int, total: int, free: int) -> None:
    pool = directory / f"hugepages-{kibibytes}kB"
    pool.mkdir()
    (pool / "nr_hugepages").write_text(f"{total}\n")
    (pool / "free_hugepages").write_text(f"{free}\n")


def test_hugepage_pools(tmp_path: Path) -> None:
    make_pool(tmp_path, 1048576, 1, 0)
    make_pool(tmp_path, 2048, 512, 500)
    assert hugepage_pools(tmp_path) == (
        HugepagePool(2 << 20, 512, 500),
        HugepagePool(1 << 30, 1, 0),
    )
    assert hugepage_pools(tmp_path / "none") == ()


def test_transparent_hugepages(tmp_path: Path) -> None:
    (tmp_path / "shmem_enabled").write_text("always within_size [advise] never deny force\n")
    assert transparent_hugepages_shmem(tmp_path) == "advise"
    assert transparent_hugepages_shmem(tmp_path / "none") is None


def test_memory_lock_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8 << 20, resource.RLIM_INFINITY))
    assert memory_lock_bytes() == 8 << 20
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert memory_lock_bytes() is None


def test_tap_interfaces_of_a_machine_without_any(tmp_path: Path) -> None:
    assert tap_reason(tmp_path / "tun") == f"{tmp_path}/tun: No such file or directory"
    (tmp_path / "tun").touch()
    assert tap_reason(tmp_path / "tun") == ""


def test_kvm_that_is_absent(tmp_path: Path) -> None:
    found = kvm(tmp_path / "kvm")
    assert not found.usable
    assert "does not exist" in found.reason


def test_kvm_that_is_something_else(tmp_path: Path) -> None:
    impostor = tmp_path / "kvm"
    impostor.touch()
    found = kvm(impostor)
    assert not found.usable
    assert str(impostor) in found.reason


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(1, "no"), AfXdpSupport.NOT_PERMITTED),
        (OSError(97, "no"), AfXdpSupport.ABSENT),
    ],
)
def test_no_af_xdp(monkeypatch: pytest.MonkeyPatch, error: OSError, expected: AfXdpSupport) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(capabilities.af_xdp, "open_socket", fail)
    assert capabilities.af_xdp_support() == (expected, None)


def test_this_machine() -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208 the listing's own descriptor counts alike
    host = HostCapabilities.read()
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208
    assert host.kernel_release == os.uname().release
    assert host.kernel >= KernelVersion(4, 18)
    assert list(host.hugepages) == sorted(host.hugepages, key=lambda pool: pool.page_bytes)
    assert all(pool.free <= pool.total for pool in host.hugepages)
    assert host.kvm.usable == (host.kvm.reason == "")
