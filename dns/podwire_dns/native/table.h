/* What Python and batch.c see of table.c. cffi reads this file behind the C preprocessor, with
 * PODWIRE_CDEF defined. */
#ifndef PODWIRE_TABLE_H
#define PODWIRE_TABLE_H
#ifndef PODWIRE_CDEF
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#endif

/* Kinds of keys, which never meet: questions and their values, names without data, addresses of
 * endpoints and their Services. */
enum { ANSWERS = 0, NAMES = 1, PLACES = 2 };

struct table;

#ifndef PODWIRE_CDEF
enum { NEGATIVE = 128 };

struct entry {
	struct entry *next;
	uint32_t hash, size;
	uint16_t key_size : 14, kind : 2; /* of each kind, the same bytes are another key */
	char data[]; /* the key, then the value */
};

struct table {
	pthread_mutex_t lock;
	struct entry **buckets;
	uint64_t seed[2];
	size_t mask, count;
	int negative_size;
	char negative[NEGATIVE]; /* value of NODATA and NXDOMAIN, as it is for the zone's own name
				  */
};

/* The entry, or NULL. The caller holds the lock. */
const struct entry *table_look_up(const struct table *t, int kind, const char *key, int key_size);
#endif

struct table *table_new(void);
void table_free(struct table *t);
void table_forked(struct table *t);
int table_put(struct table *t, int kind, int count, const char *keys, const int32_t *key_sizes,
	      const char *values, const int32_t *sizes);
int table_drop(struct table *t, int kind, const char *key, int key_size);
int table_get(struct table *t, int kind, const char *key, int key_size, char *out, int room);
void table_negative(struct table *t, const char *value, int size);

#endif
