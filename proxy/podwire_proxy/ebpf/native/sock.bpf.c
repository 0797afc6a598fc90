// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Services at the socket: connect() and sendmsg() to a Service's address go to an endpoint, and
 * getpeername() and recvmsg() show the Service's address again. No packet is translated, so no
 * packet needs conntrack. README.md says which packet meets which program.
 *
 * A hook that returns 1 with the address untouched leaves the socket to nftables, which serves
 * every frontend. So a hook may always give up, and does: for a client that is not known, a bound
 * address, a full memory.
 */
#include "bpf.h"
#include "count.h"
#include "look.h"

#define REMEMBERED 16 /* a power of two */
#define FRESH 30000000000ULL /* ns; an answer may come for this long: conntrack's time for UDP */
#define SEARCHED 32 /* endpoints of a frontend among which a remembered one is looked for */

/* What a socket dialled, what it got, and when (ns); a time of 0: nothing. */
struct dialled {
	struct place from;
	struct place to;
	u64 at;
};

/*
 * A socket's own memory, freed with it: a pod cannot use up another pod's share. sent: of a UDP
 * socket without connect(). A socket that has more destinations at a time is left to nftables.
 */
struct memory {
	struct dialled connected;
	struct dialled sent[REMEMBERED];
};

struct map memory SEC("maps") = {SK_STORAGE, 4, sizeof(struct memory), 0, NO_PREALLOC};

/*
 * What connected UDP sockets dialled, by the number of the socket: sock_diag tells no memory of a
 * UDP socket. The proxy ends those whose endpoint is gone. An entry that is evicted costs only
 * that.
 */
struct map dialling SEC("maps") = {LRU_HASH, 8, sizeof(struct dialled), 16384, 0};

INLINE void from_ip4(struct place *place, struct bpf_sock_addr *ctx)
{
	place->ip[0] = place->ip[1] = 0;
	place->ip[2] = __builtin_bswap32(0xffff);
	place->ip[3] = ctx->user_ip4;
	place->port = ctx->user_port;
	place->protocol = ctx->protocol;
	place->zero = 0;
}

INLINE void from_ip6(struct place *place, struct bpf_sock_addr *ctx)
{
	place->ip[0] = ctx->user_ip6[0];
	place->ip[1] = ctx->user_ip6[1];
	place->ip[2] = ctx->user_ip6[2];
	place->ip[3] = ctx->user_ip6[3];
	place->port = ctx->user_port;
	place->protocol = ctx->protocol;
	place->zero = 0;
}

INLINE void to_ip4(struct bpf_sock_addr *ctx, const struct place *place)
{
	ctx->user_ip4 = place->ip[3];
	ctx->user_port = place->port;
}

INLINE void to_ip6(struct bpf_sock_addr *ctx, const struct place *place)
{
	ctx->user_ip6[0] = place->ip[0];
	ctx->user_ip6[1] = place->ip[1];
	ctx->user_ip6[2] = place->ip[2];
	ctx->user_ip6[3] = place->ip[3];
	ctx->user_port = place->port;
}

INLINE int mapped(const struct place *place)
{
	return !place->ip[0] && !place->ip[1] && place->ip[2] == __builtin_bswap32(0xffff);
}

/*
 * Whose socket it is: SERVED, or why these hooks may not serve it. A source that the program bound
 * itself must be the pod's own: for any other, nftables may masquerade. Of the node none may be
 * bound: the source that the route to the endpoint chooses equals a masqueraded one.
 */
INLINE int whose(struct bpf_sock_addr *ctx, int ip4, u32 *who)
{
	u64 cookie = netns_cookie(ctx);
	struct client *client = map_lookup(&clients, &cookie);
	struct bpf_sock *sk = ctx->sk;
	u32 ip[4];

	if (!client)
		return STRANGER;
	*who = client->who;
	if (!sk || sk->bound_dev_if)
		return BOUND;
	if (ip4)
		return !sk->src_ip4 || sk->src_ip4 == client->ip4 ? SERVED : BOUND;
	ip[0] = sk->src_ip6[0];
	ip[1] = sk->src_ip6[1];
	ip[2] = sk->src_ip6[2];
	ip[3] = sk->src_ip6[3];
	return !(ip[0] | ip[1] | ip[2] | ip[3]) || same(ip, client->ip6) ? SERVED : BOUND;
}

/* The client's block of endpoints; else why nftables serves the socket. */
INLINE int admitted(struct bpf_sock_addr *ctx, struct place *from, struct block *block)
{
	u32 who = 0;
	int found = whose(ctx, mapped(from), &who);

	if (found == SERVED)
		return find(from, who, block);
	return map_lookup(&services, from) ? found : UNKNOWN;
}

INLINE struct memory *remember(struct bpf_sock_addr *ctx, u64 flags)
{
	return ctx->sk ? sk_storage_get(&memory, ctx->sk, 0, flags) : 0;
}

INLINE int connected(struct bpf_sock_addr *ctx, struct place *from, struct place *to)
{
	struct memory *held;
	struct block block;
	int found = UNKNOWN;

	if (from->protocol == TCP || from->protocol == UDP)
		found = admitted(ctx, from, &block);
	if (found == SERVED)
		found = choose(&block, prandom_u32(), to, from->protocol);
	held = remember(ctx, found == SERVED ? CREATE : 0);
	if (held)
		held->connected.at = found == SERVED ? ktime_get_ns() : 0;
	else if (found == SERVED)
		found = FULL;
	if (found == SERVED && held) {
		held->connected.from = *from;
		held->connected.to = *to;
		if (from->protocol == UDP) {
			u64 cookie = socket_cookie(ctx);
			struct dialled one = {.from = *from, .to = *to, .at = held->connected.at};

			map_update(&dialling, &cookie, &one, 0);
		}
	}
	count(from, to, found);
	return found;
}

