/* What Python sees of batch.c. cffi reads this file, behind table.h and the C preprocessor, with
 * PODWIRE_CDEF defined. */
#ifndef PODWIRE_BATCH_H
#define PODWIRE_BATCH_H
#ifndef PODWIRE_CDEF
#include <netinet/in.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/socket.h>

#include "table.h"
#endif

enum {
	BATCH = 64,
	PACKET = 4096,
	MAXIMUM = 1232,
	TYPES = 66,
	RCODES = 16,
	BUCKETS = 17,
	SIZES = 15
};

struct batch_counts {
	uint64_t types[TYPES]; /* answered queries by type; 0 counts all others */
	uint64_t rcodes[RCODES]; /* responses from the zone */
	uint64_t cached[RCODES]; /* responses with answers of upstreams */
	uint64_t took[BUCKETS]; /* responses by the bounds of batch.c, the last one unbounded */
	uint64_t took_ns;
	uint64_t query_sizes[SIZES], answer_sizes[SIZES]; /* of what was answered, by the bounds of
							     batch.c, the last one unbounded */
	uint64_t dnssec_ok;
	uint64_t received;
	uint64_t sent_bytes, received_bytes;
	uint64_t calls; /* recvmmsg calls that gave something */
	uint64_t taken; /* queries of the last batch that have no answer yet */
};

struct batch {
	int32_t ends[BATCH + 1]; /* keys[ends[i]:ends[i+1]] is query i's question in lower case;
				    empty: not a plain query */
	uint8_t zone[BATCH]; /* the name lies in the zone given to batch_set */
	uint8_t simple[BATCH]; /* recursion desired, and neither DO, CD nor AD: an answer of the
				  forward cache fits as it is */
	int32_t lengths[BATCH]; /* of the packets */
	int32_t rest[BATCH]; /* the queries of this batch that are left to Python, by their index */
	int32_t left[BATCH]; /* what batch_send could not send because it is too large for its
				client */
	char *keys;
	char *packets; /* PACKET bytes for each */
	int32_t packet_size;
	struct batch_counts *counts;
	int32_t stop; /* batch_receive returns before it receives more */
	int32_t idle; /* the thread waits for queries */
#ifdef PODWIRE_CDEF
	...;
#else
	struct batch_counts own;
	pthread_mutex_t lock; /* for what batch_set sets */
	int fd, recursion, shuffle, autopath, zone_length;
	char zone_name[256];
	struct table *table; /* NULL: all questions are Python's */
	uint64_t random, began;
	uint8_t edns[BATCH]; /* 0: none, 1: OPT, 2: OPT with DO */
	int32_t limits[BATCH];
	char out[BATCH][MAXIMUM];
	struct sockaddr_in6 peers[BATCH];
	struct mmsghdr in_headers[BATCH], out_headers[BATCH];
	struct iovec in_vectors[BATCH], out_vectors[BATCH];
#endif
};

struct batch *batch_new(int fd, struct batch_counts *counts);
void batch_set(struct batch *b, int recursion, int shuffle, int autopath, const char *zone,
	       int zone_length, struct table *answers);
void batch_free(struct batch *b);
int batch_receive(struct batch *b);
int batch_send(struct batch *b, int count, const char *values, const int32_t *sizes,
	       const uint8_t *modes);
const char *batch_peers(const struct batch *b);
void batch_answer(struct batch *b, int count, const char *answers, const int32_t *lengths,
		  const char *peers);
int batch_reply(struct batch *b, int index, const char *answer, int length);

#endif
