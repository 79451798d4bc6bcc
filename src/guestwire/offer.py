"""What a guest is offered: features and configuration space, as we, its port and its configuration can."""

from __future__ import annotations

import hashlib

from guestwire.config import GuestConfig
from guestwire.ports.base import Port
from guestwire.ports.simple import LONGEST_MTU
from guestwire.vhost_user.constants import ProtocolFeature
from guestwire.virtio.features import Feature
from guestwire.virtio.net_config import NetConfig

FEATURES = (
    Feature.VIRTIO_F_VERSION_1
    | Feature.VIRTIO_F_ANY_LAYOUT
    | Feature.VIRTIO_F_INDIRECT_DESC
    | Feature.VIRTIO_F_EVENT_IDX
    | Feature.VIRTIO_NET_F_MRG_RXBUF
    | Feature.VIRTIO_NET_F_MAC
    | Feature.VIRTIO_NET_F_STATUS
    | Feature.VHOST_USER_F_PROTOCOL_FEATURES
)
PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.RARP
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.MTU
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)


def default_mac(name: str) -> bytes:
    """Return a locally administered unicast address that depends only on the guest's name."""
    return bytes([0x02]) + hashlib.sha256(name.encode()).digest()[:5]


def features(config: GuestConfig, port: Port) -> Feature:
    """Return the device features on offer.

    MQ is offered only where it has a use: User-Mode Linux refuses a device that has it and no control
    virtqueue.
    """
    offered = FEATURES
    if port.mtu < LONGEST_MTU:
        offered |= Feature.VIRTIO_NET_F_MTU
    if config.queue_pairs > 1:
        offered |= Feature.VIRTIO_NET_F_MQ
    return offered


def net_config(config: GuestConfig, port: Port) -> NetConfig:
    """Return the configuration space, for frontends that read it."""
    mac = bytes.fromhex(config.mac.replace(":", "")) if config.mac else default_mac(config.name)
    return NetConfig(mac=mac, max_queue_pairs=config.queue_pairs, mtu=port.mtu)
