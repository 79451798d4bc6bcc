from collections.abc import Sequence

def finish(
    frame: bytes, *, may_mark: bool = False, cuts: Sequence[int] = ()
) -> tuple[bytes, bytes] | None: ...
