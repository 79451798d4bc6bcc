from array import array

from guestwire.datapath.port import Port

LINKTYPE_ETHERNET: int

class PcapPort(Port):
    def __init__(
        self,
        data: bytes | bytearray | memoryview | None = None,
        places: array[int] | None = None,
        output_fd: int = -1,
        *,
        repeat: bool = False,
    ) -> None: ...
    @property
    def output_error(self) -> int: ...
