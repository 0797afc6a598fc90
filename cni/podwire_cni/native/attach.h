/* What Python sees of attach.c. cffi reads this file behind the C preprocessor, with PODWIRE_CDEF
 * defined. */
#ifndef PODWIRE_ATTACH_H
#define PODWIRE_ATTACH_H
#ifndef PODWIRE_CDEF
#include <stdint.h>
#endif

/* How a program ended: REFUSED by the kernel; FAILED: another system call did; LOST: the thread
 * cannot leave the pod. */
enum attach_status { DONE = 0, REFUSED = 1, FAILED = 2, LOST = 3 };

struct attach_result {
	int32_t batch; /* which one the kernel refused, counted from 0 */
	int32_t message; /* which message of it */
	int32_t error; /* errno */
	int32_t no_carrier; /* links asked for that carry no packets yet */
	char extack[112]; /* what the kernel said about the refusal */
};

int attach_run(int sock, uint32_t seq, int node, int pod, const uint8_t *program, uint32_t size,
	       struct attach_result *out);
int attach_exchange(int sock, const uint8_t *data, uint32_t size, uint8_t *answers, uint32_t room);

#endif
