/* podwire-beat: reads the beat of a role for the probes of a container.
 *
 *     podwire-beat live FILE SECONDS    exit 0 if the role made progress within SECONDS
 *     podwire-beat ready FILE SECONDS   exit 0 if it did, and is ready
 *
 * FILE has the line that role/beat.py describes. It is written in place, so it is read again until
 * two readings are equal. Exit status 1 and one line say what is wrong; 2 is a wrong command line.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 256, TRIES = 20 };

static int fetch(const char *path, char *into)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	ssize_t got = pread(fd, into, SIZE, 0);
	int error = errno;
	close(fd);
	errno = error;
	if (got < 0)
		return -1;
	into[got] = '\0';
	return 0;
}

static int settled(const char *path, char *into)
{
	char again[SIZE + 1];
	if (fetch(path, into))
		return -1;
	for (int i = 0; i < TRIES; i++) {
		usleep(200);
		if (fetch(path, again))
			return -1;
		if (strcmp(into, again) == 0)
			return 0;
		strcpy(into, again);
	}
	return 0;
}

int main(int argc, char **argv)
{
	char text[SIZE + 1], *end = NULL;
	int ready_wanted = argc == 4 && strcmp(argv[1], "ready") == 0;
	double most = argc == 4 ? strtod(argv[3], &end) : 0;

	if (argc == 2 && strcmp(argv[1], "--version") == 0) {
		puts("podwire-beat 0.2.0");
		return 0;
	}
	if (argc != 4 || (!ready_wanted && strcmp(argv[1], "live") != 0) || *end || !(most > 0)) {
		fprintf(stderr, "usage: podwire-beat live|ready FILE SECONDS\n");
		return 2;
	}
	if (settled(argv[2], text)) {
		printf("%s: %s\n", argv[2], strerror(errno));
		return 1;
	}

	double at = 0;
	int pid = 0, ready = 0;
	if (sscanf(text, "podwire-beat/1 at=%lf pid=%d ready=%d ", &at, &pid, &ready) != 3) {
		printf("%s: not a beat of this version\n", argv[2]);
		return 1;
	}
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	double age = (double)now.tv_sec + (double)now.tv_nsec / 1e9 - at;
	char *did = strstr(text, " did=");
	text[strcspn(text, "\n")] = '\0';
	if (age > most || age < -1) { /* a beat of the future is that of an earlier boot */
		printf("no progress for %.0f s; last%s\n", age, did ? did : "");
		return 1;
	}
	if (ready_wanted && !ready) {
		printf("not ready; last%s\n", did ? did : "");
		return 1;
	}
	return 0;
}
