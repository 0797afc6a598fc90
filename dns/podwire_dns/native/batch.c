/* Many queries in, many answers out, with one system call each: the receiving and sending half of a
 * DNS server.
 *
 * A query is recognised as plain (a header, one question, at most an empty OPT record), and its
 * question put in lower case for the look-up. Around the value that was found go the head, the
 * question as it came, and the OPT record. What table.c has is answered without Python, whatever
 * Python does meanwhile; all else is Python's business. A value: ANCOUNT, NSCOUNT, ARCOUNT, then
 * the records (wire.py).
 */
#define _GNU_SOURCE
#include "batch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "random.h"

enum { MINIMUM = 512, SEND = 16, FORWARDED = 64 };

/* CoreDNS's bounds, in ns: 0.25 ms doubled up to 8 s. */
static const uint64_t BOUNDS[BUCKETS - 1] = {
	250000,	  500000,    1000000,	2000000,   4000000,    8000000,	   16000000,   32000000,
	64000000, 128000000, 256000000, 512000000, 1024000000, 2048000000, 4096000000, 8192000000};

/* CoreDNS's bounds of sizes, in bytes. */
static const int SIZE_BOUNDS[SIZES - 1] = {0,	 100,  200,  300,   400,   511,	  1023,
					   2047, 4095, 8291, 16000, 32000, 48000, 64000};

static void count_size(uint64_t *sizes, int size)
{
	int at = 0;
	while (at < SIZES - 1 && size > SIZE_BOUNDS[at])
		at++;
	sizes[at]++;
}

/* What may change while packets come in: `zone` is the cluster zone's name in lower case and wire
 * form. When this returns, the table that was in force before is not used any more. */
void batch_set(struct batch *b, int recursion, int shuffle, int autopath, const char *zone,
	       int zone_length, struct table *answers)
{
	pthread_mutex_lock(&b->lock);
	memcpy(b->zone_name, zone, (size_t)zone_length);
	b->zone_length = zone_length;
	b->recursion = recursion;
	b->shuffle = shuffle;
	b->autopath = autopath;
	b->table = answers;
	pthread_mutex_unlock(&b->lock);
}

/* counts: zeroed memory that outlives this process, shared with another one; NULL: the batch has
 * its own. */
struct batch *batch_new(int fd, struct batch_counts *counts)
{
	struct batch *b = calloc(1, sizeof *b);
	if (!b)
		return NULL;
	b->counts = counts ? counts : &b->own;
	b->packets = malloc((size_t)BATCH * PACKET);
	b->keys = malloc((size_t)BATCH * 260);
	if (!b->packets || !b->keys) {
		free(b->packets);
		free(b->keys);
		free(b);
		return NULL;
	}
	b->fd = fd;
	b->packet_size = PACKET;
	b->random = monotonic_ns() | 1;
	pthread_mutex_init(&b->lock, NULL);
	for (int i = 0; i < BATCH; i++) {
		b->in_vectors[i] = (struct iovec){b->packets + (size_t)i * PACKET, PACKET};
		b->in_headers[i].msg_hdr.msg_iov = &b->in_vectors[i];
		b->in_headers[i].msg_hdr.msg_iovlen = 1;
		b->in_headers[i].msg_hdr.msg_name = &b->peers[i];
	}
	return b;
}

void batch_free(struct batch *b)
{
	pthread_mutex_destroy(&b->lock);
	free(b->packets);
	free(b->keys);
	free(b);
}

