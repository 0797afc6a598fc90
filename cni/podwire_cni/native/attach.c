/* Attaches a pod without the interpreter: Python decides what is sent, this sends it and reads the
 * answers.
 *
 * Called by attach.py. cffi releases the interpreter's lock for the whole of a call, where Python
 * releases and takes it for each of the system calls. Python does the same step by step where this
 * is not compiled.
 *
 * A program is a run of records, each a head of three u32 (kind, place: 0 the node, 1 the pod, size
 * with the head) and
 *
 *   INDEX   u32 slot, char name[16]: the index of link `name` goes to the slot
 *   BATCH   u32 count, count times (u32 offset, u32 slot): where indices go, counted from the first
 * message; then rtnetlink messages that are sent at once. The last one asks for an acknowledgement,
 * unless it asks for a link.
 */
#define _GNU_SOURCE
#include "attach.h"

#include <errno.h>
#include <linux/if_bridge.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { INDEX = 1, BATCH = 2 };

enum { PLACES = 2, SLOTS = 8, PROGRAM_SIZE = 4096 };

enum { OPERATIONALLY_UP = 6 }; /* IF_OPER_UP of <linux/if.h>, which <net/if.h> excludes */

struct record {
	uint32_t kind, place, size;
};

struct patch {
	uint32_t offset, slot;
};

/* One socket of the node's or the pod's namespace. seq: the last sequence number it used. */
struct channel {
	int sock;
	uint32_t seq;
};

static uint32_t u32(const uint8_t *at)
{
	uint32_t value;

	memcpy(&value, at, sizeof value);
	return value;
}

/* The value of an attribute and its length; NULL where there is none. */
static const uint8_t *find(const uint8_t *at, const uint8_t *end, uint16_t wanted, uint32_t *len)
{
	struct nlattr head;

	while (end - at >= NLA_HDRLEN) {
		memcpy(&head, at, sizeof head);
		if (head.nla_len < NLA_HDRLEN || head.nla_len > end - at)
			return NULL;
		if ((head.nla_type & NLA_TYPE_MASK) == wanted) {
			*len = head.nla_len - NLA_HDRLEN;
			return at + NLA_HDRLEN;
		}
		if (NLA_ALIGN(head.nla_len) > end - at)
			return NULL;
		at += NLA_ALIGN(head.nla_len);
	}
	return NULL;
}

static int is_bridge_port(const uint8_t *info, const uint8_t *end)
{
	uint32_t len;
	const uint8_t *kind = find(info, end, IFLA_INFO_SLAVE_KIND, &len);

	return kind && len == sizeof "bridge" && memcmp(kind, "bridge", sizeof "bridge") == 0;
}

/* A bridge port carries packets when it forwards, any other link when it is operationally up (RFC
 * 2863). */
static int carries(const uint8_t *body, const uint8_t *end)
{
	uint32_t len;
	const uint8_t *attributes = body + sizeof(struct ifinfomsg), *state;
	const uint8_t *info = find(attributes, end, IFLA_LINKINFO, &len);

	if (info && is_bridge_port(info, info + len)) {
		const uint8_t *port = find(info, info + len, IFLA_INFO_SLAVE_DATA, &len);

		state = port ? find(port, port + len, IFLA_BRPORT_STATE, &len) : NULL;
		return state && len && *state == BR_STATE_FORWARDING;
	}
	state = find(attributes, end, IFLA_OPERSTATE, &len);
	return state && len && *state == OPERATIONALLY_UP;
}

/* Keep the first refusal of a batch. That a route exists is none: other plugins leave it, too. */
static void note_error(const struct nlmsghdr *head, const uint8_t *body, const uint8_t *end,
		       uint32_t first, struct attach_result *out)
{
	struct nlmsgerr answer;
	const uint8_t *text = NULL;
	uint32_t len;

	memcpy(&answer, body, sizeof answer);
	if (!answer.error || out->error ||
	    (answer.error == -EEXIST && answer.msg.nlmsg_type == RTM_NEWROUTE))
		return;
	out->error = -answer.error;
	out->message = (int32_t)(head->nlmsg_seq - first);
	if (head->nlmsg_flags & NLM_F_ACK_TLVS)
		text = find(body + sizeof answer, end, NLMSGERR_ATTR_MSG, &len);
	if (text)
		memcpy(out->extack, text,
		       len < sizeof out->extack - 1 ? len : sizeof out->extack - 1);
}

