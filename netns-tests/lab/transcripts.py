"""Transcripts: commands with what they must print, as a text file that reads like a terminal.

    # A comment. The first one is the title.
    $ kubectl get pods                      a command for bash; it must end with status 0
    ^web-0 +1/1                             each line that follows is a regular expression that its output has
    !Error                                  ... or, after an exclamation mark, has not
    $ kubectl get pods nobody [1]           it must end with status 1
    ~ $ kubectl get endpoints web           repeated until it does what stands here, or the time is over
    1.32+ $ kubectl get x --subresource=y   only for this version and later ones (1.32-: only for earlier ones)
    > kind: Pod                             lines for the standard input of the command above

Output is standard output and standard error together, in the order in which they came.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .patience import patient

_COMMAND = re.compile(
    r"^(?P<retry>~ )?(?:(?P<version>\d+\.\d+)(?P<side>[+-]) )?\$ (?P<command>.*?)(?: \[(?P<status>\d+)\])?$"
)
_SECONDS = 60.0  # for a command, and for what is repeated


class Differs(AssertionError):
    """A command did something else than its transcript says. The message has both."""


@dataclass(slots=True)
class Step:
    """line: number in its file, from 1. since, before: versions as (major, minor), () for all."""

    line: int
    command: str
    status: int = 0
    retry: bool = False
    since: tuple[int, ...] = ()
    before: tuple[int, ...] = ()
    wanted: list[str] = field(default_factory=list)
    unwanted: list[str] = field(default_factory=list)
    stdin: list[str] = field(default_factory=list)

    def meant_for(self, version: tuple[int, ...]) -> bool:
        return version >= self.since and (not self.before or version < self.before)

    def problem(self, status: int, output: str) -> str:
        """Return how the outcome of a command differs, "" where it does not."""
        if status != self.status:
            return f"status {status} and not {self.status}"
        for pattern in self.wanted:
            if not re.search(pattern, output, re.MULTILINE):
                return f"nothing is like {pattern!r}"
        for pattern in self.unwanted:
            if re.search(pattern, output, re.MULTILINE):
                return f"something is like {pattern!r}"
        return ""


def release(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def parse(text: str) -> list[Step]:
    """Return the commands of a transcript. Raises ValueError with the number of a line that is none."""
    steps: list[Step] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if found := _COMMAND.match(line):
            step = Step(number, found["command"], int(found["status"] or 0), bool(found["retry"]))
            if found["version"]:
                bound = release(found["version"])
                step.since, step.before = (bound, ()) if found["side"] == "+" else ((), bound)
            steps.append(step)
            continue
        if not steps:
            raise ValueError(f"line {number} expects something before the first command: {line}")
        if line.startswith("> ") or line == ">":
            steps[-1].stdin.append(line[2:])
        elif line.startswith("!"):
            steps[-1].unwanted.append(line[1:])
        else:
            steps[-1].wanted.append(line)
    return steps


def play(steps: Iterable[Step], version: str, cwd: Path, environment: Mapping[str, str]) -> int:
    """Run the commands in their order; return how many. Raises Differs at the first that does something else."""
    ran = 0
    for step in steps:
        if not step.meant_for(release(version)):
            continue
        ran += 1
        end = time.monotonic() + patient(_SECONDS if step.retry else 0)
        while problem := _run(step, cwd, environment):
            if time.monotonic() >= end:
                raise Differs(problem)
            time.sleep(0.2)
    return ran


def _run(step: Step, cwd: Path, environment: Mapping[str, str]) -> str:
    """Return what differs, with the command and its output."""
    try:
        done = subprocess.run(
            ["bash", "-c", step.command],
            input="".join(f"{line}\n" for line in step.stdin),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            cwd=cwd,
            env=dict(environment),
            timeout=patient(_SECONDS),
        )
    except subprocess.TimeoutExpired as err:
        return f"line {step.line}: $ {step.command}\nno end after {err.timeout:.0f} s: {err.output!r}"
    problem = step.problem(done.returncode, done.stdout)
    return f"line {step.line}: $ {step.command}\n{problem}\n{done.stdout[-3000:]}" if problem else ""
