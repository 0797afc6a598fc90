/* Queries to upstreams: one call to send many, one to receive the answers.
 *
 * A query to an upstream has a socket, and so a random port, that no other query uses meanwhile
 * (RFC 5452 section 9.2); answers are received together. Making, connecting, watching and closing a
 * socket costs as much as the exchange itself: one that was answered serves a few queries more, for
 * a moment.
 */
#define _GNU_SOURCE
#include "exchange.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <unistd.h>

#include "clock.h"
#include "random.h"

enum { USES = 16, FILES = 65536 };

static const uint64_t LIFETIME_NS = 1000000000;

struct exchange *exchange_new(void)
{
	struct exchange *x = calloc(1, sizeof *x);
	if (!x)
		return NULL;
	x->packets = malloc((size_t)BATCH * PACKET);
	x->sockets = calloc(FILES, sizeof *x->sockets);
	x->packet_size = PACKET;
	x->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (getrandom(&x->random, sizeof x->random, GRND_NONBLOCK) != sizeof x->random)
		x->random = monotonic_ns();
	x->random |= 1;
	if (!x->packets || !x->sockets || x->epoll < 0) {
		if (x->epoll >= 0)
			close(x->epoll);
		free(x->packets);
		free(x->sockets);
		free(x);
		return NULL;
	}
	return x;
}

/* Take a socket out of the idle ones. */
static void take_idle(struct exchange *x, int fd)
{
	int last = x->idle[--x->idle_count], place = x->sockets[fd].idle;
	x->idle[place - 1] = last;
	x->sockets[last].idle = place;
	x->sockets[fd].idle = 0;
}

/* Close the idle sockets. */
void exchange_close_idle(struct exchange *x)
{
	while (x->idle_count) {
		int fd = x->idle[x->idle_count - 1];
		take_idle(x, fd);
		close(fd);
	}
}

void exchange_free(struct exchange *x)
{
	exchange_close_idle(x);
	close(x->epoll);
	free(x->packets);
	free(x->sockets);
	free(x);
}

/* Any idle socket to `to` that is young still, which is then in use; -1: there is none. */
static int any_idle(struct exchange *x, const struct sockaddr_in6 *to, uint64_t moment)
{
	uint64_t start = next_random(&x->random);
	for (int k = 0, count = x->idle_count; k < count && x->idle_count; k++) {
		int fd = x->idle[(start + (uint64_t)k) % (uint64_t)x->idle_count];
		if (moment - x->sockets[fd].born > LIFETIME_NS) {
			take_idle(x, fd);
			close(fd);
		} else if (!memcmp(&x->sockets[fd].to, to, sizeof *to)) {
			take_idle(x, fd);
			return fd;
		}
	}
	return -1;
}

/* The descriptor of the socket that `message` left from, or -errno. address: 4 or 16 bytes in
 * network order. */
static int send_one(struct exchange *x, const char *address, int size, int port,
		    const char *message, int length, uint64_t moment)
{
	struct sockaddr_in6 to = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
	struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	if (size == 16) {
		memcpy(&to.sin6_addr, address, 16);
	} else {
		memcpy(&four.sin_addr, address, 4);
		memset(&to, 0, sizeof to);
		memcpy(&to, &four, sizeof four);
	}
	int fd = any_idle(x, &to, moment);
	if (fd >= 0) {
		if (send(fd, message, (size_t)length, 0) >= 0) {
			x->sockets[fd].uses++;
			return fd;
		}
		close(fd); /* an error about an earlier query, perhaps: this one shall not suffer */
	}
	fd = socket(to.sin6_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
	if (connect(fd, (struct sockaddr *)&to, size == 16 ? sizeof to : sizeof four) ||
	    send(fd, message, (size_t)length, 0) < 0 ||
	    epoll_ctl(x->epoll, EPOLL_CTL_ADD, fd, &event)) {
		int error = errno;
		close(fd);
		return -error;
	}
	if (fd < FILES)
		x->sockets[fd] = (struct upstream_socket){.born = moment, .uses = 1, .to = to};
	return fd;
}

/* `count` messages, at most BATCH, one behind the other in `messages`; the same for addresses. fds:
 * as of send_one. */
void exchange_send(struct exchange *x, int count, const char *addresses, const int32_t *sizes,
		   const int32_t *ports, const char *messages, const int32_t *lengths, int32_t *fds)
{
	uint64_t moment = monotonic_ns();
	for (int k = 0; k < count; addresses += sizes[k], messages += lengths[k], k++) {
		int fd = send_one(x, addresses, sizes[k], ports[k], messages, lengths[k], moment);
		fds[k] = fd;
		x->fresh[k] = fd >= FILES || (fd >= 0 && x->sockets[fd].uses == 1);
	}
}

/* What has come, without waiting: fds, and the lengths of their packets (below 0: -errno). How
 * many. */
int exchange_receive(struct exchange *x)
{
	struct epoll_event events[BATCH];
	int count = epoll_wait(x->epoll, events, BATCH, 0), kept = 0;
	for (int i = 0; i < count; i++) {
		int fd = events[i].data.fd;
		if (fd < FILES &&
		    x->sockets[fd]
			    .idle) { /* nobody asked for this: a forgery, or an answer sent twice */
			take_idle(x, fd);
			close(fd);
			continue;
		}
		ssize_t length = recv(fd, x->packets + (size_t)kept * PACKET, PACKET, MSG_DONTWAIT);
		if (length < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		x->fds[kept] = fd;
		x->lengths[kept++] = length < 0 ? -errno : (int32_t)length;
	}
	return kept;
}

/* Sockets whose queries were answered: they may serve others. */
void exchange_reuse(struct exchange *x, const int32_t *fds, int count)
{
	uint64_t moment = monotonic_ns();
	for (int i = 0; i < count; i++) {
		int fd = fds[i];
		if (fd >= FILES || x->idle_count == IDLE || x->sockets[fd].uses >= USES ||
		    moment - x->sockets[fd].born > LIFETIME_NS) {
			close(fd);
		} else {
			x->idle[x->idle_count++] = fd;
			x->sockets[fd].idle = x->idle_count;
		}
	}
}

/* Sockets whose queries nobody waits for any more, or that failed. */
void exchange_close(const int32_t *fds, int count)
{
	for (int i = 0; i < count; i++)
		close(fds[i]);
}
