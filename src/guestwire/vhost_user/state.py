"""Which request is legal when, as a table.

Each row says what must be so before the session acts on a request.  The wording of the
specification decides between the two kinds of protocol feature: some requests want the feature to
be "present in GET_PROTOCOL_FEATURES", others want it "negotiated".

Source: QEMU, docs/interop/vhost-user.rst, "Front-end message types".
"""

from __future__ import annotations

from dataclasses import dataclass

from guestwire.vhost_user.constants import ProtocolFeature, Request

_NOTHING = ProtocolFeature(0)


@dataclass(frozen=True, slots=True)
class Rule:
    """When a request is legal.

    Attributes:
        protocol: only if VHOST_USER_F_PROTOCOL_FEATURES was offered.
        offered: only if we offered this protocol feature.
        negotiated: only if the frontend has also accepted this one.
        ring_stopped: only while the ring that it names does not run.  A ring that runs but is
            disabled is stopped for it: User-Mode Linux, and DPDK's virtio-user and Cloud
            Hypervisor in earlier versions, disable a ring and later set it up anew without a
            GET_VRING_BASE in between.
    """

    protocol: bool = False
    offered: ProtocolFeature = _NOTHING
    negotiated: ProtocolFeature = _NOTHING
    ring_stopped: bool = False


RULES: dict[Request, Rule] = {
    Request.GET_FEATURES: Rule(),
    Request.SET_FEATURES: Rule(),
    Request.GET_PROTOCOL_FEATURES: Rule(protocol=True),
    Request.SET_PROTOCOL_FEATURES: Rule(protocol=True),
    Request.SET_OWNER: Rule(),
    Request.RESET_OWNER: Rule(),
    Request.RESET_DEVICE: Rule(offered=ProtocolFeature.RESET_DEVICE),
    Request.SET_STATUS: Rule(negotiated=ProtocolFeature.STATUS),
    Request.GET_STATUS: Rule(negotiated=ProtocolFeature.STATUS),
    Request.SET_MEM_TABLE: Rule(),
    Request.GET_MAX_MEM_SLOTS: Rule(negotiated=ProtocolFeature.CONFIGURE_MEM_SLOTS),
    Request.ADD_MEM_REG: Rule(negotiated=ProtocolFeature.CONFIGURE_MEM_SLOTS),
    Request.REM_MEM_REG: Rule(negotiated=ProtocolFeature.CONFIGURE_MEM_SLOTS),
    Request.GET_QUEUE_NUM: Rule(offered=ProtocolFeature.MQ),
    Request.SET_VRING_NUM: Rule(ring_stopped=True),
    # While a ring runs, only the same addresses may come again, to switch logging on or off.
    Request.SET_VRING_ADDR: Rule(),
    Request.SET_VRING_BASE: Rule(ring_stopped=True),
    Request.GET_VRING_BASE: Rule(),
    Request.SET_VRING_KICK: Rule(),
    Request.SET_VRING_CALL: Rule(),
    Request.SET_VRING_ERR: Rule(),
    Request.SET_VRING_ENABLE: Rule(protocol=True),
    Request.GET_CONFIG: Rule(negotiated=ProtocolFeature.CONFIG),
    Request.SET_CONFIG: Rule(negotiated=ProtocolFeature.CONFIG),
    Request.SET_BACKEND_REQ_FD: Rule(offered=ProtocolFeature.BACKEND_REQ),
    Request.NET_SET_MTU: Rule(offered=ProtocolFeature.MTU),
    Request.SEND_RARP: Rule(offered=ProtocolFeature.RARP),
}

SPOKEN = (
    ProtocolFeature.MQ
    | ProtocolFeature.RARP
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.MTU
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)
"""The protocol features that a session can speak; a device offers a part of them."""
