"""A tap port before it touches the machine: its words, and what features mean to the kernel."""

from __future__ import annotations

import itertools

import pytest

from guestwire.errors import ConfigurationError
from guestwire.host.tap import SEGMENTATION, UDP_SEGMENTATION, Offload
from guestwire.ports.parse import SYNTAX, parse_port
from guestwire.ports.tap import TapControl, TapOptions, features_of, offloads_for
from guestwire.virtio.features import Feature, net_header_size, unmet_dependencies

ALL = SEGMENTATION | UDP_SEGMENTATION


@pytest.mark.parametrize(
    ("words", "interface", "options"),
    [
        ("tap:tap0", "tap0", TapOptions()),
        ("tap:fifteen-letters", "fifteen-letters", TapOptions()),
        ("tap:tap0,netns=blue", "tap0", TapOptions(netns="blue")),
        ("tap:tap0,netns=/proc/1/ns/net", "tap0", TapOptions(netns="/proc/1/ns/net")),
        ("tap:tap0,bridge=br0,mtu=9000", "tap0", TapOptions(bridge="br0", mtu=9000)),
        ("tap:tap0,offloads=no", "tap0", TapOptions(offloads=False)),
        ("tap:tap0,offloads=yes", "tap0", TapOptions()),
        ("tap:tap0,guest-offloads=no", "tap0", TapOptions(guest_offloads=False)),
        ("tap:fd=7", "", TapOptions(fds=(7,))),
        ("tap:fd=7+9+8,offloads=no", "", TapOptions(fds=(7, 9, 8), offloads=False)),
    ],
)
def test_words(words: str, interface: str, options: TapOptions) -> None:
    port = parse_port(words)
    assert isinstance(port, TapControl)
    assert (port.name, port.options) == (interface, options)
    assert port.max_queue_pairs == (len(options.fds) or 64)
    assert port.status().kind == "tap"
    assert port.interface_index is None
    port.close()


@pytest.mark.parametrize(
    "words",
    [
        "tap:",
        f"tap:{'x' * 128}",
        "tap:a/b",
        "tap:tap%d",
        "tap:..",
        "tap:tap0,mtu=67",
        "tap:tap0,mtu=65522",
        "tap:tap0,mtu=1k",
        "tap:tap0,bridge=",
        "tap:tap0,netns=",
        "tap:tap0,queue=1",
        "tap:tap0,fd=3",
        "tap:tap0,mtu=1500,mtu=1500",
        "tap:tap0,offloads=maybe",
        "tap:fd=",
        "tap:fd=3+",
        "tap:fd=3+3",
        "tap:fd=-1",
    ],
)
def test_words_without_a_meaning(words: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        parse_port(words)
    assert raised.value.remedy == f"use {SYNTAX}"


def test_open_queues_are_where_their_interface_is() -> None:
    with pytest.raises(ConfigurationError, match="is that of its interface"):
        parse_port("tap:fd=3,netns=blue")


@pytest.mark.parametrize("offloads", [Offload(0), SEGMENTATION, ALL])
def test_what_is_offered_depends_on_nothing_that_is_not(offloads: Offload) -> None:
    offered = features_of(offloads)
    assert unmet_dependencies(offered) == {}
    assert (Feature.VIRTIO_NET_F_HOST_USO in offered) == (UDP_SEGMENTATION in offloads)
    assert not offered & (Feature.VIRTIO_NET_F_HOST_UFO | Feature.VIRTIO_NET_F_GUEST_UFO)


def test_the_kernel_leaves_to_the_guest_just_what_it_accepted() -> None:
    accepts = {
        Feature.VIRTIO_NET_F_GUEST_TSO4: Offload.TUN_F_TSO4,
        Feature.VIRTIO_NET_F_GUEST_TSO6: Offload.TUN_F_TSO6,
        Feature.VIRTIO_NET_F_GUEST_ECN: Offload.TUN_F_TSO_ECN,
        Feature.VIRTIO_NET_F_GUEST_USO4: Offload.TUN_F_USO4,
        Feature.VIRTIO_NET_F_GUEST_USO6: Offload.TUN_F_USO6,
    }
    for chosen in itertools.product([False, True], repeat=len(accepts)):
        accepted = Feature(sum(feature for feature, yes in zip(accepts, chosen, strict=True) if yes))
        assert offloads_for(accepted | Feature.VIRTIO_NET_F_CSUM) == Offload(0)
        accepted |= Feature.VIRTIO_NET_F_GUEST_CSUM
        left = offloads_for(accepted)
        assert Offload.TUN_F_CSUM in left
        for feature, offload in accepts.items():
            assert offload not in left or feature in accepted
        # The kernel refuses one without the other.
        assert left & UDP_SEGMENTATION in {Offload(0), UDP_SEGMENTATION}
        assert Offload.TUN_F_TSO_ECN not in left or left & (Offload.TUN_F_TSO4 | Offload.TUN_F_TSO6)
    assert offloads_for(features_of(ALL)) == ALL


@pytest.mark.parametrize(
    ("accepted", "size"),
    [
        (Feature(0), 10),
        (Feature.VIRTIO_NET_F_MRG_RXBUF, 12),
        (Feature.VIRTIO_F_VERSION_1, 12),
        (Feature.VIRTIO_F_VERSION_1 | Feature.VIRTIO_NET_F_MRG_RXBUF, 12),
    ],
)
def test_the_size_of_a_header(accepted: Feature, size: int) -> None:
    assert net_header_size(accepted) == size
