from guestwire.datapath.port import Port

class EchoPort(Port):
    def __init__(self) -> None: ...
