from typing import NamedTuple, final

from guestwire.testing.driver_ring import DriverRing
from guestwire.testing.frame_stream import FrameStream
from guestwire.virtio.segmentation import NetHeader

class ReceivedFrame(NamedTuple):
    data: bytes
    header: bytes
    buffers: int
    @property
    def offload(self) -> NetHeader: ...

class Traffic(NamedTuple):
    sent: int
    received: int
    lost: int
    seconds: float

@final
class QueuePair:
    receive_ring: DriverRing
    transmit_ring: DriverRing
    verify_sent: bool
    strict: bool
    accept_empty: bool
    empty: int
    def __init__(
        self,
        receive_ring: DriverRing,
        transmit_ring: DriverRing,
        *,
        verify_sent: bool = False,
        verify_unwritten: bool = False,
        strict: bool = True,
        accept_empty: bool = False,
    ) -> None: ...
    def send(
        self,
        frame: bytes | bytearray | memoryview,
        *,
        header: bytes | None = None,
        timeout: float = 10.0,
    ) -> None: ...
    def drain(self, *, timeout: float = 10.0, wait: bool = False) -> None: ...
    def receive(self, *, timeout: float = 10.0, wait: bool = True) -> ReceivedFrame | None: ...
    def send_stream(
        self,
        stream: FrameStream,
        count: int,
        *,
        timeout: float = 10.0,
        burst: int = 32,
        wait: bool = False,
        drain: bool = True,
    ) -> Traffic: ...
    def receive_stream(
        self,
        stream: FrameStream,
        count: int,
        *,
        timeout: float = 10.0,
        wait: bool = False,
        allow_loss: bool = False,
    ) -> Traffic: ...
    def exchange(
        self,
        stream: FrameStream,
        count: int,
        *,
        returning: FrameStream | None = None,
        window: int | None = None,
        timeout: float = 10.0,
        burst: int = 32,
        wait: bool = False,
        allow_loss: bool = False,
    ) -> Traffic: ...
