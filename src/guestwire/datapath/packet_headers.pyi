from typing import Literal

def checksum_of(
    frame: bytes, known: int, start: int, offset: int
) -> Literal["transport", "elsewhere", "forged"]: ...
