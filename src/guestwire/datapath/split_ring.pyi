from guestwire.datapath.ring import Ring
from guestwire.datapath.window import Window

class SplitRing(Ring):
    def __init__(
        self,
        window: Window,
        size: int,
        descriptors: int,
        available: int,
        used: int,
        *,
        base: int = 0,
        receive: bool,
        event_index: bool = False,
        indirect: bool = True,
        kick_fd: int = -1,
        call_fd: int = -1,
    ) -> None: ...
    @property
    def base(self) -> int: ...
    @property
    def used_index(self) -> int: ...
