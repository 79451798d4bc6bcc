/* Waiting for descriptors, with a limit in nanoseconds. */
#ifndef GUESTWIRE_EPOLL_H
#define GUESTWIRE_EPOLL_H

#include <stdint.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441	/* Linux 5.11; the same on every architecture but alpha */
#endif

/* epoll_wait for so many nanoseconds; fails with ENOSYS before Linux 5.11. */
static inline int epoll_wait_ns(int epoll, struct epoll_event *events, int most, uint64_t ns)
{
	struct timespec limit = {ns / 1000000000, ns % 1000000000};

	return syscall(SYS_epoll_pwait2, epoll, events, most, &limit, NULL, 0);
}

#endif
