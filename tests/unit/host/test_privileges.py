from __future__ import annotations

from pathlib import Path

import pytest

from guestwire.host import privileges
from guestwire.host.privileges import Capability, effective_capabilities, permission_error

NEEDED = frozenset({Capability.CAP_BPF, Capability.CAP_NET_ADMIN})


def status_file(tmp_path: Path, *held: Capability) -> Path:
    bits = sum(1 << capability for capability in held)
    path = tmp_path / "status"
    path.write_text(f"Name:\tpython\nCapInh:\t{0:016x}\nCapEff:\t{bits:016x}\nCapBnd:\t{-1 & 1:x}\n")
    return path


@pytest.mark.parametrize(
    "held",
    [
        frozenset(),
        frozenset({Capability.CAP_NET_RAW}),
        frozenset({Capability.CAP_BPF, Capability.CAP_IPC_LOCK}),
    ],
)
def test_effective_capabilities(tmp_path: Path, held: frozenset[Capability]) -> None:
    assert effective_capabilities(status_file(tmp_path, *held)) == held


def test_sys_admin_includes_bpf(tmp_path: Path) -> None:
    found = effective_capabilities(status_file(tmp_path, Capability.CAP_SYS_ADMIN))
    assert found == {Capability.CAP_SYS_ADMIN, Capability.CAP_BPF}


def test_missing_capabilities_are_named_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileges, "effective_capabilities", frozenset)
    error = permission_error("loading an XDP program", NEEDED)
    assert str(error) == (
        "loading an XDP program is not permitted: this process lacks CAP_BPF, CAP_NET_ADMIN"
    )
    assert error.remedy is not None
    assert "run it as root" in error.remedy


def test_user_namespace_is_the_second_suspect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileges, "effective_capabilities", lambda: NEEDED)
    monkeypatch.setattr(privileges, "in_initial_user_namespace", lambda: False)
    assert "user namespace" in str(permission_error("it", NEEDED))


def test_security_policy_is_the_last_suspect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileges, "effective_capabilities", lambda: NEEDED)
    monkeypatch.setattr(privileges, "in_initial_user_namespace", lambda: True)
    error = permission_error("it", NEEDED)
    assert "lockdown" in str(error)
    assert error.remedy is not None
    assert "lockdown" in error.remedy
