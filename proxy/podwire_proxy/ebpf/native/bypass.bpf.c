// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Pod to pod, past the host's stack: at the node's end of a pod's link (tcx ingress), a packet for
 * another pod of the node goes straight into that pod. Every packet that this program does not
 * understand goes on to the bridge and the rules.
 *
 * Both ends must be fast: conntrack sees a flow whole or not at all. A pod that sends to a
 * Service's address on the wire (no hook chose its endpoint) is slow until the proxy finds no
 * translated flow of it: the answers must come back through the rules.
 */
#include "bpf.h"
#include "look.h"

#define NEXT (-1) /* TCX_NEXT, TC_ACT_UNSPEC: the packet goes its usual way */
#define IPV4 __builtin_bswap16(0x0800)
#define IPV6 __builtin_bswap16(0x86dd)
#define OFFSET __builtin_bswap16(0x1fff) /* of a fragment */

enum { ICMP = 1, ICMPV6 = 58 };

enum { FAST = 1 };

struct ethernet {
	u8 to[6];
	u8 from[6];
	u16 kind;
};

struct ipv4 {
	u8 version;
	u8 tos;
	u16 length;
	u16 id;
	u16 fragment;
	u8 ttl;
	u8 protocol;
	u16 checksum;
	u32 from;
	u32 to;
};

struct ipv6 {
	u32 version;
	u16 length;
	u8 next;
	u8 ttl;
	u32 from[4];
	u32 to[4];
};

struct address {
	u32 ip[4];
};

/* ifindex: the node's end of the pod's link. mac: the pod's. wire: when the pod last sent to a
 * Service's address itself (ns), 0: never, or its flows have ended. */
struct pod {
	u32 ifindex;
	u32 flags;
	u8 mac[6];
	u16 zero;
	u64 wire;
};

/* A port of the node that leads into a pod (hostPort). */
struct door {
	u16 port;
	u8 protocol;
	u8 zero;
};

struct passed {
	u64 packets;
	u64 bytes;
};

struct map pods SEC("maps") = {HASH, sizeof(struct address), sizeof(struct pod), 4096, 0};
struct map doors SEC("maps") = {HASH, sizeof(struct door), 4, 8192, 0};
struct map passed SEC("maps") = {PERCPU_ARRAY, 4, sizeof(struct passed), 1, 0};

INLINE void mapped_of(struct address *address, u32 ip4)
{
	address->ip[0] = address->ip[1] = 0;
	address->ip[2] = __builtin_bswap32(0xffff);
	address->ip[3] = ip4;
}

INLINE void copy(struct address *to, const u32 *ip)
{
	to->ip[0] = ip[0];
	to->ip[1] = ip[1];
	to->ip[2] = ip[2];
	to->ip[3] = ip[3];
}

/* The destination's port behind a header; 0 if the packet ends before. */
INLINE u16 port_at(const u16 *ports, const void *end)
{
	return (const void *)(ports + 2) > end ? 0 : ports[1];
}

/* A packet that may be translated: the pod's next packets must all take the usual way. */
INLINE void on_the_wire(struct pod *pod, const struct address *to, u8 protocol, u16 port)
{
	struct place place = {.port = port, .protocol = protocol};
	struct door door = {.port = port, .protocol = protocol};

	if (protocol != TCP && protocol != UDP)
		return;
	place.ip[0] = to->ip[0];
	place.ip[1] = to->ip[1];
	place.ip[2] = to->ip[2];
	place.ip[3] = to->ip[3];
	if (map_lookup(&services, &place) || map_lookup(&doors, &door))
		pod->wire = ktime_get_ns();
}

SEC("tc/bypass") int bypass(struct sk_buff *skb)
{
	void *data = (void *)(u64)skb->data, *end = (void *)(u64)skb->data_end;
	struct ethernet *ethernet = data;
	struct address from, to;
	struct pod *sender, *target;
	struct passed *passed_by;
	u16 port = 0;
	u8 protocol, ttl;
	u32 zero = 0;

	if ((void *)(ethernet + 1) > end)
		return NEXT;
	if (ethernet->kind == IPV4) {
		struct ipv4 *ip = (void *)(ethernet + 1);

		if ((void *)(ip + 1) > end || ip->version != 0x45)
			return NEXT;
		mapped_of(&from, ip->from);
		mapped_of(&to, ip->to);
		protocol = ip->protocol;
		ttl = ip->ttl;
		/* a later fragment has no ports; its first one told whether the flow is translated
		 */
		if (!(ip->fragment & OFFSET))
			port = port_at((void *)(ip + 1), end);
	} else if (ethernet->kind == IPV6) {
		struct ipv6 *ip = (void *)(ethernet + 1);

		if ((void *)(ip + 1) > end)
			return NEXT;
		copy(&from, ip->from);
		copy(&to, ip->to);
		protocol = ip->next;
		ttl = ip->ttl;
		port = port_at((void *)(ip + 1), end);
	} else {
		return NEXT;
	}
	sender = map_lookup(&pods, &from);
	if (!sender || sender->ifindex != skb->before[10])
		return NEXT;
	target = map_lookup(&pods, &to);
	if (!target) {
		on_the_wire(sender, &to, protocol, port);
		return NEXT;
	}
	if (!(sender->flags & target->flags & FAST) || sender->wire || target->wire || ttl < 2)
		return NEXT;
	if (protocol != TCP && protocol != UDP && protocol != ICMP && protocol != ICMPV6)
		return NEXT;
	passed_by = map_lookup(&passed, &zero);
	if (passed_by) {
		__sync_fetch_and_add(&passed_by->packets, 1);
		__sync_fetch_and_add(&passed_by->bytes, skb->before[0]);
	}
	__builtin_memcpy(ethernet->to, target->mac, 6);
	__builtin_memcpy(ethernet->from, sender->mac, 6);
	return redirect_peer(target->ifindex, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
