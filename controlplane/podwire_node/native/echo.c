/* podwire-echo: a small server for demos and tests. It answers with its host name and the peer's
 * address, so that a client sees which pod it reached and which source address arrived there.
 *
 *     podwire-echo [--http PORT] [--tcp PORT] [--udp PORT] ...
 *
 * Each option may be given several times; the default is --http 8080.
 *
 * HTTP: one JSON object for each request. TCP: one JSON line on connect, then every byte comes
 * back. UDP: one JSON line for each datagram, with its payload. Sockets are dual-stack. It ends on
 * SIGTERM and SIGINT. One thread, one epoll.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum kind { HTTP, TCP, UDP, HTTP_CLIENT, TCP_CLIENT };

struct conn {
	int fd;
	enum kind kind;
	size_t used;
	char buffer[4096];
};

static char host[256];
static volatile sig_atomic_t stop;

static void on_signal(int number)
{
	(void)number;
	stop = 1;
}

static void address(const struct sockaddr_in6 *from, char *out, size_t size)
{
	char text[INET6_ADDRSTRLEN];
	if (IN6_IS_ADDR_V4MAPPED(&from->sin6_addr))
		inet_ntop(AF_INET, from->sin6_addr.s6_addr + 12, text, sizeof text);
	else
		inet_ntop(AF_INET6, &from->sin6_addr, text, sizeof text);
	snprintf(out, size, "\"peer\":\"%s\",\"port\":%d", text, ntohs(from->sin6_port));
}

static int describe(int fd, const struct sockaddr_in6 *from, char *out, size_t size)
{
	struct sockaddr_in6 peer, own;
	socklen_t length = sizeof peer, own_length = sizeof own;
	char who[128] = "", here[128] = "";
	if (from)
		peer = *from;
	else if (getpeername(fd, (struct sockaddr *)&peer, &length))
		memset(&peer, 0, sizeof peer);
	address(&peer, who, sizeof who);
	if (!getsockname(fd, (struct sockaddr *)&own, &own_length))
		snprintf(here, sizeof here, "\"local_port\":%d", ntohs(own.sin6_port));
	return snprintf(out, size, "{\"host\":\"%s\",%s,%s}\n", host, who, here);
}

static int listen_on(enum kind kind, int port)
{
	int one = 1, zero = 0,
	    fd = socket(AF_INET6,
			(kind == UDP ? SOCK_DGRAM : SOCK_STREAM) | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	struct sockaddr_in6 any = {.sin6_family = AF_INET6,
				   .sin6_port = htons((unsigned short)port)};
	struct sockaddr_in any4 = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
	int v6 = fd >= 0;
	if (!v6) /* a host with ipv6.disable=1 */
		fd = socket(AF_INET,
			    (kind == UDP ? SOCK_DGRAM : SOCK_STREAM) | SOCK_NONBLOCK | SOCK_CLOEXEC,
			    0);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (v6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
	if (bind(fd, v6 ? (struct sockaddr *)&any : (struct sockaddr *)&any4,
		 v6 ? sizeof any : sizeof any4) ||
	    (kind != UDP && listen(fd, 1024))) {
		fprintf(stderr, "podwire-echo: port %d: %s\n", port, strerror(errno));
		exit(1);
	}
	return fd;
}

static struct conn *watch(int poll, int fd, enum kind kind)
{
	struct conn *conn = calloc(1, sizeof *conn);
	if (!conn) {
		close(fd);
		return NULL;
	}
	conn->fd = fd;
	conn->kind = kind;
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = conn};
	epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
	return conn;
}

static void drop(struct conn *conn)
{
	close(conn->fd);
	free(conn);
}

static void accept_all(int poll, struct conn *server)
{
	int fd;
	while ((fd = accept4(server->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		struct conn *client =
			watch(poll, fd, server->kind == HTTP ? HTTP_CLIENT : TCP_CLIENT);
		if (client && client->kind == TCP_CLIENT) {
			char line[512];
			int size = describe(fd, NULL, line, sizeof line);
			if (write(fd, line, (size_t)size) < 0)
				drop(client);
		}
	}
	if (errno == EMFILE || errno == ENFILE)
		usleep(10000); /* epoll reports the listener at once again */
}

static void datagrams(struct conn *server)
{
	struct sockaddr_in6 from;
	char line[2048];
	for (;;) {
		socklen_t length = sizeof from;
		ssize_t got = recvfrom(server->fd, server->buffer, 1024, 0,
				       (struct sockaddr *)&from, &length);
		if (got < 0)
			return;
		int size = describe(server->fd, &from, line, 900);
		memcpy(line + size, server->buffer, (size_t)got);
		sendto(server->fd, line, (size_t)(size + got), 0, (struct sockaddr *)&from, length);
	}
}

static void http(struct conn *conn)
{
	ssize_t got =
		read(conn->fd, conn->buffer + conn->used, sizeof conn->buffer - 1 - conn->used);
	if (got <= 0) {
		if (got == 0 || errno != EAGAIN)
			drop(conn);
		return;
	}
	conn->used += (size_t)got;
	conn->buffer[conn->used] = 0;
	if (!strstr(conn->buffer, "\r\n\r\n") && conn->used < sizeof conn->buffer - 1)
		return;
	char body[512], answer[1024];
	int size = describe(conn->fd, NULL, body, sizeof body);
	int total = snprintf(
		answer, sizeof answer,
		"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		size, body);
	if (write(conn->fd, answer, (size_t)total) < 0)
		perror("podwire-echo: write");
	shutdown(conn->fd, SHUT_WR);
	drop(conn);
}

static void echo(struct conn *conn)
{
	ssize_t got = read(conn->fd, conn->buffer, sizeof conn->buffer);
	if (got > 0 && write(conn->fd, conn->buffer, (size_t)got) == got)
		return;
	if (got <= 0 && errno == EAGAIN && got < 0)
		return;
	drop(conn);
}

int main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = on_signal};
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	signal(SIGPIPE, SIG_IGN);
	struct rlimit files;
	if (!getrlimit(RLIMIT_NOFILE, &files)) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	gethostname(host, sizeof host - 1);
	int poll = epoll_create1(EPOLL_CLOEXEC), servers = 0;
	for (int n = 1; n + 1 < argc; n += 2) {
		enum kind kind = !strcmp(argv[n], "--http")  ? HTTP
				 : !strcmp(argv[n], "--tcp") ? TCP
							     : UDP;
		int port = atoi(argv[n + 1]);
		if ((kind == UDP && strcmp(argv[n], "--udp")) || port < 1 || port > 65535) {
			fprintf(stderr,
				"podwire-echo: %s %s: expected --http, --tcp or --udp and a port\n",
				argv[n], argv[n + 1]);
			return 2;
		}
		watch(poll, listen_on(kind, port), kind);
		servers++;
	}
	if (argc > 1 && !servers) {
		fprintf(stderr, "podwire-echo: %s: expected --http, --tcp or --udp and a port\n",
			argv[1]);
		return 2;
	}
	if (!servers)
		watch(poll, listen_on(HTTP, 8080), HTTP);
	while (!stop) {
		struct epoll_event events[64];
		int count = epoll_wait(poll, events, 64, -1);
		for (int n = 0; n < count; n++) {
			struct conn *conn = events[n].data.ptr;
			switch (conn->kind) {
			case HTTP:
			case TCP:
				accept_all(poll, conn);
				break;
			case UDP:
				datagrams(conn);
				break;
			case HTTP_CLIENT:
				http(conn);
				break;
			case TCP_CLIENT:
				echo(conn);
				break;
			}
		}
	}
	return 0;
}
