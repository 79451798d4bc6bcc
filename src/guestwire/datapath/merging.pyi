from collections.abc import Iterable

def merge(
    frames: Iterable[bytes], *, offloads: int, unfinished: bool = False
) -> list[tuple[bytes, bytes]]: ...
