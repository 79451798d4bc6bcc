from guestwire.datapath.window import Window

class XdpSocketError(OSError):
    step: str
    def __init__(self, number: int, step: str) -> None: ...

class XdpSocket:
    fd: int
    guest_memory: bool
    zero_copy: bool
    chunk: int
    headroom: int
    umem_offset: int
    def __init__(
        self,
        window: Window,
        *,
        guest_memory: bool,
        chunk: int,
        headroom: int,
        ring_size: int,
        rx_size: int,
        frames: range | None = None,
    ) -> None: ...
    def bind(
        self, *, interface_index: int, queue: int, zero_copy: bool, several_buffers: bool = False
    ) -> None: ...
    def statistics(self) -> dict[str, int]: ...
    def close(self) -> None: ...
