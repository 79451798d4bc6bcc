from typing import TypedDict

MAGIC: bytes
HEADER_BYTES: int
PAIR_BYTES: int
COPY_REASONS: tuple[str, ...]
DROP_REASONS: tuple[str, ...]

class DirectionCounters(TypedDict):
    frames: int
    bytes: int
    zero_copy_frames: int
    direct_frames: int
    copied_bytes: int
    copied_frames: dict[str, int]
    drops: dict[str, int]

class PairCounters(TypedDict):
    rx: DirectionCounters
    tx: DirectionCounters
    worker: dict[str, int]

def decode(data: bytes | bytearray | memoryview) -> list[PairCounters]: ...

class Counters:
    pairs: int
    def __init__(self, fd: int, pairs: int) -> None: ...
    def read(self) -> list[PairCounters]: ...
