from collections.abc import Sequence
from typing import final

from guestwire.testing.faults import DeviceError
from guestwire.testing.raw_ring import RawRing

PAINT: int
DEVICE_FAULTS: dict[int, str]

@final
class DriverRing:
    raw: RawRing
    """Its parts as plain memory; None of a packed ring."""
    features: int
    def __init__(
        self,
        size: int,
        descriptor_table: memoryview,
        available_ring: memoryview,
        used_ring: memoryview,
        *,
        area: memoryview,
        area_address: int,
        pieces: Sequence[tuple[int, int]],
        spacing: int,
        tables: memoryview | None = None,
        tables_address: int = 0,
        receive: bool,
        features: int,
        buffers: int | None = None,
        base: int = 0,
        kick_fd: int = -1,
        call_fd: int = -1,
    ) -> None: ...
    @property
    def resume_base(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def buffers(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def header_size(self) -> int: ...
    @property
    def next_used(self) -> int: ...
    @property
    def kicks(self) -> int: ...
    @property
    def calls(self) -> int: ...
    def fault(self, number: int) -> DeviceError: ...
    def post(self, count: int | None = None) -> int: ...
    def kick(self) -> None: ...
    def buffer_address(self, buffer: int) -> int: ...
    def check_guards(self) -> None: ...
    def release(self) -> None: ...
