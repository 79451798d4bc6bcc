from guestwire.datapath.port import Port

class NullPort(Port):
    def __init__(self) -> None: ...