/* Read the messages of one datagram. Returns whether the last answer was among them. */
static int read_answers(const uint8_t *at, const uint8_t *end, uint32_t first, uint32_t last,
			int asked, struct attach_result *out)
{
	int over = 0;
	struct nlmsghdr head;

	while (end - at >= NLMSG_HDRLEN) {
		const uint8_t *body = at + NLMSG_HDRLEN, *stop;

		memcpy(&head, at, sizeof head);
		if (head.nlmsg_len < NLMSG_HDRLEN || head.nlmsg_len > end - at)
			break;
		stop = at + head.nlmsg_len;
		at = NLMSG_ALIGN(head.nlmsg_len) > end - at ? end
							    : at + NLMSG_ALIGN(head.nlmsg_len);
		if (head.nlmsg_seq < first || head.nlmsg_seq > last)
			continue;
		if (head.nlmsg_type == NLMSG_ERROR &&
		    stop - body >= (ssize_t)sizeof(struct nlmsgerr)) {
			note_error(&head, body, stop, first, out);
			over = over || head.nlmsg_seq == last;
		} else if (head.nlmsg_type == RTM_NEWLINK &&
			   stop - body >= (ssize_t)sizeof(struct ifinfomsg)) {
			out->no_carrier += !carries(body, stop);
			over = over || (asked && head.nlmsg_seq == last);
		}
	}
	return over;
}

static int receive(int sock, uint32_t first, uint32_t last, int asked, struct attach_result *out)
{
	uint8_t buffer[1 << 13]; /* a link takes less than 2 KiB */
	int over = 0;

	while (!over) {
		ssize_t got = recv(sock, buffer, sizeof buffer, MSG_TRUNC);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return FAILED;
		if (got > (ssize_t)sizeof buffer) {
			errno = EMSGSIZE;
			return FAILED;
		}
		over = read_answers(buffer, buffer + got, first, last, asked, out);
	}
	return out->error ? REFUSED : DONE;
}

/* Write the links' indices into the messages of a batch; the first message, or NULL where the
 * program is wrong. */
static uint8_t *patched(uint8_t *at, uint8_t *end, const int *slots)
{
	uint32_t count = u32(at);
	uint8_t *messages;

	if (count > (size_t)(end - at - 4) / sizeof(struct patch))
		return NULL;
	messages = at + 4 + count * sizeof(struct patch);
	for (uint32_t i = 0; i < count; i++) {
		struct patch patch;

		memcpy(&patch, at + 4 + i * sizeof patch, sizeof patch);
		if (patch.slot >= SLOTS || patch.offset + 4 > (size_t)(end - messages))
			return NULL;
		memcpy(messages + patch.offset, slots + patch.slot, 4);
	}
	return messages;
}

static int run_batch(struct channel *channel, uint8_t *at, uint8_t *end, const int *slots,
		     struct attach_result *out)
{
	uint32_t first = channel->seq + 1;
	uint8_t *messages = patched(at, end, slots), *last = NULL;
	struct nlmsghdr head;
	int asked;

	if (!messages) {
		errno = EINVAL;
		return FAILED;
	}
	for (at = messages; end - at >= NLMSG_HDRLEN; at += NLMSG_ALIGN(head.nlmsg_len)) {
		memcpy(&head, at, sizeof head);
		if (head.nlmsg_len < NLMSG_HDRLEN || NLMSG_ALIGN(head.nlmsg_len) > end - at) {
			errno = EINVAL;
			return FAILED;
		}
		head.nlmsg_seq = ++channel->seq;
		memcpy(at, &head, sizeof head);
		last = at;
	}
	if (!last)
		return DONE;
	asked = head.nlmsg_type == RTM_GETLINK;
	if (!asked) {
		head.nlmsg_flags |= NLM_F_ACK;
		memcpy(last, &head, sizeof head);
	}
	while (send(channel->sock, messages, (size_t)(end - messages), 0) < 0)
		if (errno != EINTR)
			return FAILED;
	return receive(channel->sock, first, channel->seq, asked, out);
}

