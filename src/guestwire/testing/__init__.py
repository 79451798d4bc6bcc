"""Try a vhost-user network backend without a virtual machine.

`FakeGuest` is a guest's virtio-net driver and the frontend of its virtual machine in one: it
connects to a backend's socket, shares memory, and sends and receives frames that are verified to the
last byte, at millions a second.  What the backend does wrong is an error that says what was
expected::

    from guestwire.testing import BufferLayout, FakeGuest, FrameStream

    with FakeGuest("/run/backend.sock", transmit_layout=BufferLayout(indirect=True)) as guest:
        stream = FrameStream(length=(60, 1514))
        traffic = guest.pair.exchange(stream, 100_000)   # with a backend that sends frames back
        print(f"{traffic.received / traffic.seconds:,.0f} frames per second")

Every part can be used alone: `Frontend` for the protocol, one request at a time and in any order;
`SharedMemory` for guest memory of any shape; `DriverRing` and `QueuePair` for rings at addresses of
your choice; `RawRing` to write what no driver should; `FrameStream` for frames that travel by other
ways, and `PacketSocket` for one of these; `Wire` for a network of namespaces at the backend's other side.
Splitting header from frame, many small pieces, indirect tables, ring sizes and features that a backend
rarely sees are arguments of `FakeGuest` and `BufferLayout`.

Errors are `BackendError` (the protocol), `DeviceError` (the rings) and `VerificationError` (the
frames).
"""

from guestwire.testing.connection import BackendChannel, BackendMessage
from guestwire.testing.driver import QueuePair, ReceivedFrame, Traffic
from guestwire.testing.driver_ring import DriverRing
from guestwire.testing.fake_guest import (
    DRIVER_FEATURES,
    FRONTEND_FEATURES,
    OFFLOAD_FEATURES,
    FakeGuest,
    GuestRing,
)
from guestwire.testing.faults import BackendError, DeviceError, VerificationError
from guestwire.testing.frame_stream import FrameStream
from guestwire.testing.frontend import Frontend
from guestwire.testing.layout import BufferLayout
from guestwire.testing.load import Load, LoadWindow
from guestwire.testing.memory import Block, PageKind, Region, SharedMemory
from guestwire.testing.packet_socket import PacketSocket
from guestwire.testing.raw_ring import RawRing
from guestwire.testing.wire import Wire

__all__ = [
    "DRIVER_FEATURES",
    "FRONTEND_FEATURES",
    "OFFLOAD_FEATURES",
    "BackendChannel",
    "BackendError",
    "BackendMessage",
    "Block",
    "BufferLayout",
    "DeviceError",
    "DriverRing",
    "FakeGuest",
    "FrameStream",
    "Frontend",
    "GuestRing",
    "Load",
    "LoadWindow",
    "PacketSocket",
    "PageKind",
    "QueuePair",
    "RawRing",
    "ReceivedFrame",
    "Region",
    "SharedMemory",
    "Traffic",
    "VerificationError",
    "Wire",
]
