"""Feature bits of a virtio network device, their dependencies, and their names.

Source: Virtual I/O Device (VIRTIO) Version 1.3, sections 2.1 (status), 5.1.3 (network device) and
6 (reserved bits).  Two bits are not virtio's: vhost took 26 and 30, which virtio leaves unused, and
they travel in the same 64-bit word between frontend and backend, never to the driver.
"""

from __future__ import annotations

from enum import IntFlag


class Feature(IntFlag):
    """A set of feature bits, each named as in its specification."""

    VIRTIO_NET_F_CSUM = 1 << 0
    VIRTIO_NET_F_GUEST_CSUM = 1 << 1
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS = 1 << 2
    VIRTIO_NET_F_MTU = 1 << 3
    VIRTIO_NET_F_MAC = 1 << 5
    VIRTIO_NET_F_GSO = 1 << 6  # legacy drivers only (5.1.3.2)
    VIRTIO_NET_F_GUEST_TSO4 = 1 << 7
    VIRTIO_NET_F_GUEST_TSO6 = 1 << 8
    VIRTIO_NET_F_GUEST_ECN = 1 << 9
    VIRTIO_NET_F_GUEST_UFO = 1 << 10
    VIRTIO_NET_F_HOST_TSO4 = 1 << 11
    VIRTIO_NET_F_HOST_TSO6 = 1 << 12
    VIRTIO_NET_F_HOST_ECN = 1 << 13
    VIRTIO_NET_F_HOST_UFO = 1 << 14
    VIRTIO_NET_F_MRG_RXBUF = 1 << 15
    VIRTIO_NET_F_STATUS = 1 << 16
    VIRTIO_NET_F_CTRL_VQ = 1 << 17
    VIRTIO_NET_F_CTRL_RX = 1 << 18
    VIRTIO_NET_F_CTRL_VLAN = 1 << 19
    VIRTIO_NET_F_CTRL_RX_EXTRA = 1 << 20
    VIRTIO_NET_F_GUEST_ANNOUNCE = 1 << 21
    VIRTIO_NET_F_MQ = 1 << 22
    VIRTIO_NET_F_CTRL_MAC_ADDR = 1 << 23
    VIRTIO_F_NOTIFY_ON_EMPTY = 1 << 24  # legacy drivers only (6.3)
    VHOST_F_LOG_ALL = 1 << 26  # vhost's, not virtio's
    VIRTIO_F_ANY_LAYOUT = 1 << 27  # legacy drivers only (6.3)
    VIRTIO_F_INDIRECT_DESC = 1 << 28
    VIRTIO_F_EVENT_IDX = 1 << 29
    VHOST_USER_F_PROTOCOL_FEATURES = 1 << 30  # vhost-user's, not virtio's
    VIRTIO_F_VERSION_1 = 1 << 32
    VIRTIO_F_ACCESS_PLATFORM = 1 << 33
    VIRTIO_F_RING_PACKED = 1 << 34
    VIRTIO_F_IN_ORDER = 1 << 35
    VIRTIO_F_ORDER_PLATFORM = 1 << 36
    VIRTIO_F_SR_IOV = 1 << 37
    VIRTIO_F_NOTIFICATION_DATA = 1 << 38
    VIRTIO_F_NOTIF_CONFIG_DATA = 1 << 39
    VIRTIO_F_RING_RESET = 1 << 40
    VIRTIO_F_ADMIN_VQ = 1 << 41
    VIRTIO_NET_F_DEVICE_STATS = 1 << 50
    VIRTIO_NET_F_HASH_TUNNEL = 1 << 51
    VIRTIO_NET_F_VQ_NOTF_COAL = 1 << 52
    VIRTIO_NET_F_NOTF_COAL = 1 << 53
    VIRTIO_NET_F_GUEST_USO4 = 1 << 54
    VIRTIO_NET_F_GUEST_USO6 = 1 << 55
    VIRTIO_NET_F_HOST_USO = 1 << 56
    VIRTIO_NET_F_HASH_REPORT = 1 << 57
    VIRTIO_NET_F_GUEST_HDRLEN = 1 << 59
    VIRTIO_NET_F_RSS = 1 << 60
    VIRTIO_NET_F_RSC_EXT = 1 << 61
    VIRTIO_NET_F_STANDBY = 1 << 62
    VIRTIO_NET_F_SPEED_DUPLEX = 1 << 63


