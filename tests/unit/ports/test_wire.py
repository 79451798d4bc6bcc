"""The wire port as it is described in words, and who is on a wire."""

from __future__ import annotations

import pytest

from guestwire.errors import ConfigurationError, HostError
from guestwire.ports.parse import SYNTAX, parse_port
from guestwire.ports.wire import ALONE, WireControl, WireOptions
from guestwire.virtio.features import unmet_dependencies


@pytest.mark.parametrize(
    ("words", "network", "options"),
    [
        ("wire:lan", "lan", WireOptions()),
        ("wire:a.b-c_9,ageing=10", "a.b-c_9", WireOptions(ageing=10)),
        ("wire:lan,wait_us=0", "lan", WireOptions(wait_us=0)),
        ("wire:lan,guest-offloads=no", "lan", WireOptions(guest_offloads=False)),
        ("wire:lan,source=02:00:00:00:00:0A", "lan", WireOptions(source="02:00:00:00:00:0a")),
    ],
)
def test_words(words: str, network: str, options: WireOptions) -> None:
    port = parse_port(words)
    assert isinstance(port, WireControl)
    assert (port.name, port.options) == (network, options)
    assert unmet_dependencies(int(port.offloads)) == {}


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("wire", "port wire: which one?"),
        ("wire:", "port wire: which one?"),
        ("wire:,ageing=10", "port wire: which one?"),
        ("wire:a b", "port wire: 'a b' is no name for a wire"),
        ("wire:" + "x" * 65, "is no name for a wire"),
        ("wire:lan,", "cannot understand ''"),
        ("wire:lan,ageing=9", "cannot understand 'ageing=9'"),
        ("wire:lan,ageing=1000001", "cannot understand 'ageing=1000001'"),
        ("wire:lan,wait_us=1000001", "cannot understand 'wait_us=1000001'"),
        ("wire:lan,wait_us=-1", "cannot understand 'wait_us=-1'"),
        ("wire:lan,source=01:00:5e:00:00:01", "cannot understand 'source=01:00:5e:00:00:01'"),
        ("wire:lan,wait-us=1", "cannot understand 'wait-us=1'"),
        ("wire:lan,queue=1", "cannot understand 'queue=1'"),
    ],
)
def test_what_is_no_wire(words: str, error: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_port(words)
    assert error in str(caught.value)
    assert SYNTAX in str(caught.value.remedy)


def members(port: WireControl) -> tuple[str, ...]:
    status = port.status()
    assert (status.kind, status.network) == ("wire", port.name)
    return status.members


def test_those_who_name_the_same_wire_are_on_it_while_they_are_open() -> None:
    one, other, elsewhere = (
        WireControl(network, guest=guest)
        for network, guest in (("lan", "one"), ("lan", "other"), ("dmz", "elsewhere"))
    )
    assert members(one) == ()
    for port in (one, other, elsewhere):
        port.open(1)
    assert (members(one), members(other), members(elsewhere)) == (("other",), ("one",), ())
    one.close()
    one.close()
    assert members(other) == ()
    assert other.status().mode_reason == ALONE
    one.open(1)
    assert members(other) == ("one",)
    assert other.status().mode_reason is None
    for port in (one, other, elsewhere):
        port.close()
    # A name that nobody uses means a new network.
    one.open(1)
    assert members(one) == ()
    one.close()


def test_no_more_than_there_can_be() -> None:
    ports = [WireControl("full", guest=str(number)) for number in range(257)]
    try:
        for port in ports[:-1]:
            port.open(1)
        with pytest.raises(HostError, match="wire full has 256 members already"):
            ports[-1].open(1)
    finally:
        for port in ports:
            port.close()


def test_no_address_is_announced_but_the_one_that_the_guest_may_send_from() -> None:
    port = WireControl("strict", WireOptions(source="02:00:00:00:00:0a"), guest="one")
    other = WireControl("strict", guest="other")
    for end in (port, other):
        end.open(1)
    try:
        other.announce(b"\x02\0\0\0\0\x0b")
        with pytest.raises(HostError, match=r"may not announce 02:00:00:00:00:0c: .*:0a alone"):
            port.announce(b"\x02\0\0\0\0\x0c")
        port.announce(b"\x02\0\0\0\0\x0a")
        assert port._network is not None
        assert port._network.addresses().keys() <= {b"\x02\0\0\0\0\x0b", b"\x02\0\0\0\0\x0a"}
    finally:
        for end in (port, other):
            end.close()
