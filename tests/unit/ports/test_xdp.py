"""The control side of the xdp port, where the order of events on the interface is ours to choose."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Iterator

import pytest

from guestwire.errors import HostError
from guestwire.host import interface
from guestwire.host.interface import Interface
from guestwire.ports import xdp
from guestwire.ports.xdp import XdpControl
from guestwire.ports.xdp_options import XdpOptions

INTERFACE = Interface(
    name="nic0",
    index=7,
    mac="02:00:00:00:00:01",
    mtu=1500,
    ethernet=True,
    kind=None,
    driver="igb",
    up=True,
    carrier=True,
    receive_queues=1,
    transmit_queues=1,
    channels=None,
    carries_default_route=False,
    xdp=None,
    programs=(),
    peer=None,
    iommu_group_type=None,
)


@pytest.fixture
def port() -> XdpControl:
    control = XdpControl("nic0")
    control._interface = INTERFACE
    control.mtu = INTERFACE.mtu
    return control


def names(*answers: str | None) -> Iterator[str]:
    """What the kernel calls interface 7, at one look after another."""
    for answer in answers:
        if answer is None:
            raise OSError(errno.ENXIO, "No such device or address")
        yield answer


@pytest.mark.parametrize("second", [None, "nic0"], ids=["gone", "there"])
def test_an_interface_may_go_while_it_is_looked_at(
    port: XdpControl, monkeypatch: pytest.MonkeyPatch, second: str | None
) -> None:
    answers = names("nic0", second)

    def open_(name: str) -> Interface:
        raise HostError(f"there is no interface {name!r}", "ip -brief link")

    for module in (xdp, interface):
        monkeypatch.setattr(module, "if_indextoname", lambda _index: next(answers))
    monkeypatch.setattr(Interface, "open", open_)
    if second is not None:
        with pytest.raises(HostError, match="nic0"):
            port.refresh()
        assert not port.gone
        return
    assert port.refresh() is False
    assert (port.gone, port.link_up) == (True, False)


def test_another_interface_of_the_same_name_is_not_ours(
    port: XdpControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xdp, "if_indextoname", lambda _index: "nic0")
    other = dataclasses.replace(INTERFACE, index=8)
    monkeypatch.setattr(Interface, "open", lambda _name: other)
    assert port.refresh() is False
    assert port.gone


def test_a_new_name_is_followed(port: XdpControl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xdp, "if_indextoname", lambda _index: "lan0")
    renamed = dataclasses.replace(INTERFACE, name="lan0")
    monkeypatch.setattr(Interface, "open", lambda _name: renamed)
    assert port.refresh() is False
    assert (port.gone, port.name, port.link_up) == (False, "lan0", True)


def test_no_address_is_announced_but_the_one_that_the_guest_may_send_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    announced: list[tuple[str, bytes]] = []
    monkeypatch.setattr(xdp, "send_rarp", lambda name, mac: announced.append((name, mac)))
    port = XdpControl("nic0", XdpOptions(source="02:00:00:00:00:0a"))
    with pytest.raises(HostError, match=r"may not announce 02:00:00:00:00:0c: .* 02:00:00:00:00:0a alone"):
        port.announce(b"\x02\0\0\0\0\x0c")
    port.announce(b"\x02\0\0\0\0\x0a")
    XdpControl("nic0").announce(b"\x02\0\0\0\0\x0c")
    assert announced == [("nic0", b"\x02\0\0\0\0\x0a"), ("nic0", b"\x02\0\0\0\0\x0c")]
