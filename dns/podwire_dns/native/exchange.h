/* What Python sees of exchange.c. cffi reads this file, behind batch.h and the C preprocessor, with
 * PODWIRE_CDEF defined. */
#ifndef PODWIRE_EXCHANGE_H
#define PODWIRE_EXCHANGE_H
#ifndef PODWIRE_CDEF
#include <netinet/in.h>
#include <stdint.h>

#include "batch.h"

enum { IDLE = 64 };

struct upstream_socket {
	uint64_t born;
	int32_t uses;
	int32_t idle; /* its place among the idle ones, from 1; 0: it is in use */
	struct sockaddr_in6 to;
};
#endif

struct exchange {
	int32_t fds[BATCH]; /* sockets that something came to */
	int32_t lengths[BATCH]; /* of the packets; below 0: -errno */
	char *packets;
	int32_t packet_size;
	uint8_t fresh[BATCH]; /* exchange_send opened a socket for this query */
	int32_t epoll; /* readable when there is something to receive */
#ifdef PODWIRE_CDEF
	...;
#else
	struct upstream_socket *sockets; /* by descriptor */
	int32_t idle[IDLE];
	int32_t idle_count;
	uint64_t random;
#endif
};

struct exchange *exchange_new(void);
void exchange_free(struct exchange *x);
void exchange_send(struct exchange *x, int count, const char *addresses, const int32_t *sizes,
		   const int32_t *ports, const char *messages, const int32_t *lengths,
		   int32_t *fds);
int exchange_receive(struct exchange *x);
void exchange_reuse(struct exchange *x, const int32_t *fds, int count);
void exchange_close(const int32_t *fds, int count);
void exchange_close_idle(struct exchange *x);

#endif
