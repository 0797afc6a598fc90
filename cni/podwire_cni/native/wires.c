/* What a pod waits for, without the interpreter: the agent's Python decides what is sent, this sends it and reads the answers.
 *
 * A shared library without dependencies, called by native/wires.py; ctypes gives the interpreter's lock free for the whole of a
 * call, where Python gave it free and took it again for each of the system calls. Python does the same where this is missing.
 *
 * A program is a run of records, each a head of three u32 (kind, place: 0 the node, 1 the pod, size with the head) and
 *
 *   INDEX   u32 slot, char name[16]: the index of link `name` goes to the slot
 *   BATCH   u32 count, count times (u32 offset, u32 slot): where indices go, counted from the first message; then rtnetlink
 *           messages that are sent at once. The last one asks for an acknowledgement, unless it asks for a link.
 *
 * Layouts are those of <linux/netlink.h> and <linux/if_link.h>, spelled out: musl's headers do not have them. */
#define _GNU_SOURCE
#include <errno.h>
#include <net/if.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

enum { INDEX = 1, BATCH = 2 };
enum { DONE = 0, REFUSED = 1, FAILED = 2, LOST = 3 };
enum { NLMSG_ERROR = 2, RTM_NEWLINK = 16, RTM_GETLINK = 18, RTM_NEWROUTE = 24, NLM_F_ACK = 4, NLM_F_ACK_TLVS = 0x200 };
enum { IFLA_OPERSTATE = 16, IFLA_LINKINFO = 18, OPER_UP = 6, FORWARDING = 3 };
enum { INFO_SLAVE_KIND = 4, INFO_SLAVE_DATA = 5, BRPORT_STATE = 1, ERROR_WORDS = 1 };
#define LEN(x) (sizeof(x) / sizeof(x)[0])

struct head { uint32_t len; uint16_t type, flags; uint32_t seq, pid; };
struct record { uint32_t kind, place, size; };

struct outcome {
    int32_t batch;    /* which one the kernel refused, counted from 0 */
    int32_t message;  /* which message of it */
    int32_t error;    /* errno */
    int32_t late;     /* links asked for that carry no packets yet */
    char words[112];  /* what the kernel said about the refusal */
};

static uint32_t u32(const uint8_t *at) { uint32_t value; memcpy(&value, at, 4); return value; }

/* The value of an attribute and its length; NULL where there is none. */
static const uint8_t *find(const uint8_t *at, const uint8_t *end, uint16_t wanted, uint32_t *len)
{
    while (end - at >= 4) {
        uint16_t size, kind;
        memcpy(&size, at, 2), memcpy(&kind, at + 2, 2);
        if (size < 4 || size > end - at)
            return NULL;
        if ((kind & 0x3fff) == wanted) {
            *len = size - 4;
            return at + 4;
        }
        at += (size + 3) & ~3u;
    }
    return NULL;
}

/* A bridge port carries packets when it forwards, any other link when it is operationally up (RFC 2863). */
static int carries(const uint8_t *body, const uint8_t *end)
{
    uint32_t len;
    const uint8_t *attributes = body + 16, *info, *kind, *data, *state;
    if ((info = find(attributes, end, IFLA_LINKINFO, &len))) {
        const uint8_t *info_end = info + len;
        if ((kind = find(info, info_end, INFO_SLAVE_KIND, &len)) && len == 7 && memcmp(kind, "bridge", 7) == 0)
            return (data = find(info, info_end, INFO_SLAVE_DATA, &len)) && (state = find(data, data + len, BRPORT_STATE, &len))
                && len && *state == FORWARDING;
    }
    return (state = find(attributes, end, IFLA_OPERSTATE, &len)) && len && *state == OPER_UP;
}

/* An NLMSG_ERROR: the first refusal of a batch is kept. That a route exists is none: other plugins leave it, too. */
static void judge(const struct head *head, const uint8_t *body, const uint8_t *end, uint32_t first, struct outcome *out)
{
    int32_t error = -(int32_t)u32(body);
    uint16_t type;
    memcpy(&type, body + 8, 2);
    if (!error || out->error || (error == EEXIST && type == RTM_NEWROUTE))
        return;
    out->error = error;
    out->message = head->seq - first;
    uint32_t len;
    const uint8_t *words = head->flags & NLM_F_ACK_TLVS ? find(body + 20, end, ERROR_WORDS, &len) : NULL;
    if (words)
        memcpy(out->words, words, len < sizeof out->words - 1 ? len : sizeof out->words - 1);
}