/* The question in lower case at `key`; its length, 0 where the query is not plain. */
static int recognise(struct batch *b, int i, char *key)
{
	const uint8_t *data = (const uint8_t *)b->packets + (size_t)i * PACKET;
	int length = b->lengths[i], at = 12, name_end, zone_length = b->zone_length;
	const char *zone_name = b->zone_name;
	b->zone[i] = 0;
	if (length < 17 || data[2] & 0xFE || memcmp(data + 4, "\0\1\0\0\0\0\0", 7) || data[11] > 1)
		return 0;
	while (at < length && data[at]) {
		if (data[at] > 63 || at + 1 + data[at] >= length || at + data[at] - 12 > 253)
			return 0;
		if (length - at >= zone_length && zone_length && at - 12 + zone_length <= 255) {
			/* does the zone's name begin at this label? its letters are compared below,
			 * in lower case */
			int same = 1;
			for (int k = 0; k < zone_length && same; k++) {
				uint8_t c = data[at + k];
				same = (c >= 'A' && c <= 'Z' ? c + 32 : c) == (uint8_t)zone_name[k];
			}
			if (same)
				b->zone[i] = 1;
		}
		at += 1 + data[at];
	}
	name_end = at + 1;
	if (name_end + 4 > length)
		return 0;
	int size = name_end + 4 - 12, rest = length - name_end - 4;
	if (data[11] == 0) {
		if (rest)
			return 0;
		b->edns[i] = 0;
		b->limits[i] = MINIMUM;
	} else {
		const uint8_t *opt = data + name_end + 4;
		if (rest != 11 || memcmp(opt, "\0\0\x29", 3) || opt[5] || opt[6] || opt[9] ||
		    opt[10])
			return 0;
		int limit = opt[3] << 8 | opt[4];
		b->limits[i] = limit < MINIMUM ? MINIMUM : limit > MAXIMUM ? MAXIMUM : limit;
		b->edns[i] = opt[7] & 0x80 ? 2 : 1;
	}
	b->simple[i] = (data[2] & 1) && !(data[3] & 0x30) && b->edns[i] != 2;
	for (int k = 0; k < size - 4; k++) {
		uint8_t c = data[12 + k];
		key[k] = (char)(c >= 'A' && c <= 'Z' ? c + 32 : c);
	}
	memcpy(key + size - 4, data + name_end, 4);
	return size;
}

static int assemble(struct batch *b, int i, const char *value, int size, int mode)
{
	const char *query = b->packets + (size_t)i * PACKET;
	int question = b->ends[i + 1] - b->ends[i], tail = b->edns[i] ? 11 : 0, records = size - 6;
	char *out = b->out[i];
	if (12 + question + records + tail > b->limits[i])
		return 0;
	memcpy(out, query, 2);
	out[2] = (char)((mode & FORWARDED ? 0x80 : 0x84) | (query[2] & 1));
	out[3] = (char)((b->recursion ? 0x80 : 0) | (query[3] & 0x10) | (mode & 15));
	out[4] = 0;
	out[5] = 1;
	memcpy(out + 6, value, 6);
	memcpy(out + 12, query + 12, (size_t)question);
	char *body = out + 12 + question;
	unsigned answers = (uint8_t)value[0] << 8 | (uint8_t)value[1];
	unsigned type = (uint8_t)query[12 + question - 4] << 8 | (uint8_t)query[12 + question - 3];
	if (answers > 1 && (type == 1 || type == 28) && b->shuffle &&
	    !(mode & FORWARDED)) { /* begin at a random address */
		int first = (int)(next_random(&b->random) % answers) * (records / (int)answers);
		memcpy(body, value + 6 + first, (size_t)(records - first));
		memcpy(body + records - first, value + 6, (size_t)first);
	} else {
		memcpy(body, value + 6, (size_t)records);
	}
	if (tail) {
		memcpy(body + records, "\0\0\x29\x04\xd0\0\0\0\0\0\0", 11);
		if (b->edns[i] == 2)
			body[records + 7] = (char)0x80;
		unsigned extra = ((uint8_t)out[10] << 8 | (uint8_t)out[11]) + 1;
		out[10] = (char)(extra >> 8), out[11] = (char)extra;
	}
	return 12 + question + records + tail;
}

/* The answer to query i, if it can be given: it is counted, and the next to be sent. */
static int prepared(struct batch *b, int i, const char *value, int size, int mode, int at)
{
	int length = size < 6 ? 0 : assemble(b, i, value, size, mode);
	if (!length)
		return 0;
	unsigned type =
		(uint8_t)b->keys[b->ends[i + 1] - 4] << 8 | (uint8_t)b->keys[b->ends[i + 1] - 3];
	b->counts->types[type < TYPES ? type : 0]++;
	(mode & FORWARDED ? b->counts->cached : b->counts->rcodes)[mode & 15]++;
	b->counts->sent_bytes += (uint64_t)length;
	b->counts->received_bytes += (uint64_t)b->lengths[i];
	count_size(b->counts->query_sizes, b->lengths[i]);
	count_size(b->counts->answer_sizes, length);
	b->counts->dnssec_ok += b->edns[i] == 2;
	b->out_vectors[at] = (struct iovec){b->out[i], (size_t)length};
	b->out_headers[at].msg_hdr =
		(struct msghdr){.msg_name = &b->peers[i],
				.msg_namelen = b->in_headers[i].msg_hdr.msg_namelen,
				.msg_iov = &b->out_vectors[at],
				.msg_iovlen = 1};
	return 1;
}

