/* What Python sees of batch.c (cffi reads this file, behind table.h). */
enum { BATCH = 64 };

typedef struct {
    uint64_t types[66];      /* answered queries by type; 0 counts all others */
    uint64_t rcodes[16];     /* responses */
    uint64_t took[14];       /* responses by the bounds of batch.c, the last one unbounded */
    uint64_t took_ns;
    uint64_t query_sizes[15], answer_sizes[15];  /* of what was answered, by the bounds of batch.c, the last one unbounded */
    uint64_t dnssec_ok;
    uint64_t received;
    uint64_t sent_bytes, received_bytes;
    uint64_t calls;          /* recvmmsg calls that gave something */
} batch_counts;

typedef struct {
    int32_t ends[65];        /* keys[ends[i]:ends[i+1]] is query i's question in lower case; empty: not a plain query */
    uint8_t zone[64];        /* the name lies in the zone given to batch_set */
    uint8_t simple[64];      /* recursion desired, and neither DO, CD nor AD: an answer of the forward cache fits as it is */
    int32_t lengths[64];     /* of the packets */
    int32_t rest[64];        /* the queries of this batch that are left to Python, by their index */
    int32_t left[64];        /* what batch_send could not send because it is too large for its client */
    char *keys;
    char *packets;           /* PACKET bytes for each */
    int32_t packet_size;
    batch_counts counts;
    ...;
} batch;

batch *batch_new(int fd);
void batch_set(batch *b, int recursion, int shuffle, int autopath, const char *zone, int zone_length, table *answers);
void batch_free(batch *b);
int batch_receive(batch *b);
int batch_send(batch *b, int count, const char *values, const int32_t *sizes, const uint8_t *modes);
const char *batch_peers(const batch *b);
void batch_answer(batch *b, int count, const char *answers, const int32_t *lengths, const char *peers);
int batch_reply(batch *b, int index, const char *answer, int length);
