from guestwire.vhost_user.constants import ProtocolFeature
from guestwire.virtio.features import Feature, names, never_offered, unmet_dependencies


def test_bits_are_those_of_the_standard():
    assert Feature.VIRTIO_NET_F_MRG_RXBUF == 1 << 15
    assert Feature.VIRTIO_F_VERSION_1 == 1 << 32
    assert Feature.VIRTIO_NET_F_SPEED_DUPLEX == 1 << 63
    assert all(feature.bit_count() == 1 for feature in Feature)


def test_names_are_those_of_the_standard():
    assert names(1 << 15 | 1 << 32 | 1 << 45) == [
        "VIRTIO_NET_F_MRG_RXBUF",
        "VIRTIO_F_VERSION_1",
        "bit 45",
    ]
    assert names(0) == []
    assert names(1 << 3 | 1 << 40, ProtocolFeature) == ["REPLY_ACK", "bit 40"]


def test_never_offered():
    offered = Feature.VIRTIO_NET_F_CSUM | Feature.VIRTIO_NET_F_MAC
    assert never_offered(Feature.VIRTIO_NET_F_MAC, offered) == 0
    assert never_offered(Feature.VIRTIO_NET_F_MAC | 1 << 45, offered) == 1 << 45
    assert never_offered(2**64 - 1, offered) == 2**64 - 1 - offered


def test_dependencies():
    assert unmet_dependencies(0) == {}
    assert unmet_dependencies(Feature.VIRTIO_NET_F_MQ) == {
        Feature.VIRTIO_NET_F_MQ: Feature.VIRTIO_NET_F_CTRL_VQ
    }
    assert unmet_dependencies(Feature.VIRTIO_NET_F_MQ | Feature.VIRTIO_NET_F_CTRL_VQ) == {}


def test_one_of_several_dependencies_will_do():
    ecn = Feature.VIRTIO_NET_F_HOST_ECN
    either = Feature.VIRTIO_NET_F_HOST_TSO4 | Feature.VIRTIO_NET_F_HOST_TSO6
    assert unmet_dependencies(ecn) == {ecn: either}
    assert unmet_dependencies(ecn | Feature.VIRTIO_NET_F_HOST_TSO6 | Feature.VIRTIO_NET_F_CSUM) == {}


def test_several_dependencies_are_all_needed():
    tunnel = Feature.VIRTIO_NET_F_HASH_TUNNEL
    assert tunnel in unmet_dependencies(tunnel | Feature.VIRTIO_NET_F_HASH_REPORT)
    assert tunnel in unmet_dependencies(tunnel | Feature.VIRTIO_NET_F_CTRL_VQ)
    assert unmet_dependencies(tunnel | Feature.VIRTIO_NET_F_CTRL_VQ | Feature.VIRTIO_NET_F_HASH_REPORT) == {}
