"""Runs a command in a container with a terminal of its own, as `kubectl exec -t` does. I/O.

The command must lead a session inside the container's PID namespace: with this machine's terminal a shell there sees a
process group of number 0, and ends with "Cannot set tty process group".
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import termios
import tty
from collections.abc import Mapping, Sequence

CHUNK = 4096


def run(argv: Sequence[str], env: Mapping[str, str]) -> int:
    """Run `argv`, which makes its standard input its terminal, and copy between that terminal and this process's one
    until it ends. Returns its exit status.
    """
    ours, its = os.openpty()
    _same_size(ours)
    child = subprocess.Popen(argv, env=env, stdin=its, stdout=its, stderr=its, start_new_session=True)
    os.close(its)
    before = termios.tcgetattr(0)
    signal.signal(signal.SIGWINCH, lambda *_: _same_size(ours))
    try:
        tty.setraw(0)
        _copy(ours)
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        os.close(ours)  # SIGHUP for who still has the terminal
    return child.wait()


def _same_size(terminal: int) -> None:
    with contextlib.suppress(OSError, termios.error):
        termios.tcsetwinsize(terminal, termios.tcgetwinsize(0))


def _copy(terminal: int) -> None:
    """Copy until the command and all that it started have closed the terminal."""
    listening = [0, terminal]
    while True:
        ready = select.select(listening, [], [])[0]
        if terminal in ready:
            try:
                told = os.read(terminal, CHUNK)
            except OSError:  # EIO: nobody has it open any more
                return
            sys.stdout.buffer.write(told)
            sys.stdout.buffer.flush()
        if 0 in ready:
            if typed := os.read(0, CHUNK):
                os.write(terminal, typed)
            else:
                listening.remove(0)
