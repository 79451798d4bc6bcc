from array import array
from collections.abc import Sequence
from typing import NamedTuple

from guestwire.testing.driver import QueuePair
from guestwire.testing.frame_stream import FrameStream

class LoadWindow(NamedTuple):
    seconds: float
    sent: int
    received: int
    received_bytes: int
    waited: float
    turns: int

class Load:
    def __init__(
        self,
        pairs: Sequence[QueuePair],
        streams: Sequence[FrameStream],
        *,
        returning: bool,
        window: int | None = None,
        burst: int = 32,
        yielding: bool = False,
    ) -> None: ...
    def run(self, seconds: float) -> LoadWindow: ...
    def drain(self, timeout: float = 5.0) -> None: ...
    def round_trips(self, seconds: float) -> array[int]: ...
