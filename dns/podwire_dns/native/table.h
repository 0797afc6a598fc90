/* What Python sees of table.c (cffi reads this file, before batch.h). */
typedef struct table table;

enum { ANSWERS = 0, NAMES = 1 }; /* kinds of keys, which never meet: questions and their values, names without data */

table *table_new(void);
void table_free(table *t);
int table_put(table *t, int kind, int count, const char *keys, const int32_t *key_sizes, const char *values, const int32_t *sizes);
int table_drop(table *t, int kind, const char *key, int key_size);
int table_get(table *t, int kind, const char *key, int key_size, char *out, int room);
void table_negative(table *t, const char *value, int size);
