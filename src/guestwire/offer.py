"""What a guest is offered: features and configuration space, as we, its port and its configuration can."""

from __future__ import annotations

import hashlib

from guestwire.config import GuestConfig
from guestwire.errors import HostError
from guestwire.ports.base import Port
from guestwire.ports.simple import LONGEST_MTU
from guestwire.vhost_user.constants import ProtocolFeature
from guestwire.virtio.features import GUEST_OFFLOADS, Feature, names
from guestwire.virtio.net_config import NetConfig, NetStatus

FEATURES = (
    Feature.VIRTIO_F_VERSION_1
    | Feature.VIRTIO_F_ANY_LAYOUT
    | Feature.VIRTIO_F_INDIRECT_DESC
    | Feature.VIRTIO_F_EVENT_IDX
    | Feature.VIRTIO_F_RING_PACKED
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
    offered = FEATURES | port.offloads
    if port.in_order:
        offered |= Feature.VIRTIO_F_IN_ORDER
    if port.mtu < LONGEST_MTU:
        offered |= Feature.VIRTIO_NET_F_MTU
    if config.queue_pairs > 1:
        offered |= Feature.VIRTIO_NET_F_MQ
    return offered


def net_config(config: GuestConfig, mtu: int, status: NetStatus) -> NetConfig:
    """Return the configuration space, for frontends that read it."""
    mac = bytes.fromhex(config.mac.replace(":", "")) if config.mac else default_mac(config.name)
    return NetConfig(mac=mac, status=status, max_queue_pairs=config.queue_pairs, mtu=mtu)


def require_queue_pairs(config: GuestConfig, description: str, port: Port) -> None:
    """Make sure that a port can serve all queue pairs on offer.

    Raises:
        HostError: it cannot.
    """
    if config.queue_pairs > port.max_queue_pairs:
        raise HostError(
            f"guest {config.name}: port {description} serves {port.max_queue_pairs} queue pairs, "
            f"not {config.queue_pairs}",
            f"use queue_pairs = {port.max_queue_pairs}",
        )


def require_port(config: GuestConfig, description: str, port: Port, accepted: Feature, mtu: int) -> None:
    """Make sure that a guest that runs can go on with another port, which is open.

    Args:
        config: the guest's.
        description: the words that name the port.
        port: the other port.
        accepted: the features that the guest's driver accepted from the present one. VIRTIO_NET_F_MTU is
            a promise that any port keeps that carries as much, also one without a limit.
        mtu: the longest payload of a frame that the guest may send, in bytes.

    Raises:
        HostError: it cannot; the message says why.
    """
    offered = features(config, port) | Feature.VIRTIO_NET_F_MTU | GUEST_OFFLOADS
    if missing := accepted & ~offered:
        raise HostError(
            f"guest {config.name} uses {', '.join(names(missing))}, port {description} cannot offer that",
            "bind it to another port, or reset the guest's network device without these features",
        )
    if mtu > port.mtu:
        interface = port.status().interface
        raise HostError(
            f"guest {config.name} may send frames for an MTU of {mtu}, port {description} carries {port.mtu}",
            f"ip link set dev {interface} mtu {mtu}" if interface else "bind it to another port",
        )
