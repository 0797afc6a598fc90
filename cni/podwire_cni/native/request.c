/* The agent's side of one call of the plugin binary; client.c describes the protocol. */
#define _GNU_SOURCE
#include "request.h"

#include <errno.h>
#include <linux/nsfs.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

enum {
	HEAD = 20,
	ENV_LENGTH = 12,
	STDIN_LENGTH = 16
}; /* size of the head, and where lengths stand in it */

static uint32_t u32(const uint8_t *at)
{
	uint32_t value;

	memcpy(&value, at, sizeof value);
	return value;
}

/* Keep the descriptors that came with a message, and close those that are too many. */
static void keep_fds(struct msghdr *message, struct request *out)
{
	for (struct cmsghdr *each = CMSG_FIRSTHDR(message); each;
	     each = CMSG_NXTHDR(message, each)) {
		if (each->cmsg_level != SOL_SOCKET || each->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t at = CMSG_LEN(0); at + sizeof(int) <= each->cmsg_len;
		     at += sizeof(int)) {
			int fd;

			memcpy(&fd, (char *)each + at, sizeof fd);
			if (out->count < REQUEST_FDS)
				out->fds[out->count++] = fd;
			else
				close(fd);
		}
	}
}

/* Read the request, as much of it as comes or fits. Returns 0, or -errno. */
static int read_request(uint8_t *buffer, uint32_t room, struct request *out)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(REQUEST_FDS * sizeof(int))];
	} control;

	uint64_t wanted = HEAD;

	while (out->size < wanted && out->size < room) {
		struct iovec part = {buffer + out->size, room - out->size};
		struct msghdr message = {
			.msg_iov = &part,
			.msg_iovlen = 1,
			.msg_control = &control,
			.msg_controllen = sizeof control,
		};
		ssize_t got = recvmsg(out->connection, &message, MSG_CMSG_CLOEXEC);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		keep_fds(&message, out);
		if (!got)
			break;
		out->size += (uint32_t)got;
		if (out->size >= HEAD)
			wanted = HEAD + (uint64_t)u32(buffer + ENV_LENGTH) +
				 u32(buffer + STDIN_LENGTH);
	}
	return 0;
}

/* Take the next caller of `listener` and read its request, as much of it as has come or fits.
 * Returns 0, or -errno: where `connection` is not -1, that is of the caller's connection. seconds:
 * how long it may keep us waiting.
 */
int request_accept(int listener, uint8_t *buffer, uint32_t room, int seconds, struct request *out)
{
	struct timeval limit = {seconds, 0};
	int error;

	memset(out, 0, sizeof *out);
	while ((out->connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) < 0)
		if (errno != EINTR)
			return -errno;
	setsockopt(out->connection, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	setsockopt(out->connection, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
	error = read_request(buffer, room, out);
	if (error)
		return error;
	for (int i = 0; i < 2 && i < out->count; i++) {
		struct stat found;

		if (fstat(out->fds[i], &found) == 0) {
			out->ids[i].dev = found.st_dev;
			out->ids[i].ino = found.st_ino;
		}
	}
	out->is_netns = out->count > 1 && ioctl(out->fds[1], NS_GET_NSTYPE) == CLONE_NEWNET;
	return 0;
}

/* Whether the caller's process has ended: it says nothing more, but only its end closes the
 * connection. */
int request_abandoned(int connection)
{
	char byte;
	ssize_t got = recv(connection, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

	return got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR);
}

/* Send the answer (none where size is 0) and close the connection and the caller's descriptors.
 * Returns 0 or -errno.
 */
int request_answer(const struct request *request, const uint8_t *text, uint32_t size)
{
	int status = 0;

	while (size && !status) {
		ssize_t sent = send(request->connection, text, size, MSG_NOSIGNAL);

		if (sent >= 0) {
			text += sent;
			size -= (uint32_t)sent;
		} else if (errno != EINTR) {
			status = -errno;
		}
	}
	close(request->connection);
	for (int i = 0; i < request->count; i++)
		close(request->fds[i]);
	return status;
}
