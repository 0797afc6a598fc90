/* What Python sees of asker.c (cffi reads this file, behind batch.h). */
typedef struct {
    int32_t fds[64];         /* sockets that something came to */
    int32_t lengths[64];     /* of the packets; below 0: -errno */
    char *packets;
    int32_t packet_size;
    int32_t epoll;           /* readable when there is something to gather */
    ...;
} asker;

asker *asker_new(void);
void asker_free(asker *a);
void asker_send(asker *a, int count, const char *addresses, const int32_t *sizes, const int32_t *ports, const char *messages,
                const int32_t *lengths, int32_t *fds);
int asker_gather(asker *a);
void asker_done(asker *a, const int32_t *fds, int count);
void asker_close(const int32_t *fds, int count);
void asker_close_idle(asker *a);