/* Open an rtnetlink socket in the pod's namespace: DONE with the socket in `sock`, FAILED with
 * errno, or LOST. */
static int open_in_pod(int pod, int node, int *sock)
{
	int one = 1, saved;

	if (setns(pod, CLONE_NEWNET) != 0)
		return FAILED;
	*sock = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (*sock >= 0) {
		setsockopt(*sock, SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof one);
		setsockopt(*sock, SOL_NETLINK, NETLINK_EXT_ACK, &one, sizeof one);
	}
	saved = errno;
	if (setns(node, CLONE_NEWNET) != 0)
		return LOST;
	errno = saved;
	return *sock >= 0 ? DONE : FAILED;
}

/* Where the kernel knows no such link, the slot stays 0: the kernel then refuses the message that
 * needs it. */
static void look_up_index(int sock, const uint8_t *body, int *slots)
{
	struct ifreq asked = {0};

	memcpy(asked.ifr_name, body + 4, IFNAMSIZ - 1);
	if (u32(body) < SLOTS && ioctl(sock, SIOCGIFINDEX, &asked) == 0)
		slots[u32(body)] = asked.ifr_ifindex;
}

static int run_records(struct channel *channels, int node, int pod, uint8_t *at, uint8_t *end,
		       struct attach_result *out)
{
	int slots[SLOTS] = {0}, status = DONE;
	struct record record;

	for (; status == DONE && (size_t)(end - at) >= sizeof record; at += record.size) {
		uint8_t *body = at + sizeof record;
		size_t least = 4;

		memcpy(&record, at, sizeof record);
		if (record.kind == INDEX)
			least += IFNAMSIZ;
		if (record.place >= PLACES || record.size < sizeof record + least ||
		    record.size > end - at) {
			errno = EINVAL;
			return FAILED;
		}
		if (channels[record.place].sock < 0 && record.place == 1)
			status = open_in_pod(pod, node, &channels[1].sock);
		if (status != DONE)
			return status;
		if (record.kind == INDEX) {
			look_up_index(channels[record.place].sock, body, slots);
			continue;
		}
		status = run_batch(&channels[record.place], body, at + record.size, slots, out);
		out->batch += status == DONE;
	}
	return status;
}

/* Run a program. sock: an rtnetlink socket of the node that used sequence numbers up to `seq`;
 * node, pod: namespaces.
 */
int attach_run(int sock, uint32_t seq, int node, int pod, const uint8_t *program, uint32_t size,
	       struct attach_result *out)
{
	struct channel channels[PLACES] = {{sock, seq}, {-1, 0}};
	uint8_t copy[PROGRAM_SIZE];
	int status;

	memset(out, 0, sizeof *out);
	if (size > sizeof copy) {
		out->error = E2BIG;
		return FAILED;
	}
	memcpy(copy, program, size);
	status = run_records(channels, node, pod, copy, copy + size, out);
	if (status == FAILED)
		out->error = errno;
	if (channels[1].sock >= 0)
		close(channels[1].sock);
	return status;
}

/* Send one netlink batch and read all answers that are there when the kernel returns. Returns their
 * bytes, or -errno.
 */
int attach_exchange(int sock, const uint8_t *data, uint32_t size, uint8_t *answers, uint32_t room)
{
	uint32_t got = 0;

	while (send(sock, data, size, 0) < 0)
		if (errno != EINTR)
			return -errno;
	for (;;) {
		ssize_t more = recv(sock, answers + got, room - got, MSG_DONTWAIT);

		if (more > 0) {
			got += (uint32_t)more;
			if (got < room)
				continue;
		}
		if (more < 0 && errno == EINTR)
			continue;
		return more >= 0 || errno == EAGAIN ? (int)got : -errno;
	}
}
