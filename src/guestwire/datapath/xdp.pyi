from collections.abc import Sequence

from guestwire.datapath.port import Port
from guestwire.datapath.xdp_socket import XdpSocket

class XdpPort(Port):
    def __init__(
        self,
        socket: XdpSocket,
        *,
        bounce_offset: int,
        bounce_frames: int,
        room_needed: int,
        longest_frame: int,
        most_pieces: int,
        reserve: int = 0,
        copy_headers: bool = False,
        source: bytes | None = None,
        several_buffers: bool = False,
        finish_checksums: bool = False,
        merge: bool = False,
        in_place_from: int = 0,
        busy_poll: bool = False,
        stand_ins: Sequence[tuple[XdpSocket, int, int]] = (),
    ) -> None: ...
    @property
    def held(self) -> tuple[int, int, int]: ...
    def close(self) -> None: ...
