"""A wiring agent that kills itself at a chosen step of a call and is restarted at once: `python -m lab.crashagent`.

The file <run_dir>/crash has the number of the step (1, 2 ...) at which the agent kills itself in the next call. The
agent deletes this file after reading it. <run_dir>/steps has the number and the names of the steps of the last complete
call.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from podwire_cni import firewall, kernel, listener
from podwire_cni.agent import WiringConfig, run
from podwire_cni.ipam import store
from podwire_cni.program import BATCH

from .netns import die_with_parent

RUN = Path(sys.argv[1]) if len(sys.argv) > 2 else Path()
target, steps = 0, list[str]()


def step(name: str) -> None:
    """Count one completed step. If it is the chosen step, kill this process."""
    steps.append(name)
    if len(steps) == target:
        os.kill(os.getpid(), signal.SIGKILL)


def after(owner: Any, name: str) -> None:
    """Wrap a function, so that its end counts as a step."""
    work = getattr(owner, name)

    def counted(*args: Any, **more: Any) -> Any:
        done = work(*args, **more)
        step(name)
        return done

    setattr(owner, name, counted)


def one_by_one(send: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function that sends a batch of netlink messages, so that it sends each operation alone."""

    def counted(sock: object, batch: Sequence[object], pod_fd: int | None, watches: Sequence[object] = ()) -> Any:
        for op in batch:
            send(sock, [op], pod_fd)
            step(type(op).__name__)
        return send(sock, (), pod_fd, watches)

    return counted


def batch_by_batch(run: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the function that runs programs of native/attach.c, so that it runs each batch alone. After the chosen step,
    the rest of the program does not run.
    """

    def counted(sock: int, seq: int, node: int, pod: int, program: bytes) -> Any:
        at, ends = 0, list[int]()
        while at < len(program):
            kind, _, size = struct.unpack_from("=3I", program, at)
            at += size
            ends += [at] if kind == BATCH else []
        last = next((end for n, end in enumerate(ends, len(steps) + 1) if n == target), len(program))
        out = run(sock, seq, node, pod, program[:last])
        for _ in ends:
            step("batch")
        return out

    return counted


def arm(answer: Callable[..., Any]) -> Callable[..., Any]:
    def armed(*args: Any) -> Any:
        global target  # noqa: PLW0603 - one call at a time, and the process dies of it
        order = RUN / "crash"
        target = int(order.read_text()) if order.exists() else 0
        order.unlink(missing_ok=True)
        steps.clear()
        reply = answer(*args)
        step("answer")
        (RUN / "steps").write_text(" ".join(steps))
        return reply

    return armed


def main() -> None:
    kernel._send = one_by_one(kernel._send)
    if kernel.ATTACH is not None:
        kernel.ATTACH.run = batch_by_batch(kernel.ATTACH.run)  # type: ignore[method-assign]  # that is the point
    for owner, name in (
        (kernel.Kernel, "_start"),
        (kernel.Kernel, "remove"),
        (store.DirStore, "reserve"),
        (store.DirStore, "wired"),
        (store.DirStore, "release"),
        (os, "rename"),
        (firewall.Firewall, "attach"),
        (firewall.Firewall, "detach"),
        (firewall, "_forget"),
    ):
        after(owner, name)
    listener.Listener._answer = arm(listener.Listener._answer)  # type: ignore[method-assign]  # that is the point
    name, kubeconfig = sys.argv[2:4]
    while True:
        # This process has imported all modules, so a forked agent starts in milliseconds.
        child = os.fork()
        if not child:
            die_with_parent()
            run(WiringConfig(name, kubeconfig, RUN))
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
