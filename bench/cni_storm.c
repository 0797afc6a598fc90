/* Runs many chains of CNI plugins at once, as many container runtimes would, and measures the total
 * time.
 *
 *     cni_storm WIDTH < jobs      WIDTH: the number of chains at a time
 *
 * A job is text ended by NULs: the number of variables, the variables (KEY=VALUE), the number of
 * plugins, and for each plugin its program and its configuration. Each plugin of a chain gets its
 * predecessor's result as prevResult. On stdout: the nanoseconds from the first start to the last
 * end, then the output of the last plugin of each job, all ended by NULs. Status 1 where a plugin
 * failed; its output is on stderr. This is C so that no interpreter's time is measured. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PLUGINS = 4, VARIABLES = 16, JOBS = 4096, TEXT = 1 << 16 };

struct job {
	char *env[VARIABLES + 1], *program[PLUGINS], *conf[PLUGINS];
	int plugins, at, out;
	pid_t pid;
};

static struct job jobs[JOBS];
static char text[TEXT], joined[2 * TEXT];

static void die(const char *what)
{
	perror(what);
	exit(2);
}

static const char *said(struct job *job)
{
	ssize_t len = pread(job->out, text, sizeof text - 1, 0);
	text[len > 0 ? len : 0] = 0;
	return text;
}

static void start(struct job *job)
{
	const char *conf = job->conf[job->at];
	if (job->at) { /* {...} becomes {...,"prevResult":...} */
		snprintf(joined, sizeof joined, "%.*s,\"prevResult\":%s}", (int)strlen(conf) - 1,
			 conf, said(job));
		conf = joined;
		close(job->out);
	}
	int in = memfd_create("in", 0);
	job->out = memfd_create("out", 0);
	if (in < 0 || job->out < 0 || pwrite(in, conf, strlen(conf), 0) < 0)
		die("memfd");
	fcntl(job->out, F_SETFD, FD_CLOEXEC), fcntl(in, F_SETFD, FD_CLOEXEC);
	posix_spawn_file_actions_t files;
	posix_spawn_file_actions_init(&files);
	posix_spawn_file_actions_adddup2(&files, in, 0);
	posix_spawn_file_actions_adddup2(&files, job->out, 1);
	char *argv[] = {job->program[job->at], NULL};
	if ((errno = posix_spawn(&job->pid, argv[0], &files, NULL, argv, job->env)))
		die(argv[0]);
	posix_spawn_file_actions_destroy(&files);
	close(in);
}

static char *next(char **at, char *end)
{
	char *found = *at, *stop = memchr(found, 0, end - found);
	if (!stop)
		fputs("the jobs end in the middle\n", stderr), exit(2);
	*at = stop + 1;
	return found;
}

static int read_jobs(void)
{
	static char all[16 << 20];
	size_t len = fread(all, 1, sizeof all, stdin);
	char *at = all, *end = all + len;
	int count = 0;
	for (; at < end && count < JOBS; count++) {
		struct job *job = &jobs[count];
		int variables = atoi(next(&at, end));
		for (int i = 0; i < variables && i < VARIABLES; i++)
			job->env[i] = next(&at, end);
		job->plugins = atoi(next(&at, end));
		for (int i = 0; i < job->plugins && i < PLUGINS; i++)
			job->program[i] = next(&at, end), job->conf[i] = next(&at, end);
	}
	return count;
}

int main(int argc, char **argv)
{
	int width = argc > 1 ? atoi(argv[1]) : 1, count = read_jobs(), begun = 0, running = 0,
	    status;
	struct timespec before, after;
	clock_gettime(CLOCK_MONOTONIC, &before);
	while (begun < count || running) {
		for (; begun < count && running < width; running++)
			start(&jobs[begun++]);
		pid_t ended = waitpid(-1, &status, 0);
		struct job *job = jobs;
		while (job->pid != ended)
			job++;
		if (status) {
			fprintf(stderr, "%s: %s\n", job->program[job->at], said(job));
			return 1;
		}
		if (++job->at < job->plugins)
			start(job);
		else
			running--;
	}
	clock_gettime(CLOCK_MONOTONIC, &after);
	printf("%lld%c",
	       (after.tv_sec - before.tv_sec) * 1000000000LL + after.tv_nsec - before.tv_nsec, 0);
	for (int i = 0; i < count; i++)
		fputs(said(&jobs[i]), stdout), putchar(0);
	return 0;
}
