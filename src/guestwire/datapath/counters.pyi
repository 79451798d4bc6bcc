MAGIC: bytes
HEADER_BYTES: int
PAIR_BYTES: int
COPY_REASONS: tuple[str, ...]
DROP_REASONS: tuple[str, ...]
WORKER_COUNTERS: tuple[str, ...]

class Counters:
    pairs: int
    def __init__(self, fd: int, pairs: int) -> None: ...
    def read(self) -> bytes: ...
