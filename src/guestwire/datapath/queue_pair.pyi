from guestwire.datapath.counters import Counters
from guestwire.datapath.port import Port
from guestwire.datapath.ring import Ring
from guestwire.datapath.window import Window

class QueuePair:
    window: Window
    port: Port
    rx: Ring
    tx: Ring
    def __init__(
        self,
        window: Window,
        port: Port,
        rx: Ring,
        tx: Ring,
        *,
        header_size: int = 12,
        mergeable: bool = False,
        offloads: int = 0,
        counters: Counters,
        index: int = 0,
        trouble_fd: int = -1,
        coalesce_us: int = 0,
        coalesce_packets: int = 64,
    ) -> None: ...
    def post(self) -> None: ...
    def step(self) -> int: ...
    def finish(self) -> None: ...
    def settle(self) -> tuple[bool, bool]: ...
    def enable(self, *, rx: bool, tx: bool) -> None: ...