static int receive(int sock, uint32_t first, uint32_t last, int asked, struct outcome *out)
{
    uint8_t buffer[1 << 13]; /* a link takes less than 2 KiB */
    for (int over = 0; !over;) {
        ssize_t got = recv(sock, buffer, sizeof buffer, MSG_TRUNC);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 || got > (ssize_t)sizeof buffer)
            return errno = got < 0 ? errno : EMSGSIZE, FAILED;
        for (const uint8_t *at = buffer, *end = buffer + got; end - at >= 16;) {
            struct head head;
            memcpy(&head, at, sizeof head);
            if (head.len < 16 || head.len > end - at)
                break;
            const uint8_t *body = at + 16, *stop = at + head.len;
            at += (head.len + 3) & ~3u;
            if (head.seq < first || head.seq > last)
                continue;
            if (head.type == NLMSG_ERROR && stop - body >= 20) {
                judge(&head, body, stop, first, out);
                over = over || head.seq == last;
            } else if (head.type == RTM_NEWLINK && stop - body >= 16) {
                out->late += !carries(body, stop);
                over = over || (asked && head.seq == last);
            }
        }
    }
    return out->error ? REFUSED : DONE;
}

static int batch(int sock, uint32_t *seq, uint8_t *at, uint8_t *end, const int *slots, uint32_t room, struct outcome *out)
{
    uint32_t count = u32(at), first = *seq + 1;
    uint8_t *messages = at + 4 + 8 * count, *last = NULL;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t offset = u32(at + 4 + 8 * i), slot = u32(at + 8 + 8 * i);
        if (slot >= room || messages + offset + 4 > end)
            return errno = EINVAL, FAILED;
        memcpy(messages + offset, slots + slot, 4);
    }
    for (at = messages; end - at >= 16; at += (u32(at) + 3) & ~3u) {
        ++*seq;
        memcpy(at + 8, seq, 4);
        last = at;
    }
    if (!last)
        return DONE;
    struct head head;
    memcpy(&head, last, sizeof head);
    int asked = head.type == RTM_GETLINK;
    if (!asked) {
        head.flags |= NLM_F_ACK;
        memcpy(last, &head, sizeof head);
    }
    while (send(sock, messages, end - messages, 0) < 0)
        if (errno != EINTR)
            return FAILED;
    return receive(sock, first, *seq, asked, out);
}

static int opened(int pod, int node)
{
    int one = 1, sock = -1;
    if (setns(pod, CLONE_NEWNET) != 0)
        return -FAILED;
    if ((sock = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0)) >= 0) {
        setsockopt(sock, 270, 10, &one, sizeof one);  /* SOL_NETLINK: NETLINK_CAP_ACK */
        setsockopt(sock, 270, 11, &one, sizeof one);  /* NETLINK_EXT_ACK */
    }
    int saved = errno;
    if (setns(node, CLONE_NEWNET) != 0)
        return -LOST;
    errno = saved;
    return sock >= 0 ? sock : -FAILED;
}

/* Run a program. sock: an rtnetlink socket of the node that used sequence numbers up to `seq`; node, pod: namespaces. */
int wires_run(int sock, uint32_t seq, int node, int pod, const uint8_t *program, uint32_t size, struct outcome *out)
{
    uint8_t copy[4096];
    int slots[8] = {0}, sockets[2] = {sock, -1}, status = DONE;
    uint32_t seqs[2] = {seq, 0};
    memset(out, 0, sizeof *out);
    if (size > sizeof copy)
        return out->error = E2BIG, FAILED;
    memcpy(copy, program, size);
    struct record record;
    uint8_t *at = copy;
    for (; status == DONE && (size_t)(copy + size - at) >= sizeof record; at += record.size) {
        memcpy(&record, at, sizeof record);
        uint8_t *body = at + sizeof record, *end = at + record.size;
        if (record.place > 1 || record.size < sizeof record + 4 || end > copy + size)
            return out->error = EINVAL, FAILED;
        if (sockets[record.place] < 0 && (sockets[1] = opened(pod, node)) < 0) {
            out->error = errno;
            return -sockets[1];
        }
        if (record.kind == INDEX) {
            struct ifreq asked;
            memset(&asked, 0, sizeof asked);
            memcpy(asked.ifr_name, body + 4, IFNAMSIZ - 1);
            if (u32(body) < LEN(slots) && ioctl(sockets[record.place], SIOCGIFINDEX, &asked) == 0)
                slots[u32(body)] = asked.ifr_ifindex;  /* else 0: the kernel refuses the message that needs it */
        } else if ((status = batch(sockets[record.place], &seqs[record.place], body, end, slots, LEN(slots), out)) == DONE) {
            out->batch++;
        }
    }
    if (status == FAILED)
        out->error = errno;
    if (sockets[1] >= 0)
        close(sockets[1]);
    return status;
}

