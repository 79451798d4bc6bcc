"""Numbers of the vhost-user protocol: request identifiers, bits and limits.

The single source for both ends: the session and the testing frontend take them from here.  Names
are those of the specification without their common prefix, so that ``Request.SET_MEM_TABLE`` is
``VHOST_USER_SET_MEM_TABLE``.  Source: QEMU, docs/interop/vhost-user.rst.  Device feature bits are
virtio's and live in `guestwire.virtio.features`.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag


class Request(IntEnum):
    """What a frontend asks of a backend ("Front-end message types")."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44


class BackendRequest(IntEnum):
    """What a backend asks of a frontend ("Back-end message types")."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5


class ProtocolFeature(IntFlag):
    """VHOST_USER_PROTOCOL_F_*: extensions of the protocol ("Protocol features")."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    XEN_MMAP = 1 << 17
    SHARED_OBJECT = 1 << 18
    DEVICE_STATE = 1 << 19


class MessageFlag(IntFlag):
    """Bits of a message header's flags above the two of the version ("Header")."""

    REPLY = 1 << 2
    NEED_REPLY = 1 << 3


class RingAddressFlag(IntFlag):
    """Flags of SET_VRING_ADDR."""

    LOG = 1 << 0  # VHOST_VRING_F_LOG: writes to the used ring go to the dirty log


class ConfigFlag(IntEnum):
    """Why SET_CONFIG is sent ("Virtio device config space")."""

    WRITABLE = 0  # the driver wrote a field that drivers may write
    LIVE_MIGRATION = 1  # the frontend brings the configuration from another host


VERSION = 1
"""The only version of the protocol there is."""

VERSION_MASK = 0x3
"""The bits of a header's flags that hold the version."""

HEADER_SIZE = 12
"""Bytes of a message header: request, flags and payload size, 32 bits each."""

RING_INDEX_MASK = 0xFF
"""Bits of the payload of SET_VRING_KICK, _CALL and _ERR that hold the ring index."""

RING_NO_FD = 1 << 8
"""Bit of the payload of SET_VRING_KICK, _CALL and _ERR: no file descriptor, poll instead."""

MAX_RINGS = RING_INDEX_MASK + 1
"""Rings that SET_VRING_KICK can name, hence rings that a session can have."""

MAX_QUEUE_SIZE = 32768
"""Largest size of a ring in descriptors (virtio 1.3, 2.6 and 2.8)."""

MAX_MEMORY_TABLE_REGIONS = 8
"""Regions that fit one SET_MEM_TABLE, and file descriptors that a message can carry."""

MAX_MEMORY_SLOTS = 509
"""Regions that ADD_MEM_REG can add up to: what the kernel's KVM leaves to a frontend."""

MAX_CONFIG_SIZE = 256
"""Bytes of a device configuration space (QEMU's VHOST_USER_MAX_CONFIG_SIZE)."""

MAX_PAYLOAD_SIZE = 12 + MAX_CONFIG_SIZE
"""Bytes of the largest payload of any message here: a whole configuration space."""

MAX_SCM_RIGHTS_FDS = 253
"""File descriptors that the kernel passes in one message (SCM_MAX_FD), however many are allowed."""
