/* podwire-pause: holds a pod's namespaces open and does nothing else.
 *
 * It sleeps until SIGTERM or SIGINT and then exits with 0. Children are reaped at once: as pid 1 of
 * a pid namespace, or as a child subreaper (a process attribute that outlives exec), it inherits
 * every orphan of the pod. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/wait.h>

int main(int argc, char **argv)
{
	if (argc > 1 && strcmp(argv[1], "--version") == 0) {
		puts("podwire-pause 0.2.0");
		return 0;
	}
	/* Blocked signals stay pending, so none is lost between two calls of sigwaitinfo. They must
	 * have a disposition other than "ignore" to become pending: pid 1 ignores SIGTERM by
	 * default, and a parent may have passed SIG_IGN on. */
	static const int watched[] = {SIGTERM, SIGINT, SIGCHLD};
	sigset_t set;
	sigemptyset(&set);
	for (unsigned i = 0; i < sizeof watched / sizeof *watched; i++) {
		sigaddset(&set, watched[i]);
		signal(watched[i], SIG_DFL);
	}
	if (sigprocmask(SIG_BLOCK, &set, NULL) != 0) {
		perror("podwire-pause: sigprocmask");
		return 1;
	}
	for (;;) {
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		int got = sigwaitinfo(&set, NULL);
		if (got == SIGTERM || got == SIGINT)
			return 0;
	}
}