/* Send one netlink batch and read all answers that are there when the kernel returns. Returns their bytes, or -errno. */
int wires_exchange(int sock, const uint8_t *data, uint32_t size, uint8_t *answers, uint32_t room)
{
    uint32_t got = 0;
    while (send(sock, data, size, 0) < 0)
        if (errno != EINTR)
            return -errno;
    for (;;) {
        ssize_t more = recv(sock, answers + got, room - got, MSG_DONTWAIT);
        if (more > 0 && (got += more) < room)
            continue;
        if (more < 0 && errno == EINTR)
            continue;
        return more >= 0 || errno == EAGAIN ? (int)got : -errno;
    }
}

/* ---- one call of the plugin binary (the protocol: client.c) ---- */

enum { DESCRIPTORS = 4, HEAD = 20, NS_GET_NSTYPE = 0xb703 };

struct taken {
    int32_t connection, count, fds[DESCRIPTORS];
    uint32_t size;    /* of what is in the buffer */
    int32_t is_netns; /* whether the second descriptor is a network namespace */
    struct { uint64_t dev, ino; } ids[2];
};

/* Take the next caller of `listener` and read its request, as much of it as has come or fits. Returns 0, or -errno: where
 * `connection` is not -1, that is of the caller's connection. */
int wires_take(int listener, uint8_t *buffer, uint32_t room, int seconds, struct taken *out)
{
    struct timeval limit = {seconds, 0};
    union { struct cmsghdr head; char room[CMSG_SPACE(DESCRIPTORS * sizeof(int))]; } control;
    memset(out, 0, sizeof *out);
    while ((out->connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) < 0)
        if (errno != EINTR)
            return -errno;
    setsockopt(out->connection, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(out->connection, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    uint64_t wanted = HEAD;
    while (out->size < wanted && out->size < room) {
        struct iovec part = {buffer + out->size, room - out->size};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
        ssize_t got = recvmsg(out->connection, &message, MSG_CMSG_CLOEXEC);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        for (struct cmsghdr *each = CMSG_FIRSTHDR(&message); each; each = CMSG_NXTHDR(&message, each))
            if (each->cmsg_level == SOL_SOCKET && each->cmsg_type == SCM_RIGHTS)
                for (size_t at = CMSG_LEN(0); at + sizeof(int) <= each->cmsg_len; at += sizeof(int)) {
                    int fd;
                    memcpy(&fd, (char *)each + at, sizeof fd);
                    if (out->count < DESCRIPTORS)
                        out->fds[out->count++] = fd;
                    else
                        close(fd);
                }
        if (!got)
            break;
        if ((out->size += got) >= HEAD)
            wanted = HEAD + (uint64_t)u32(buffer + 12) + u32(buffer + 16);
    }
    for (int i = 0; i < 2 && i < out->count; i++) {
        struct stat found;
        if (fstat(out->fds[i], &found) == 0)
            out->ids[i].dev = found.st_dev, out->ids[i].ino = found.st_ino;
    }
    out->is_netns = out->count > 1 && ioctl(out->fds[1], NS_GET_NSTYPE) == CLONE_NEWNET;
    return 0;
}

/* Whether the caller's process has ended: it says nothing more, but only its end closes the connection. */
int wires_gone(int connection)
{
    char byte;
    ssize_t got = recv(connection, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR);
}

/* Send the answer (none where size is 0) and close the connection and the caller's descriptors. Returns 0 or -errno. */
int wires_answer(const struct taken *caller, const uint8_t *text, uint32_t size)
{
    int status = 0;
    while (size && !status) {
        ssize_t sent = send(caller->connection, text, size, MSG_NOSIGNAL);
        if (sent >= 0)
            text += sent, size -= sent;
        else if (errno != EINTR)
            status = -errno;
    }
    close(caller->connection);
    for (int i = 0; i < caller->count; i++)
        close(caller->fds[i]);
    return status;
}
