from collections.abc import Sequence
from typing import NamedTuple

from guestwire.datapath.window import Window
from guestwire.datapath.xdp_socket import XdpSocket

class SentFrame(NamedTuple):
    data: bytes
    addresses: tuple[int, ...]
    lengths: tuple[int, ...]

class Waiting(NamedTuple):
    fill: int
    tx: int
    rx: int
    completion: int

class FakeXdpSocket(XdpSocket):
    def __init__(
        self,
        window: Window,
        *,
        guest_memory: bool = True,
        zero_copy: bool = False,
        chunk: int = 4096,
        headroom: int = 0,
        ring_size: int = 64,
        rx_size: int | None = None,
    ) -> None: ...
    def take_fill(self, most: int | None = None) -> list[int]: ...
    def deliver(
        self,
        address: int,
        frame: bytes,
        *,
        offset: int | None = None,
        before: bytes = b"",
        continued: bool = False,
    ) -> None: ...
    def describe(self, address: int, length: int, *, offset: int | None = None, options: int = 0) -> None: ...
    def take_tx(self, most: int | None = None) -> list[tuple[int, int, int]]: ...
    def take_frames(self, most: int | None = None) -> list[SentFrame]: ...
    def complete(self, addresses: Sequence[int]) -> None: ...
    def serve(self, *, receive: int = 0, send: int = 0, length: int = 1514) -> tuple[int, int]: ...
    @property
    def waiting(self) -> Waiting: ...
    def need_wakeup(self, *, fill: bool, tx: bool) -> None: ...
    def read(self, address: int, length: int) -> bytes: ...
    def write(self, address: int, data: bytes) -> None: ...

def scatter_pages(window: Window, piece: int) -> None: ...
