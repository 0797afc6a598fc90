/* A number to spread load by; anybody may guess it. */
#ifndef PODWIRE_RANDOM_H
#define PODWIRE_RANDOM_H
#include <stdint.h>

/* xorshift64 (Marsaglia 2003, "Xorshift RNGs"). The state must not be 0. */
static inline uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

#endif
