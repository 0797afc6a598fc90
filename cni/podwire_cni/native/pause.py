"""pause.c in Python, for hosts without a compiler. It runs as a program and imports as little as possible."""

import os
import signal


def main() -> int:
    """Sleep until SIGTERM or SIGINT and reap every child; pause.c explains each line."""
    watched = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
    for number in watched:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass  # the usual case: the process has no children
        if signal.sigwait(watched) in (signal.SIGTERM, signal.SIGINT):
            return 0


if __name__ == "__main__":
    raise SystemExit(main())
