"""Waiting for descriptors (epoll(7))."""

from libc.stdint cimport uint32_t, uint64_t

cdef extern from "epoll.h" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int most, int timeout)
    int epoll_wait_ns(int epoll, epoll_event *events, int most, uint64_t ns)
    const int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL
    const uint32_t EPOLLIN, EPOLLET, EPOLLERR
