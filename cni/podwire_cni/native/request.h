/* What Python sees of request.c. cffi reads this file behind the C preprocessor, with PODWIRE_CDEF
 * defined. */
#ifndef PODWIRE_REQUEST_H
#define PODWIRE_REQUEST_H
#ifndef PODWIRE_CDEF
#include <stdint.h>
#endif

enum { REQUEST_FDS = 4 };

struct file_id {
	uint64_t dev, ino;
};

/* One call of the plugin binary, as far as it was read. */
struct request {
	int32_t connection; /* -1: none */
	int32_t count; /* of fds */
	int32_t fds[REQUEST_FDS];
	uint32_t size; /* of what is in the buffer */
	int32_t is_netns; /* whether the second descriptor is a network namespace */
	struct file_id ids[2]; /* of the first two descriptors */
};

int request_accept(int listener, uint8_t *buffer, uint32_t room, int seconds, struct request *out);
int request_abandoned(int connection);
int request_answer(const struct request *request, const uint8_t *text, uint32_t size);

#endif
