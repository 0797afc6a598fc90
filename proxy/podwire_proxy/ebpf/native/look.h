/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The one decision: which endpoint a client gets for the address that it dials. A function of plain
 * values and of the maps; the hooks (sock.bpf.c) and the question of a test (ask) call it.
 *
 * IPv4 addresses are in their mapped form ::ffff:a.b.c.d, so both families and mapped sockets take
 * one path. maps.py writes these structures: a test compares the sizes.
 */
#ifndef PODWIRE_LOOK_H
#define PODWIRE_LOOK_H

#include "bpf.h"

/* An address, a port in network byte order, a protocol. */
struct place {
	u32 ip[4];
	u16 port;
	u8 protocol;
	u8 zero;
};

/*
 * key: the frontend itself, first. An element that is deleted while a program reads it may be taken
 * by another Service; the element's own key then tells. word: base of the block of endpoints, their
 * number (16 bits), who is served (16 bits), in one word so that no reader sees two halves. A word
 * of 0: nftables serves the frontend.
 */
struct service {
	struct place key;
	u32 zero;
	u64 word;
};

struct endpoint {
	u32 ip[4];
	u16 port;
	u16 zero;
	u32 zeros;
};

/* who: POD or NODE. ip4, ip6: the pod's own addresses, zero for the node. */
struct client {
	u32 who;
	u32 ip4;
	u32 ip6[4];
};

enum { POD = 1, NODE = 2 };

/*
 * The answers. UNKNOWN: the address is no frontend's. SERVED: an endpoint was chosen. All others:
 * nftables serves the frontend, and why. maps.py has their names.
 */
enum {
	UNKNOWN,
	SERVED,
	UNSERVED, /* the plan leaves this frontend, for clients of this kind */
	STRANGER, /* the namespace is not a client's */
	BOUND, /* the socket is bound to a device, or to an address that is not the pod's */
	NESTED, /* the endpoint is itself an address of a Service */
	FULL, /* the socket has no memory left for one more Service */
	CHANGING, /* the frontend or its endpoints change just now */
};

#define SERVICES (1 << 17)
#define ENDPOINTS (1 << 20)
#define CLIENTS 8192

struct map services SEC("maps") = {HASH, sizeof(struct place), sizeof(struct service), SERVICES, 0};
struct map endpoints SEC("maps") = {ARRAY, 4, sizeof(struct endpoint), ENDPOINTS, MMAPABLE};
struct map clients SEC("maps") = {HASH, 8, sizeof(struct client), CLIENTS, 0};

INLINE int same(const u32 *a, const u32 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

/* The block of a frontend's endpoints; its size is 0 where these hooks do not serve the client. */
struct block {
	u32 base;
	u32 count;
};

INLINE int find(struct place *dialled, u32 who, struct block *block)
{
	struct service *service = map_lookup(&services, dialled);
	u64 word;

	block->count = 0;
	if (!service)
		return UNKNOWN;
	word = *(volatile u64 *)&service->word;
	if (!same(service->key.ip, dialled->ip) || service->key.port != dialled->port)
		return CHANGING;
	if (!(word >> 48 & who))
		return UNSERVED;
	block->base = word;
	block->count = word >> 32 & 0xffff;
	return block->count ? SERVED : UNSERVED;
}

INLINE int take(u32 index, struct place *to, u8 protocol)
{
	struct endpoint *endpoint = map_lookup(&endpoints, &index);

	if (!endpoint)
		return CHANGING;
	to->ip[0] = endpoint->ip[0];
	to->ip[1] = endpoint->ip[1];
	to->ip[2] = endpoint->ip[2];
	to->ip[3] = endpoint->ip[3];
	to->port = endpoint->port;
	to->protocol = protocol;
	to->zero = 0;
	return to->port ? SERVED : CHANGING;
}

/* An endpoint that is itself an address of a Service is for nftables, which would see that Service.
 */
INLINE int choose(const struct block *block, u32 random, struct place *to, u8 protocol)
{
	if (take(block->base + random % block->count, to, protocol) != SERVED)
		return CHANGING;
	return map_lookup(&services, to) ? NESTED : SERVED;
}

/* random: any number; equal numbers choose equal endpoints. */
INLINE int look(struct place *dialled, u32 who, u32 random, struct place *to)
{
	struct block block;
	int found = find(dialled, who, &block);

	return found == SERVED ? choose(&block, random, to, dialled->protocol) : found;
}

#endif
