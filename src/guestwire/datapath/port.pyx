# cython: language_level=3
"""The base of all ports of the compiled core; see port.pxd for what a port does."""


cdef class Port:
    """Where frames of one queue pair enter and leave. Made by a subclass, used by one QueuePair at a time."""

    @property
    def fd(self):
        """The descriptor that is readable when frames have arrived; -1 if there is none."""
        return -1 if self.port == NULL else self.port.fd

    @property
    def gone(self):
        """Whether what the port is made of, its interface, is no more."""
        return self.port != NULL and bool(self.port.gone)
