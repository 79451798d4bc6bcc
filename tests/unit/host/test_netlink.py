from __future__ import annotations

import asyncio
import threading

import pytest

from guestwire.host import netlink
from guestwire.host.netlink import XdpFeature, XdpSupport, outside_event_loop


def test_function_runs_here_without_an_event_loop() -> None:
    assert outside_event_loop(threading.get_ident) == threading.get_ident()


def test_function_runs_elsewhere_inside_an_event_loop() -> None:
    async def inside() -> bool:
        return outside_event_loop(threading.get_ident) == threading.get_ident()

    assert asyncio.run(inside()) is False


def test_feature_names_are_those_of_the_specification() -> None:
    everything = XdpFeature((1 << 7) - 1)
    assert XdpSupport(everything, zero_copy_segments=8).names == (
        "basic",
        "redirect",
        "ndo-xmit",
        "xsk-zerocopy",
        "hw-offload",
        "rx-sg",
        "ndo-xmit-sg",
    )


def test_native_needs_redirection() -> None:
    assert not XdpSupport(XdpFeature.BASIC, zero_copy_segments=1).native
    assert XdpSupport(XdpFeature.BASIC | XdpFeature.REDIRECT, zero_copy_segments=1).native


def test_kernel_without_the_family_is_an_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(netlink, "_NETDEV_FAMILY", "no_such_family")
    assert netlink.xdp_support(1) is None
    assert netlink.socket_on_queue(1, 0) is None
    assert not netlink.wait_until_released(1, 0)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
