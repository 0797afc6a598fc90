/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the programs use of the kernel's interface: contexts, helpers and kinds of maps, with the
 * numbers of the system call interface. A header of our own, so that a build needs clang alone.
 */
#ifndef PODWIRE_BPF_H
#define PODWIRE_BPF_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

enum { AF_INET = 2, AF_INET6 = 10 };

enum { TCP = 6, UDP = 17 };

enum {
	HASH = 1,
	ARRAY = 2,
	PERCPU_HASH = 5,
	PERCPU_ARRAY = 6,
	LRU_HASH = 9,
	SK_STORAGE = 24,
	RINGBUF = 27,
};

enum { NO_PREALLOC = 1, MMAPABLE = 1 << 10 };

enum { CREATE = 1 }; /* of sk_storage_get */

enum { NEW_ONLY = 1 }; /* of map_update */

/* The loader reads these from the section "maps", and puts the map's descriptor where a program
 * takes the address of one. */
struct map {
	u32 type;
	u32 key_size;
	u32 value_size;
	u32 max_entries;
	u32 flags;
};

struct bpf_sock {
	u32 bound_dev_if;
	u32 family;
	u32 type;
	u32 protocol;
	u32 mark;
	u32 priority;
	u32 src_ip4;
	u32 src_ip6[4];
};

/* Of the hooks at connect, sendmsg, recvmsg and getpeername. Addresses and the port are in network
 * byte order. */
struct bpf_sock_addr {
	u32 user_family;
	u32 user_ip4;
	u32 user_ip6[4];
	u32 user_port;
	u32 family;
	u32 type;
	u32 protocol;
	u32 msg_src_ip4;
	u32 msg_src_ip6[4];
	u32 : 32;
	struct bpf_sock *sk;
};

struct sk_buff {
	u32 before[19];
	u32 data;
	u32 data_end;
};

/* The number of a helper is the address that a program calls. */
static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static long (*map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static u64 (*ktime_get_ns)(void) = (void *)5;
static u32 (*prandom_u32)(void) = (void *)7;
static u64 (*socket_cookie)(void *ctx) = (void *)46;
static void *(*sk_storage_get)(void *map, void *sk, void *value, u64 flags) = (void *)107;
static u64 (*netns_cookie)(void *ctx) = (void *)122;
static long (*probe_read_kernel)(void *to, u32 size, const void *from) = (void *)113;
static void *(*ringbuf_reserve)(void *map, u64 size, u64 flags) = (void *)131;
static void (*ringbuf_submit)(void *record, u64 flags) = (void *)132;
static long (*redirect_peer)(u32 ifindex, u64 flags) = (void *)155;

#endif