static void send_ready(struct batch *b, int count)
{
	for (int at = 0; at < count;) {
		int sent = sendmmsg(b->fd, b->out_headers + at, (unsigned)(count - at), 0);
		if (sent < 0 && errno == EINTR)
			continue;
		at += sent > 0 ? sent : 1; /* a client that cannot be reached loses its own answer,
					      nobody else's */
	}
	uint64_t took = monotonic_ns() - b->began;
	int bucket = 0;
	while (bucket < BUCKETS - 1 && took > BOUNDS[bucket])
		bucket++;
	b->counts->taken -= b->counts->taken < (uint64_t)count ? b->counts->taken : (uint64_t)count;
	b->counts->took[bucket] += (uint64_t)count;
	b->counts->took_ns += took * (uint64_t)count;
}

static int is_there(const struct table *t, char *key, int size, int type)
{
	key[size - 4] = 0;
	key[size - 3] = (char)type;
	return table_look_up(t, ANSWERS, key, size) != NULL;
}

/* May the name be an endpoint of a Service with ClusterIP? Its first label is an address with
 * dashes, and the rest is the name of a Service. Python knows more. */
static int may_be_endpoint(const struct table *t, const char *name, int size)
{
	int length = (uint8_t)name[0], dashes = 0;
	char key[260];
	for (int k = 1; k <= length; k++) {
		char c = name[k];
		dashes += c == '-';
		if (c != '-' && !(c >= '0' && c <= '9') && !(c >= 'a' && c <= 'f'))
			return 0;
	}
	size -= 1 + length;
	if (!dashes || size < 1)
		return 0;
	memcpy(key, name + 1 + length, (size_t)size);
	memcpy(key + size, "\0\0\0\1", 4);
	return is_there(t, key, size + 4, 1) || is_there(t, key, size + 4, 28);
}

/* What answer.py's `absent` says of a question that has no answer: the rcode, with `value` made;
 * -1: it is Python's business. */
static int absent(const struct batch *b, int i, const char *question, int size, char *value)
{
	static const uint8_t usual[] = {1,  2,	5,  12, 15,
					16, 28, 33, 65}; /* A NS CNAME PTR MX TXT AAAA SRV HTTPS */
	const struct table *t = b->table;
	char key[260];
	int name = size - 4;
	if (!b->zone[i] || !t->negative_size || question[name] ||
	    memcmp(question + name + 2, "\0\1", 2) ||
	    !memchr(usual, (uint8_t)question[name + 1], sizeof usual))
		return -1;
	memcpy(key, question, (size_t)size);
	if (is_there(t, key, size, 5))
		return -1;
	int exists = is_there(t, key, size, 1) || is_there(t, key, size, 28) ||
		     is_there(t, key, size, 33) || table_look_up(t, NAMES, key, name);
	int below = name - b->zone_length;
	if (!exists && (b->autopath || (below >= 4 && !memcmp(question + below - 4, "\3pod", 4))))
		return -1;
	if (!exists && may_be_endpoint(t, key, name))
		return -1;
	memcpy(value, t->negative, (size_t)t->negative_size);
	static const int pointers[] = {
		6, 25, 38}; /* owner, MNAME and RNAME point at the zone's name in the question */
	for (int k = 0; k < 3; k++)
		value[pointers[k]] = (char)(0xC0 | (12 + below) >> 8),
		value[pointers[k] + 1] = (char)(12 + below);
	return exists ? 0 : 3;
}

/* Prepare what the table knows; how many queries are left to Python, in `rest`. */
static int find_all(struct batch *b, int count)
{
	int known = 0, rest = 0;
	char value[NEGATIVE];
	pthread_mutex_lock(&b->table->lock);
	for (int i = 0; i < count; i++) {
		const char *key = b->keys + b->ends[i];
		int size = b->ends[i + 1] - b->ends[i], done = 0;
		const struct entry *found =
			size ? table_look_up(b->table, ANSWERS, key, size) : NULL;
		if (found) {
			done = prepared(b, i, found->data + size, (int)found->size, SEND, known);
		} else if (size) {
			int rcode = absent(b, i, key, size, value);
			done = rcode >= 0 &&
			       prepared(b, i, value, b->table->negative_size, SEND + rcode, known);
		}
		known += done;
		if (!done)
			b->rest[rest++] = i;
	}
	pthread_mutex_unlock(&b->table->lock);
	return rest;
}

