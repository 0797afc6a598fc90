/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Counts what the hooks answered. Each CPU has its own number, and adds to it in one instruction: a
 * program of the same CPU may run in between.
 */
#ifndef PODWIRE_COUNT_H
#define PODWIRE_COUNT_H

#include "bpf.h"
#include "look.h"

#define COUNTED (1 << 17)
#define ANSWERS 16 /* more than look.h has */

/* from: the frontend. to: the endpoint; or, for a frontend that was left to nftables, all zero with
 * the answer in `zero`. All zero: endpoints that are gone, which the proxy sums there. */
struct counted {
	struct place from;
	struct place to;
};

struct map counts SEC("maps") = {PERCPU_HASH, sizeof(struct counted), 8, COUNTED, NO_PREALLOC};

/* By answer. That of UNKNOWN: what `counts` had no room for. */
struct map totals SEC("maps") = {PERCPU_ARRAY, 4, 8, ANSWERS, 0};

INLINE void total(u32 answer)
{
	u64 *number = map_lookup(&totals, &answer);

	if (number)
		__sync_fetch_and_add(number, 1);
}

INLINE void count(const struct place *from, const struct place *to, int answer)
{
	struct counted key = {.from = *from};
	u64 one = 1, *number;

	if (answer == UNKNOWN)
		return;
	total(answer);
	if (answer == SERVED)
		key.to = *to;
	else
		key.to.zero = answer;
	number = map_lookup(&counts, &key);
	if (!number) {
		if (!map_update(&counts, &key, &one, NEW_ONLY))
			return;
		number = map_lookup(&counts, &key); /* another program was faster */
	}
	if (number)
		__sync_fetch_and_add(number, 1);
	else
		total(UNKNOWN);
}

#endif