INLINE int equal(const struct place *a, const struct place *b)
{
	return same(a->ip, b->ip) && a->port == b->port;
}

/* Whether the endpoint is one of the block still. */
INLINE int member(const struct block *block, const struct place *to)
{
	struct place one;
	u32 n;

	for (n = 0; n < SEARCHED; n++) {
		if (n >= block->count)
			return 0;
		if (take(block->base + n, &one, UDP) == SERVED && equal(&one, to))
			return 1;
	}
	return 0;
}

/*
 * The datagrams that a socket sends to one frontend go to one endpoint, as with conntrack. Each
 * frontend has one place in the memory, found without a search; while another one uses the place,
 * nftables serves.
 */
INLINE int kept(struct bpf_sock_addr *ctx, struct place *from, struct place *to, int *again)
{
	u32 mixed = from->ip[3] * 2654435761u ^ from->ip[2] ^ from->port * 40503u;
	u64 now = ktime_get_ns();
	struct dialled *one;
	struct block block;
	struct memory *held;
	int found = from->protocol == UDP ? admitted(ctx, from, &block) : UNKNOWN;
	int fresh;

	if (found != SERVED)
		return found;
	held = remember(ctx, CREATE);
	if (!held)
		return FULL;
	one = &held->sent[mixed >> 16 & (REMEMBERED - 1)];
	fresh = one->at && now - one->at < FRESH;
	if (fresh && !equal(&one->from, from))
		return FULL;
	if (fresh && member(&block, &one->to)) {
		one->at = now;
		*to = one->to;
		*again = 1;
		return SERVED;
	}
	found = choose(&block, prandom_u32(), to, UDP);
	if (found != SERVED)
		return found;
	one->from = *from;
	one->to = *to;
	one->at = now;
	return SERVED;
}

/* A choice counts once; a datagram that nftables serves counts each time. */
INLINE int sent(struct bpf_sock_addr *ctx, struct place *from, struct place *to)
{
	int again = 0;
	int found = kept(ctx, from, to, &again);

	if (!again)
		count(from, to, found);
	return found;
}

/* Who sent the datagram, or is at the other end: the address that was dialled. */
INLINE int shown(struct bpf_sock_addr *ctx, struct place *peer, int datagram)
{
	struct memory *held = remember(ctx, 0);
	u64 latest = 0, blind = ktime_get_ns(), use = 0;
	struct dialled *one;
	u32 n;

	if (!held)
		return UNKNOWN;
	if (held->connected.at && equal(&held->connected.to, peer)) {
		*peer = held->connected.from;
		return SERVED;
	}
#pragma unroll
	for (n = 0; n < REMEMBERED; n++) {
		one = &held->sent[n];
		if (datagram && one->at > latest && equal(&one->to, peer)) {
			latest = one->at;
			use = n;
		}
	}
	if (!latest)
		return UNKNOWN;
	/* Without CAP_PERFMON the verifier refuses an addition to a pointer that differs by the
	 * path taken. It does not know this number, so there is one.
	 */
	asm volatile("%0 ^= %1" : "+r"(use) : "r"(blind));
	asm volatile("%0 ^= %1" : "+r"(use) : "r"(blind));
	*peer = held->sent[use & (REMEMBERED - 1)].from;
	return SERVED;
}

#define DIALS(name, family, what)                                                                  \
	SEC("cgroup/" #name) int name(struct bpf_sock_addr *ctx)                                   \
	{                                                                                          \
		struct place from, to;                                                             \
                                                                                                   \
		from_##family(&from, ctx);                                                         \
		if (what(ctx, &from, &to) == SERVED)                                               \
			to_##family(ctx, &to);                                                     \
		return 1;                                                                          \
	}

#define SHOWS(name, family, datagram)                                                              \
	SEC("cgroup/" #name) int name(struct bpf_sock_addr *ctx)                                   \
	{                                                                                          \
		struct place peer;                                                                 \
                                                                                                   \
		from_##family(&peer, ctx);                                                         \
		if (shown(ctx, &peer, datagram) == SERVED)                                         \
			to_##family(ctx, &peer);                                                   \
		return 1;                                                                          \
	}

DIALS(connect4, ip4, connected)
DIALS(connect6, ip6, connected)
DIALS(sendmsg4, ip4, sent)
DIALS(sendmsg6, ip6, sent)
SHOWS(recvmsg4, ip4, 1)
SHOWS(recvmsg6, ip6, 1)
SHOWS(getpeername4, ip4, 0)
SHOWS(getpeername6, ip6, 0)

/* A question, and its answer in the same place: behind the Ethernet header of a test's packet. */
struct question {
	struct place place;
	u32 who;
	u32 random;
	u32 found;
};

#define ETHERNET 14

SEC("tc/ask") int ask(struct sk_buff *skb)
{
	struct question *question = (void *)(u64)skb->data + ETHERNET;
	struct question asked;
	struct place to;

	if ((void *)(question + 1) > (void *)(u64)skb->data_end)
		return -1;
	__builtin_memcpy(&asked, question, sizeof(asked));
	asked.found = look(&asked.place, asked.who, asked.random, &to);
	if (asked.found == SERVED)
		asked.place = to;
	__builtin_memcpy(question, &asked, sizeof(asked));
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
