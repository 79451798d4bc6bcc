from guestwire.datapath.window import Window

class XdpSocketError(OSError):
    step: str
    def __init__(self, number: int, step: str) -> None: ...

class XdpSocket:
    fd: int
    zero_copy: bool
    def __init__(
        self,
        window: Window,
        *,
        guest_memory: bool,
        interface_index: int,
        queue: int,
        zero_copy: bool,
        chunk: int,
        headroom: int,
        ring_size: int,
    ) -> None: ...
    def statistics(self) -> dict[str, int]: ...
    def close(self) -> None: ...
