from guestwire.datapath.network import Network
from guestwire.datapath.port import Port

class WirePort(Port):
    network: Network
    def __init__(
        self,
        network: Network,
        member: int,
        pair: int = 0,
        *,
        source: bytes | None = None,
        ageing: int = 300,
        wait_us: int = 10_000,
    ) -> None: ...
    def open(self) -> None: ...
    def close(self) -> None: ...
