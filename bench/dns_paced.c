/* Sends queries to a DNS server at a given rate, at random moments (a Poisson process), and
 * measures the time to each answer.
 *
 *     dns_paced ADDRESS PORT FILE SECONDS RATE
 *
 * FILE has "name type" lines, as dnsperf reads them (A, AAAA, SRV).
 *
 * The time covers the server and the kernel between: from the moment before a query is sent to the
 * moment when the kernel put its answer into our queue (SO_TIMESTAMPNS). The answer's wait for this
 * program is reported separately. A query during whose sending this program was interrupted is left
 * out and counted. A missing answer counts as the slowest.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <math.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
	SOCKETS = 8,
	LONGEST = 300,
	QUESTIONS = 20000,
	IDENTS = 65536,
	BUFFER = 1 << 20,
	DRAIN_US = 500000
};

static const int64_t INTERRUPTED_NS = 100000, NEVER_NS = 5000000000;

typedef struct {
	int64_t sent, after, came, seen;
} exchange;

static int sockets[SOCKETS];
static exchange *rows;
static long total;
static volatile int over;

static int64_t clock_ns(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Question k leaves from socket k % SOCKETS with the id k / SOCKETS. */
static void take(int from, const uint8_t *data, int64_t came)
{
	long first = (data[0] << 8 | data[1]) * (long)SOCKETS + from;
	for (long k = first; k < total; k += (long)IDENTS * SOCKETS)
		if (rows[k].sent && !rows[k].seen) {
			rows[k].came = came;
			rows[k].seen = clock_ns(CLOCK_REALTIME);
			return;
		}
}

static void *receive(void *unused)
{
	struct pollfd polled[SOCKETS];
	for (int i = 0; i < SOCKETS; i++)
		polled[i] = (struct pollfd){sockets[i], POLLIN, 0};
	while (!over) {
		if (poll(polled, SOCKETS, 100) <= 0)
			continue;
		for (int i = 0; i < SOCKETS; i++) {
			uint8_t data[4096];
			char control[128];
			struct iovec vector = {data, sizeof data};
			for (;;) {
				struct msghdr message = {.msg_iov = &vector,
							 .msg_iovlen = 1,
							 .msg_control = control,
							 .msg_controllen = sizeof control};
				if (recvmsg(sockets[i], &message, MSG_DONTWAIT) < 12)
					break;
				struct cmsghdr *stamp = CMSG_FIRSTHDR(&message);
				struct timespec came = {0, 0};
				if (stamp && stamp->cmsg_type == SO_TIMESTAMPNS)
					memcpy(&came, CMSG_DATA(stamp), sizeof came);
				take(i, data, came.tv_sec * 1000000000LL + came.tv_nsec);
			}
		}
	}
	return unused;
}

static int encode(uint8_t *out, const char *name, const char *type)
{
	memcpy(out, "\0\0\1\0\0\1\0\0\0\0\0\0", 12);
	int at = 12;
	for (const char *label = name; *label;) {
		const char *dot = strchr(label, '.');
		size_t length = dot ? (size_t)(dot - label) : strlen(label);
		out[at++] = (uint8_t)length;
		memcpy(out + at, label, length);
		at += (int)length, label += length + (dot != NULL);
	}
	out[at++] = 0;
	out[at++] = 0;
	out[at++] = strcmp(type, "AAAA") ? strcmp(type, "SRV") ? 1 : 33 : 28;
	out[at++] = 0;
	out[at++] = 1;
	return at;
}

static int by_size(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
	return (x > y) - (x < y);
}

static double share(int64_t *sorted, long count, double part)
{
	return count ? (double)sorted[(long)((double)(count - 1) * part)] / 1e6 : 0;
}

static void report(void)
{
	int64_t *server = malloc((size_t)total * sizeof *server),
		*client = malloc((size_t)total * sizeof *client);
	long count = 0, answered = 0, lost = 0, interrupted = 0;
	for (long k = 0; k < total; k++) {
		const exchange *row = &rows[k];
		if (!row->seen || !row->came) {
			lost++, server[count++] = NEVER_NS;
		} else if (row->after - row->sent > INTERRUPTED_NS) {
			interrupted++;
		} else {
			client[answered++] = row->seen - row->came;
			server[count++] = row->came - row->sent;
		}
	}
	qsort(server, (size_t)count, sizeof *server, by_size);
	qsort(client, (size_t)answered, sizeof *client, by_size);
	printf("{\"asked\": %ld, \"lost\": %ld, \"interrupted\": %ld, \"p50\": %.4f, \"p99\": %.4f, \"p999\": %.4f, \"generator_p99\": %.4f}\n",
	       total, lost, interrupted, share(server, count, 0.5), share(server, count, 0.99),
	       share(server, count, 0.999), share(client, answered, 0.99));
}

int main(int argc, char **argv)
{
	if (argc != 6)
		return fprintf(stderr, "usage: dns_paced ADDRESS PORT FILE SECONDS RATE\n"), 2;
	double rate = atof(argv[5]);
	total = (long)(atof(argv[4]) * rate);
	FILE *file = fopen(argv[3], "r");
	uint8_t (*questions)[LONGEST] = calloc(QUESTIONS, LONGEST);
	int *lengths = calloc(QUESTIONS, sizeof *lengths);
	char name[256], type[16];
	long known = 0;
	while (file && known < QUESTIONS && fscanf(file, "%255s %15s", name, type) == 2) {
		lengths[known] = encode(questions[known], name, type);
		known++;
	}
	if (!known)
		return fprintf(stderr, "dns_paced: no questions in %s\n", argv[3]), 1;
	rows = calloc((size_t)total, sizeof *rows);
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[2]))};
	inet_aton(argv[1], &to.sin_addr);
	for (int i = 0; i < SOCKETS; i++) {
		int yes = 1, size = BUFFER;
		sockets[i] = socket(AF_INET, SOCK_DGRAM, 0);
		setsockopt(sockets[i], SOL_SOCKET, SO_TIMESTAMPNS, &yes, sizeof yes);
		setsockopt(sockets[i], SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
		if (connect(sockets[i], (struct sockaddr *)&to, sizeof to))
			return perror("dns_paced: connect"), 1;
	}
	pthread_t receiver;
	prctl(PR_SET_TIMERSLACK, 1);
	pthread_create(&receiver, NULL, receive, NULL);
	uint64_t random = (uint64_t)clock_ns(CLOCK_MONOTONIC) | 1;
	double due = (double)clock_ns(CLOCK_MONOTONIC) + 1e8;
	for (long k = 0; k < total; k++) {
		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		due -= log((double)((random >> 11) + 1) / 9007199254740993.0) * 1e9 / rate;
		if ((double)clock_ns(CLOCK_MONOTONIC) < due) {
			struct timespec when = {(time_t)(due / 1e9),
						(long)((int64_t)due % 1000000000)};
			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL);
		}
		uint8_t *question = questions[k % known];
		long ident = k / SOCKETS;
		question[0] = (uint8_t)(ident >> 8), question[1] = (uint8_t)ident;
		rows[k].sent = clock_ns(CLOCK_REALTIME);
		send(sockets[k % SOCKETS], question, (size_t)lengths[k % known], 0);
		rows[k].after = clock_ns(CLOCK_REALTIME);
	}
	usleep(DRAIN_US);
	over = 1;
	pthread_join(receiver, NULL);
	report();
	return 0;
}
