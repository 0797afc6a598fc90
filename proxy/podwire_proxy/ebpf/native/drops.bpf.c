// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Packets that the kernel drops, for `podwire drops`: at the raw tracepoint kfree_skb, while
 * somebody looks. The places of fields differ from kernel to kernel, so user space reads them from
 * the kernel's types (BTF) and puts them into a map: the object is the same for all kernels.
 */
#include "bpf.h"

#define COPIED                                                                                     \
	96 /* bytes of the packet from its network header: addresses and ports, of a mapped error  \
	      too */

/* Offsets in bytes, by structure. everywhere: also of namespaces that `spaces` does not have. */
struct fields {
	u32 skb_protocol;
	u32 skb_head;
	u32 skb_network_header;
	u32 skb_len;
	u32 skb_dev;
	u32 skb_sk;
	u32 skb_skb_iif;
	u32 net_device_nd_net;
	u32 net_device_ifindex;
	u32 sock_net;
	u32 net_net_cookie;
	u32 everywhere;
};

struct event {
	u64 at; /* ns of the monotonic clock */
	u64 space; /* the number of the network namespace; 0: not known */
	u64 location; /* the kernel's code that dropped it */
	u32 reason;
	u32 ifindex;
	u32 length;
	u32 copied;
	u8 packet[COPIED];
};

struct map fields SEC("maps") = {ARRAY, 4, sizeof(struct fields), 1, 0};
struct map spaces SEC("maps") = {HASH, 8, 4, 8192, 0};
struct map events SEC("maps") = {RINGBUF, 0, 0, 1 << 20, 0};
struct map lost SEC("maps") = {PERCPU_ARRAY, 4, 8, 1, 0};

INLINE u64 pointer(u64 base, u32 offset)
{
	u64 value = 0;

	if (base && probe_read_kernel(&value, sizeof(value), (void *)(base + offset)))
		return 0;
	return value;
}

INLINE u32 number(u64 base, u32 offset)
{
	u32 value = 0;

	if (base && probe_read_kernel(&value, sizeof(value), (void *)(base + offset)))
		return 0;
	return value;
}

INLINE u16 small(u64 base, u32 offset)
{
	u16 value = 0;

	if (probe_read_kernel(&value, sizeof(value), (void *)(base + offset)))
		return 0;
	return value;
}

/* A queue may have another use for skb->dev, and then the socket tells the namespace. */
INLINE u64 space_of(const struct fields *at, u64 dev, u64 sk)
{
	u64 net = pointer(dev, at->net_device_nd_net);
	u64 cookie = pointer(net, at->net_net_cookie);

	if (cookie || !sk)
		return cookie;
	return pointer(pointer(sk, at->sock_net), at->net_net_cookie);
}

INLINE int seen(u64 skb, u64 location, u32 reason, u64 receiver)
{
	u32 zero = 0;
	const struct fields *at = map_lookup(&fields, &zero);
	struct event *event;
	u64 space, dev;
	u16 protocol;

	if (!at)
		return 0;
	protocol = small(skb, at->skb_protocol);
	if (protocol != __builtin_bswap16(0x0800) && protocol != __builtin_bswap16(0x86dd))
		return 0;
	dev = pointer(skb, at->skb_dev);
	space = space_of(at, dev, receiver ? receiver : pointer(skb, at->skb_sk));
	if (!at->everywhere && !map_lookup(&spaces, &space))
		return 0;
	event = ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		u64 *more = map_lookup(&lost, &zero);

		if (more)
			__sync_fetch_and_add(more, 1);
		return 0;
	}
	event->at = ktime_get_ns();
	event->space = space;
	event->location = location;
	event->reason = reason;
	event->ifindex = number(dev, at->net_device_ifindex);
	if (!event->ifindex)
		event->ifindex = number(skb, at->skb_skb_iif);
	event->length = number(skb, at->skb_len);
	event->copied = COPIED;
	if (probe_read_kernel(
		    event->packet, COPIED,
		    (void *)(pointer(skb, at->skb_head) + small(skb, at->skb_network_header))))
		event->copied = 0;
	ringbuf_submit(event, 0);
	return 0;
}

/* Since 6.11 the tracepoint tells the socket that should have got the packet. */
SEC("raw_tp/dropped4") int dropped4(u64 *args)
{
	return seen(args[0], args[1], args[2], args[3]);
}

SEC("raw_tp/dropped3") int dropped3(u64 *args)
{
	return seen(args[0], args[1], args[2], 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
