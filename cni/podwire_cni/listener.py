"""The agent's end of the plugin binary's socket. Each call is one connection, and worker threads serve
the connections.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from podwire_base.role import bugs, logs, unixsocket

from .callers import BrokeOff, Caller, take
from .commands import Plugin, Sandbox
from .conf import version_of
from .errors import CNIError, ErrorCode
from .native import attach
from .netnsid import netns_id, record
from .skel import Reply, failure, run

log = logs.get("wiring")
ANSWER = struct.Struct("=2I")
DRAIN_SECONDS = 2.0  # for the calls that wait when the agent ends
WORKERS = 8  # the kernel changes links for one process at a time, so more threads would only wait


class Listener:
    """Serves `plugin` on the unix socket `path`, from the constructor's call until `close`. Only root may connect.
    no_pods: the network namespaces that are no pod's (id -> path). changed: is called when a call has been
    answered; pods may have come or gone.
    """

    def __init__(
        self,
        path: Path,
        plugin: Plugin,
        node_fd: int,
        no_pods: Mapping[tuple[int, int], str] | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._changed = changed
        self.path, self.plugin, self._node, self._no_pods = path, plugin, netns_id(node_fd), no_pods or {}
        self._sock = unixsocket.listen(path, 1024)
        self._inode = path.stat().st_ino
        self._library = attach.load()
        if problem := attach.library().problem:
            log.warn("pods are attached step by step, slower", reason=problem)
        # Each worker accepts its own connections, so no call moves from one thread to another. The kernel wakes one
        # worker for each connection.
        self._workers = [threading.Thread(target=self._work, name=f"cni-{i}", daemon=True) for i in range(WORKERS)]
        for worker in self._workers:
            worker.start()

    def close(self) -> None:
        """Stop accepting calls, and return when the running calls have ended."""
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_ino == self._inode:  # a new agent may have put its own socket there
                self.path.unlink()
        # calls that wait in the queue would break off, and a runtime would see a pod's start fail
        end = time.monotonic() + DRAIN_SECONDS
        while select.select([self._sock], [], [], 0)[0] and time.monotonic() < end:
            time.sleep(0.001)
        self._sock.shutdown(socket.SHUT_RDWR)
        for worker in self._workers:
            worker.join()
        self._sock.close()

    def _work(self) -> None:
        while True:
            try:
                caller = take(self._sock, self._library)
            except BrokeOff as err:
                log.warn("a call broke off", error=str(err))
            except OSError as err:
                if err.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ECONNABORTED, errno.EINTR):
                    return
                log.error("a call cannot be taken", error=str(err))
                time.sleep(0.1)
            else:
                self._serve(caller)

    def knows(self, no_pods: Mapping[tuple[int, int], str]) -> None:
        """Replace the network namespaces that are no pod's: there are more nodes now, or fewer."""
        self._no_pods = no_pods

    def _serve(self, caller: Caller) -> None:
        began = time.monotonic()
        try:
            reply = self._answer(caller)
        except Exception as err:  # the worker must continue, and the log must have the cause
            bugs.report(log, "a call failed", err)
            caller.close()
            return
        try:
            caller.answer(ANSWER.pack(reply.status, len(reply.text)) + reply.text)
        except OSError as err:
            log.warn("a call broke off", error=str(err) or type(err).__name__)
        else:
            _log(reply, time.monotonic() - began)
        self._changed()

    def _answer(self, caller: Caller) -> Reply:
        request = caller.request
        if caller.node != self._node:
            return failure(
                CNIError(
                    ErrorCode.INVALID_CONFIG,
                    f"the agent at {self.path} serves another network namespace than the one in which the plugin ran",
                    'run the plugin in the node\'s network namespace, or set "socket" to the socket of this node',
                ),
                version_of(request.stdin),
            )
        if caller.pod is not None:
            ours, path = caller.pod_id == self._node, request.env.get("CNI_NETNS", "")
            netns = record(path, caller.pod_id) if request.env.get("CNI_COMMAND") == "ADD" else ""
            no_pod = self._no_pods.get(caller.pod_id, "") if caller.pod_id else ""
            sandbox = Sandbox(caller.pod, "", caller.pod_is_netns, ours, caller.gone, netns, no_pod)
        else:
            sandbox = Sandbox(None, os.strerror(request.error) if request.error else "CNI_NETNS is not set")
        return run(request.env, request.stdin, sandbox, lambda _: self.plugin)


def _log(reply: Reply, seconds: float) -> None:
    call = reply.call
    about = (
        {"container": call.attachment.container_id, "ifname": call.attachment.ifname, "pod": call.pod} if call else {}
    )
    about = {key: value for key, value in about.items() if value}
    verb = call.command.lower() if call else "call"
    if reply.error and reply.error.code == ErrorCode.BUG:
        bugs.report(log, verb, reply.error.__cause__ or reply.error, **about)
        return
    if reply.error:
        log.warn(f"{verb} refused", **about, code=int(reply.error.code), error=reply.error.msg)
        return
    if reply.ignored:
        log.warn("del in spite of its configuration", **about, error=reply.ignored.msg)
    if verb == "add":
        about["addresses"] = ",".join(ip["address"].split("/")[0] for ip in json.loads(reply.text).get("ips", ()))
    write = log.info if verb in ("add", "del", "gc") else log.debug
    write(verb, **about, took_ms=seconds * 1000)
