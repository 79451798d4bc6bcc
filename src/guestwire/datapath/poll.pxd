"""Looking at one descriptor (poll(2))."""

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout)
    const short POLLIN, POLLOUT