/* Waits for queries, and answers those that the table knows. How many are left to Python, in
 * `rest`; 0: the socket was shut down; below 0: -errno. */
int batch_receive(struct batch *b)
{
	for (;;) {
		b->counts->taken = 0;
		if (b->stop)
			return -EAGAIN;
		for (int i = 0; i < BATCH; i++)
			b->in_headers[i].msg_hdr.msg_namelen = sizeof b->peers[i];
		b->idle = 1;
		int count = recvmmsg(b->fd, b->in_headers, BATCH, MSG_WAITFORONE, NULL);
		b->idle = 0;
		if (count < 0)
			return -errno;
		if (count > 0 && !b->in_headers[0].msg_len && !b->in_headers[0].msg_hdr.msg_namelen)
			return 0;
		b->began = monotonic_ns();
		b->counts->calls++;
		b->counts->taken = (uint64_t)count;
		b->counts->received += (uint64_t)count;
		int at = 0, rest = count;
		pthread_mutex_lock(&b->lock);
		for (int i = 0; i < count; i++) {
			b->lengths[i] = (int32_t)b->in_headers[i].msg_len;
			b->ends[i] = at;
			b->rest[i] = i;
			at += recognise(b, i, b->keys + at);
		}
		b->ends[count] = at;
		if (b->table)
			rest = find_all(b, count);
		pthread_mutex_unlock(&b->lock);
		if (rest < count)
			send_ready(b, count - rest);
		if (rest)
			return rest;
	}
}

/* For the first `count` of `rest`: modes[k] is 0, send nothing, or SEND + rcode, FORWARDED where
 * the answer is not ours; values' next sizes[k] bytes are a value. How many stand in `left`, too
 * large to be sent. */
int batch_send(struct batch *b, int count, const char *values, const int32_t *sizes,
	       const uint8_t *modes)
{
	int made = 0, left = 0;
	for (int k = 0; k < count; values += sizes[k], k++) {
		if (!modes[k])
			continue;
		if (prepared(b, b->rest[k], values, sizes[k], modes[k], made))
			made++;
		else
			b->left[left++] = b->rest[k];
	}
	if (made)
		send_ready(b, made);
	return left;
}

/* The senders of the queries: a struct sockaddr_in or sockaddr_in6 each, in 28 bytes. */
const char *batch_peers(const struct batch *b)
{
	return (const char *)b->peers;
}

/* A whole answer, made by Python, to query `index` of this batch. */
int batch_reply(struct batch *b, int index, const char *answer, int length)
{
	return sendto(b->fd, answer, (size_t)length, 0, (struct sockaddr *)&b->peers[index],
		      b->in_headers[index].msg_hdr.msg_namelen) < 0
		       ? -errno
		       : 0;
}

/* Answers to queries of earlier batches: `count` of them in `answers`, one behind the other, each
 * to its 28 bytes of `peers`. */
void batch_answer(struct batch *b, int count, const char *answers, const int32_t *lengths,
		  const char *peers)
{
	struct mmsghdr headers[BATCH];
	struct iovec vectors[BATCH];
	for (int done = 0; done < count;) {
		int ready = 0;
		for (; ready < BATCH && done + ready < count; ready++) {
			const struct sockaddr *peer =
				(const struct sockaddr *)(peers +
							  (size_t)(done + ready) *
								  sizeof(struct sockaddr_in6));
			vectors[ready] =
				(struct iovec){(char *)answers, (size_t)lengths[done + ready]};
			headers[ready].msg_hdr = (struct msghdr){
				.msg_name = (void *)peer,
				.msg_iov = &vectors[ready],
				.msg_iovlen = 1,
				.msg_namelen = peer->sa_family == AF_INET6
						       ? sizeof(struct sockaddr_in6)
						       : sizeof(struct sockaddr_in)};
			answers += lengths[done + ready];
		}
		for (int at = 0; at < ready;) {
			int sent = sendmmsg(b->fd, headers + at, (unsigned)(ready - at), 0);
			if (sent < 0 && errno == EINTR)
				continue;
			at += sent > 0 ? sent : 1; /* as above: nobody loses but the one who cannot
						      be reached */
		}
		done += ready;
	}
}
