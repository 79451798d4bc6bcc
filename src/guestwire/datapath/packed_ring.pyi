from guestwire.datapath.ring import Ring
from guestwire.datapath.window import Window

class PackedRing(Ring):
    def __init__(
        self,
        window: Window,
        size: int,
        descriptors: int,
        driver_event: int,
        device_event: int,
        *,
        base: int = 0x80008000,
        receive: bool,
        event_index: bool = False,
        indirect: bool = True,
        read_again: bool = False,
        kick_fd: int = -1,
        call_fd: int = -1,
    ) -> None: ...
    @property
    def base(self) -> int: ...
