/* The other side of batch.c, behind which it is compiled (build.py).
 *
 * A query to an upstream has a socket, and so a random port, that no other query uses meanwhile (RFC 5452 section 9.2); answers
 * are gathered together. Making, connecting, watching and closing a socket costs as much as the exchange itself: one that was
 * answered serves a few queries more, for a moment.
 */
#include <sys/epoll.h>

enum { USES = 16, IDLE = 64, FILES = 65536 };
static const uint64_t LIFE_NS = 1000000000;

typedef struct {
    uint64_t born;
    int32_t uses;
    int32_t idle; /* its place among the idle ones, from 1; 0: it is in use */
    struct sockaddr_in6 to;
} life;

typedef struct {
    int32_t fds[BATCH];
    int32_t lengths[BATCH];
    char *packets;
    int32_t packet_size;
    int32_t epoll;
    /* below: not for Python */
    life *lives; /* by descriptor */
    int32_t idle[IDLE];
    int32_t idle_count;
    uint64_t random;
} asker;

asker *asker_new(void) {
    asker *a = calloc(1, sizeof *a);
    if (!a) return NULL;
    a->packets = malloc((size_t)BATCH * PACKET);
    a->lives = calloc(FILES, sizeof *a->lives);
    a->packet_size = PACKET;
    a->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (getrandom(&a->random, sizeof a->random, GRND_NONBLOCK) != sizeof a->random) a->random = now();
    a->random |= 1;
    if (!a->packets || !a->lives || a->epoll < 0) {
        if (a->epoll >= 0) close(a->epoll);
        free(a->packets), free(a->lives), free(a);
        return NULL;
    }
    return a;
}

/* Take a socket out of the idle ones. */
static void awake(asker *a, int fd) {
    int last = a->idle[--a->idle_count], place = a->lives[fd].idle;
    a->idle[place - 1] = last;
    a->lives[last].idle = place;
    a->lives[fd].idle = 0;
}

/* Close the idle sockets. */
void asker_close_idle(asker *a) {
    while (a->idle_count) {
        int fd = a->idle[a->idle_count - 1];
        awake(a, fd);
        close(fd);
    }
}

void asker_free(asker *a) {
    asker_close_idle(a);
    close(a->epoll);
    free(a->packets), free(a->lives), free(a);
}

/* Any idle socket to `to` that is young still, which is then in use; -1: there is none. */
static int any_idle(asker *a, const struct sockaddr_in6 *to, uint64_t moment) {
    a->random ^= a->random << 13, a->random ^= a->random >> 7, a->random ^= a->random << 17;
    for (int k = 0, count = a->idle_count; k < count && a->idle_count; k++) {
        int fd = a->idle[(a->random + (uint64_t)k) % (uint64_t)a->idle_count];
        if (moment - a->lives[fd].born > LIFE_NS) {
            awake(a, fd);
            close(fd);
        } else if (!memcmp(&a->lives[fd].to, to, sizeof *to)) {
            awake(a, fd);
            return fd;
        }
    }
    return -1;
}

/* The descriptor of the socket that `message` left from, or -errno. address: 4 or 16 bytes in network order. */
static int send_one(asker *a, const char *address, int size, int port, const char *message, int length, uint64_t moment) {
    struct sockaddr_in6 to = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (size == 16) {
        memcpy(&to.sin6_addr, address, 16);
    } else {
        memcpy(&four.sin_addr, address, 4);
        memset(&to, 0, sizeof to);
        memcpy(&to, &four, sizeof four);
    }
    int fd = any_idle(a, &to, moment);
    if (fd >= 0) {
        if (send(fd, message, (size_t)length, 0) >= 0) {
            a->lives[fd].uses++;
            return fd;
        }
        close(fd); /* an error about an earlier query, perhaps: this one shall not suffer */
    }
    fd = socket(to.sin6_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -errno;
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (connect(fd, (struct sockaddr *)&to, size == 16 ? sizeof to : sizeof four)
        || send(fd, message, (size_t)length, 0) < 0 || epoll_ctl(a->epoll, EPOLL_CTL_ADD, fd, &event)) {
        int error = errno;
        close(fd);
        return -error;
    }
    if (fd < FILES) a->lives[fd] = (life){.born = moment, .uses = 1, .to = to};
    return fd;
}

/* `count` messages, at most BATCH, one behind the other in `messages`; the same for addresses. fds: as of send_one. */
void asker_send(asker *a, int count, const char *addresses, const int32_t *sizes, const int32_t *ports, const char *messages,
                const int32_t *lengths, int32_t *fds) {
    uint64_t moment = now();
    for (int k = 0; k < count; addresses += sizes[k], messages += lengths[k], k++)
        fds[k] = send_one(a, addresses, sizes[k], ports[k], messages, lengths[k], moment);
}

/* What has come, without waiting: fds, and the lengths of their packets (below 0: -errno). How many. */
int asker_gather(asker *a) {
    struct epoll_event events[BATCH];
    int count = epoll_wait(a->epoll, events, BATCH, 0), kept = 0;
    for (int i = 0; i < count; i++) {
        int fd = events[i].data.fd;
        if (fd < FILES && a->lives[fd].idle) { /* nobody asked for this: a forgery, or an answer sent twice */
            awake(a, fd);
            close(fd);
            continue;
        }
        ssize_t length = recv(fd, a->packets + (size_t)kept * PACKET, PACKET, MSG_DONTWAIT);
        if (length < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        a->fds[kept] = fd;
        a->lengths[kept++] = length < 0 ? -errno : (int32_t)length;
    }
    return kept;
}

/* Sockets whose queries were answered: they may serve others. */
void asker_done(asker *a, const int32_t *fds, int count) {
    uint64_t moment = now();
    for (int i = 0; i < count; i++) {
        int fd = fds[i];
        if (fd >= FILES || a->idle_count == IDLE || a->lives[fd].uses >= USES || moment - a->lives[fd].born > LIFE_NS) {
            close(fd);
        } else {
            a->idle[a->idle_count++] = fd;
            a->lives[fd].idle = a->idle_count;
        }
    }
}

/* Sockets whose queries nobody waits for any more, or that failed. */
void asker_close(const int32_t *fds, int count) {
    for (int i = 0; i < count; i++) close(fds[i]);
}