class DeviceStatus(IntFlag):
    """The device status field (virtio 1.3, 2.1); 0 resets the device."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


_F = Feature

_DEPENDENCIES: dict[Feature, tuple[Feature, ...]] = {
    # A feature, and what it requires: at least one bit of each set (virtio 1.3, 5.1.3.1).
    _F.VIRTIO_NET_F_GUEST_TSO4: (_F.VIRTIO_NET_F_GUEST_CSUM,),
    _F.VIRTIO_NET_F_GUEST_TSO6: (_F.VIRTIO_NET_F_GUEST_CSUM,),
    _F.VIRTIO_NET_F_GUEST_ECN: (_F.VIRTIO_NET_F_GUEST_TSO4 | _F.VIRTIO_NET_F_GUEST_TSO6,),
    _F.VIRTIO_NET_F_GUEST_UFO: (_F.VIRTIO_NET_F_GUEST_CSUM,),
    _F.VIRTIO_NET_F_GUEST_USO4: (_F.VIRTIO_NET_F_GUEST_CSUM,),
    _F.VIRTIO_NET_F_GUEST_USO6: (_F.VIRTIO_NET_F_GUEST_CSUM,),
    _F.VIRTIO_NET_F_HOST_TSO4: (_F.VIRTIO_NET_F_CSUM,),
    _F.VIRTIO_NET_F_HOST_TSO6: (_F.VIRTIO_NET_F_CSUM,),
    _F.VIRTIO_NET_F_HOST_ECN: (_F.VIRTIO_NET_F_HOST_TSO4 | _F.VIRTIO_NET_F_HOST_TSO6,),
    _F.VIRTIO_NET_F_HOST_UFO: (_F.VIRTIO_NET_F_CSUM,),
    _F.VIRTIO_NET_F_HOST_USO: (_F.VIRTIO_NET_F_CSUM,),
    _F.VIRTIO_NET_F_CTRL_RX: (_F.VIRTIO_NET_F_CTRL_VQ,),
    _F.VIRTIO_NET_F_CTRL_VLAN: (_F.VIRTIO_NET_F_CTRL_VQ,),
    _F.VIRTIO_NET_F_GUEST_ANNOUNCE: (_F.VIRTIO_NET_F_CTRL_VQ,),
    _F.VIRTIO_NET_F_MQ: (_F.VIRTIO_NET_F_CTRL_VQ,),
    _F.VIRTIO_NET_F_CTRL_MAC_ADDR: (_F.VIRTIO_NET_F_CTRL_VQ,),
    _F.VIRTIO_NET_F_NOTF_COAL: (_F.VIRTIO_NET_F_CTRL_VQ,),
    _F.VIRTIO_NET_F_RSC_EXT: (_F.VIRTIO_NET_F_HOST_TSO4 | _F.VIRTIO_NET_F_HOST_TSO6,),
    _F.VIRTIO_NET_F_RSS: (_F.VIRTIO_NET_F_CTRL_VQ,),
    _F.VIRTIO_NET_F_VQ_NOTF_COAL: (_F.VIRTIO_NET_F_CTRL_VQ,),
    _F.VIRTIO_NET_F_HASH_TUNNEL: (
        _F.VIRTIO_NET_F_CTRL_VQ,
        _F.VIRTIO_NET_F_RSS | _F.VIRTIO_NET_F_HASH_REPORT,
    ),
}


GUEST_OFFLOADS = (
    _F.VIRTIO_NET_F_GUEST_CSUM
    | _F.VIRTIO_NET_F_GUEST_TSO4
    | _F.VIRTIO_NET_F_GUEST_TSO6
    | _F.VIRTIO_NET_F_GUEST_ECN
    | _F.VIRTIO_NET_F_GUEST_USO4
    | _F.VIRTIO_NET_F_GUEST_USO6
)
"""What a driver lets the device do with received frames, and the device need not do (virtio 1.3, 5.1.6.4)."""


def net_header_size(accepted: Feature) -> int:
    """Return the bytes of a virtio_net_hdr: 10, without num_buffers, for a legacy driver (virtio 5.1.6)."""
    long = Feature.VIRTIO_F_VERSION_1 | Feature.VIRTIO_NET_F_MRG_RXBUF
    return 12 if accepted & long else 10


def names(bits: int, kind: type[IntFlag] = Feature) -> list[str]:
    """Return the names of the bits that are set, lowest first; a nameless one as "bit N"."""
    known = {member.value: member.name for member in kind}
    numbers = [number for number in range(bits.bit_length()) if bits >> number & 1]
    return [known.get(1 << number) or f"bit {number}" for number in numbers]


def never_offered(accepted: int, offered: int) -> Feature:
    """Return the accepted bits that were not offered: no driver may accept those (virtio 2.2.1)."""
    # int, because the complement of a set of flags lacks the bits that have no name.
    return Feature(accepted & ~int(offered))


def unmet_dependencies(features: int) -> dict[Feature, Feature]:
    """Return each feature of a set that lacks another one, with what it lacks (virtio 5.1.3.1).

    It is meant for what a device offers.  What a backend is told was accepted can fall short of it
    in good order: QEMU and DPDK serve the control queue themselves, and keep VIRTIO_NET_F_CTRL_VQ
    from the backend while they pass on the features that depend on it.

    Returns:
        the set of which at least one bit would have to be added, by feature; empty if all is well.
    """
    return {
        feature: alternatives
        for feature, requirements in _DEPENDENCIES.items()
        for alternatives in requirements
        if feature & features and not alternatives & features
    }
