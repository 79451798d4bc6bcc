from guestwire.datapath.port import Port
from guestwire.datapath.xdp_socket import XdpSocket

class XdpPort(Port):
    def __init__(
        self,
        socket: XdpSocket,
        *,
        umem_offset: int,
        bounce_offset: int,
        bounce_frames: int,
        guest_memory: bool,
        chunk: int,
        headroom: int,
        room_needed: int,
        longest_frame: int,
        multi_buffer: bool,
    ) -> None: ...
    @property
    def held(self) -> tuple[int, int, int]: ...
    def close(self) -> None: ...
