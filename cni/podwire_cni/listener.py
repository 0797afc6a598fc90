"""The agent's end of the plugin binary's socket: one connection a call, served by worker threads.

The protocol is described at the top of native/client.c.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import threading
import time
from pathlib import Path

from podwire_controlplane.client import logs

from .commands import Plugin, Sandbox
from .conf import version_of
from .errors import CNIError, Code
from .kernel import is_netns, netns_id
from .skel import Reply, failure, run

log = logs.get("wiring")
HEAD = struct.Struct("=4s4I")
ANSWER = struct.Struct("=2I")
POD_NETNS = 1
MAX_INPUT = 8 << 20
_READ_LIMIT = struct.pack("ll", 10, 0)  # struct timeval: how long a caller may take to say what it wants
WORKERS = 8  # the kernel lets one change links at a time; more only wait for it, and for each other


class Listener:
    """Serves `plugin` on the unix socket `path` from construction until `close`. Only root may connect."""

    def __init__(self, path: Path, plugin: Plugin, node_fd: int) -> None:
        self.path, self.plugin, self._node = path, plugin, netns_id(node_fd)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Bound beside and renamed into place: a plugin finds no socket that refuses it, and a stale one is no obstacle.
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        self._sock.bind(str(fresh))
        fresh.chmod(0o600)
        self._sock.listen(1024)
        fresh.rename(path)
        self._inode = path.stat().st_ino
        # Each worker accepts for itself: a call is not handed from thread to thread. The kernel wakes one of them.
        self._workers = [threading.Thread(target=self._work, name=f"cni-{i}", daemon=True) for i in range(WORKERS)]
        for worker in self._workers:
            worker.start()

    def close(self) -> None:
        """Take no more calls, end those that run, then go."""
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_ino == self._inode:  # a successor may have put its own there
                self.path.unlink()
        self._sock.shutdown(socket.SHUT_RDWR)
        for worker in self._workers:
            worker.join()
        self._sock.close()

    def _work(self) -> None:
        while True:
            try:
                connection, _ = self._sock.accept()
            except OSError as err:
                if err.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ECONNABORTED, errno.EINTR):
                    log.error("a call cannot be taken", error=str(err))
                    time.sleep(0.1)
                    continue
                return
            self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        began, fds = time.monotonic(), list[int]()
        try:
            with connection:
                for way in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                    connection.setsockopt(socket.SOL_SOCKET, way, _READ_LIMIT)
                reply = self._answer(connection, fds)
                connection.sendall(ANSWER.pack(reply.status, len(reply.text)) + reply.text)
        except (OSError, ValueError) as err:
            log.warn("a call broke off", error=str(err) or type(err).__name__)
        except Exception as err:  # a worker must live on, and the cause must be known
            log.error("a call failed", error=repr(err))
        else:
            _log(reply, time.monotonic() - began)
        finally:
            for fd in fds:
                os.close(fd)

    def _answer(self, connection: socket.socket, fds: list[int]) -> Reply:
        env, stdin, flags, error = _receive(connection, fds)
        if not fds or netns_id(fds[0]) != self._node:
            return failure(CNIError(
                Code.INVALID_CONFIG,
                f"the agent at {self.path} serves another network namespace than the one the plugin was run in",
                "run the plugin in the node's network namespace, or set \"socket\" to the socket of this node"),
                version_of(stdin))
        if flags & POD_NETNS and len(fds) > 1:
            sandbox = Sandbox(fds[1], "", is_netns(fds[1]), netns_id(fds[1]) == self._node, lambda: _gone(connection))
        else:
            sandbox = Sandbox(None, os.strerror(error) if error else "CNI_NETNS is not set")
        return run(env, stdin, sandbox, lambda _: self.plugin)


def _gone(connection: socket.socket) -> bool:
    """Whether the plugin process at the other end has ended: it says nothing more, but only its end closes the connection."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _receive(connection: socket.socket, fds: list[int]) -> tuple[dict[str, str], bytes, int, int]:
    """(variables, stdin, flags, errno of the pod's namespace); descriptors go to `fds`. Raises ValueError, OSError."""
    data, received, _, _ = socket.recv_fds(connection, 65536, 4)
    fds += received
    buffer = bytearray(data)
    _fill(connection, buffer, HEAD.size)
    magic, flags, error, env_len, stdin_len = HEAD.unpack_from(buffer)
    if magic != b"PWC1" or env_len + stdin_len > MAX_INPUT:
        raise ValueError("not a request of podwire-cni, or one of another version")
    _fill(connection, buffer, HEAD.size + env_len + stdin_len)
    env = {}
    for entry in bytes(buffer[HEAD.size:HEAD.size + env_len]).split(b"\0"):
        key, equals, value = entry.partition(b"=")
        if equals:
            env[key.decode(errors="replace")] = value.decode(errors="replace")
    return env, bytes(buffer[HEAD.size + env_len:]), flags, error


def _fill(connection: socket.socket, buffer: bytearray, size: int) -> None:
    while len(buffer) < size:
        more = connection.recv(size - len(buffer))
        if not more:
            raise ConnectionResetError("the caller went away")
        buffer += more


def _log(reply: Reply, seconds: float) -> None:
    call = reply.call
    about = {"container": call.attachment.container_id, "ifname": call.attachment.ifname, "pod": call.pod} if call else {}
    about = {key: value for key, value in about.items() if value}
    verb = call.command.lower() if call else "call"
    if reply.error:
        log.warn(f"{verb} refused", **about, code=int(reply.error.code), error=reply.error.msg)
        return
    if verb == "add":
        about["addresses"] = ",".join(ip["address"].split("/")[0] for ip in json.loads(reply.text).get("ips", ()))
    write = log.info if verb in ("add", "del", "gc") else log.debug
    write(verb, **about, took_ms=seconds * 1000)
