/* The zone where no interpreter is needed to read it: question in lower case -> value, and the
 * names that exist without data.
 *
 * The event loop's thread writes what the feeder sends, the threads of batch.c read meanwhile. Each
 * step is short, under one lock; a batch of look-ups is one step.
 */
#define _GNU_SOURCE
#include "table.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

enum { FIRST_BUCKETS = 1024, LONGEST_KEY = 0x3FFF };

static uint64_t mixed(uint64_t a, uint64_t b)
{
	unsigned __int128 product = (unsigned __int128)a * b;
	return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* With a seed that nobody knows: who may create Services must not be able to make all of them fall
 * into one bucket. */
static uint32_t hash_of(const struct table *t, int kind, const char *key, int size)
{
	uint64_t h = t->seed[0] ^ (uint64_t)(size << 2 | kind), word;
	for (; size >= 8; key += 8, size -= 8) {
		memcpy(&word, key, 8);
		h = mixed(h ^ word, t->seed[1]);
	}
	word = 0;
	memcpy(&word, key, (size_t)size);
	h = mixed(h ^ word, t->seed[1]);
	return (uint32_t)(h ^ h >> 32);
}

struct table *table_new(void)
{
	struct table *t = calloc(1, sizeof *t);
	if (!t)
		return NULL;
	t->buckets = calloc(FIRST_BUCKETS, sizeof *t->buckets);
	if (!t->buckets) {
		free(t);
		return NULL;
	}
	t->mask = FIRST_BUCKETS - 1;
	if (getrandom(t->seed, sizeof t->seed, GRND_NONBLOCK) != sizeof t->seed) {
		struct timespec now;
		clock_gettime(CLOCK_MONOTONIC, &now);
		t->seed[0] = (uint64_t)now.tv_nsec << 32 ^ (uintptr_t)t,
		t->seed[1] = (uint64_t)now.tv_sec ^ (uintptr_t)t->buckets;
	}
	t->seed[1] |= 1;
	pthread_mutex_init(&t->lock, NULL);
	return t;
}

void table_free(struct table *t)
{
	for (size_t i = 0; i <= t->mask; i++)
		for (struct entry *e = t->buckets[i], *next; e; e = next) {
			next = e->next;
			free(e);
		}
	pthread_mutex_destroy(&t->lock);
	free(t->buckets);
	free(t);
}

/* In a forked process: a thread of the parent, which is not here, may have held the lock to read.
 */
void table_forked(struct table *t)
{
	pthread_mutex_init(&t->lock, NULL);
}

/* Where the entry is hung, or would be. */
static struct entry **place(const struct table *t, int kind, const char *key, int key_size,
			    uint32_t hash)
{
	struct entry **at = &t->buckets[hash & t->mask];
	for (const struct entry *e; (e = *at); at = &(*at)->next)
		if (e->hash == hash && e->key_size == key_size && e->kind == kind &&
		    !memcmp(e->data, key, (size_t)key_size))
			break;
	return at;
}

const struct entry *table_look_up(const struct table *t, int kind, const char *key, int key_size)
{
	return *place(t, kind, key, key_size, hash_of(t, kind, key, key_size));
}

static void grow(struct table *t)
{
	size_t mask = 2 * t->mask + 1;
	struct entry **buckets = calloc(mask + 1, sizeof *buckets);
	if (!buckets)
		return; /* slower, but whole */
	for (size_t i = 0; i <= t->mask; i++)
		for (struct entry *e = t->buckets[i], *next; e; e = next) {
			next = e->next;
			e->next = buckets[e->hash & mask];
			buckets[e->hash & mask] = e;
		}
	free(t->buckets);
	t->buckets = buckets;
	t->mask = mask;
}

/* 1: there was none with this key; 0: replaced; -1: no memory, nothing changed. */
static int put_one(struct table *t, int kind, const char *key, int key_size, const char *value,
		   int size)
{
	if (key_size < 0 || key_size > LONGEST_KEY || size < 0)
		return -1;
	struct entry *fresh = malloc(sizeof *fresh + (size_t)key_size + (size_t)size);
	if (!fresh)
		return -1;
	fresh->hash = hash_of(t, kind, key, key_size), fresh->size = (uint32_t)size;
	fresh->key_size = (uint16_t)key_size & LONGEST_KEY, fresh->kind = (uint16_t)kind & 3;
	memcpy(fresh->data, key, (size_t)key_size);
	memcpy(fresh->data + key_size, value, (size_t)size);
	pthread_mutex_lock(&t->lock);
	struct entry **at = place(t, kind, key, key_size, fresh->hash), *old = *at;
	fresh->next = old ? old->next : NULL;
	*at = fresh;
	if (!old && ++t->count > t->mask)
		grow(t);
	pthread_mutex_unlock(&t->lock);
	free(old);
	return !old;
}

/* `keys` and `values`: one behind the other. How many keys are new; -1: no memory for all of them.
 */
int table_put(struct table *t, int kind, int count, const char *keys, const int32_t *key_sizes,
	      const char *values, const int32_t *sizes)
{
	int fresh = 0;
	for (int k = 0; k < count; keys += key_sizes[k], values += sizes[k], k++) {
		int done = put_one(t, kind, keys, key_sizes[k], values, sizes[k]);
		if (done < 0)
			return -1;
		fresh += done;
	}
	return fresh;
}

/* Was there one? */
int table_drop(struct table *t, int kind, const char *key, int key_size)
{
	uint32_t hash = hash_of(t, kind, key, key_size);
	pthread_mutex_lock(&t->lock);
	struct entry **at = place(t, kind, key, key_size, hash), *old = *at;
	if (old)
		*at = old->next, t->count--;
	pthread_mutex_unlock(&t->lock);
	free(old);
	return old != NULL;
}

/* The value's size, -1 where there is none; it is copied where it fits into `room` bytes. */
int table_get(struct table *t, int kind, const char *key, int key_size, char *out, int room)
{
	int size = -1;
	pthread_mutex_lock(&t->lock);
	const struct entry *found = table_look_up(t, kind, key, key_size);
	if (found) {
		size = (int)found->size;
		if (size && size <= room)
			memcpy(out, found->data + key_size, found->size);
	}
	pthread_mutex_unlock(&t->lock);
	return size;
}

/* zone.py's negative value for a question about the zone's own name. */
void table_negative(struct table *t, const char *value, int size)
{
	pthread_mutex_lock(&t->lock);
	t->negative_size = size <= NEGATIVE ? size : 0;
	memcpy(t->negative, value, (size_t)t->negative_size);
	pthread_mutex_unlock(&t->lock);
}
