"""client.c in Python, for hosts without a compiler. It has the same protocol, variables, keys and error codes.

The program uses only the standard library, because the runtime starts it with the host's own python3.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import struct
import sys
from typing import Any, NoReturn

DEFAULT_SOCKET = "/run/podwire/cni.sock"
STANDALONE = "podwire-cni-standalone"
ANSWER_SECONDS = 120
VERSIONS = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]


def fail(version: str, code: int, msg: str, details: str) -> NoReturn:
    print(json.dumps({"cniVersion": version, "code": code, "msg": msg, "details": details}))
    raise SystemExit(1)


def request(stdin: bytes) -> tuple[bytes, list[int]]:
    """Returns the message of one call, and the file descriptors to send with the message."""
    env = b"".join(k + b"=" + v + b"\0" for k, v in os.environb.items() if k.startswith(b"CNI_"))
    fds, flags, error = [os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)], 0, 0
    if os.environ.get("CNI_NETNS"):
        try:
            fds.append(os.open(os.environ["CNI_NETNS"], os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
            flags = 1
        except OSError as err:
            error = err.errno or 0
    return b"PWC1" + struct.pack("=4I", flags, error, len(env), len(stdin)) + env + stdin, fds


def ask(sock: socket.socket, stdin: bytes) -> tuple[int, bytes]:
    """Send the call to the agent. Returns (exit status, text) of the agent's answer. Raises OSError if the answer is
    incomplete.
    """
    message, fds = request(stdin)
    sent = sock.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
    if sent < len(message):  # sendall(b"") would call send, and the agent may have closed the connection
        sock.sendall(message[sent:])
    with sock.makefile("rb") as answer:
        head = answer.read(8)
        if len(head) < 8:
            raise ConnectionResetError("the connection ended early")
        status, length = struct.unpack("=2I", head)
        text = answer.read(length)
        if len(text) < length:
            raise ConnectionResetError("the connection ended early")
    return status, text


def not_there(path: str) -> bool:
    return not os.access(path, os.F_OK)


def main() -> int:
    if sys.argv[1:2] == ["--install"]:
        os.execvp(STANDALONE, sys.argv)
    conf: dict[str, Any] = {}
    command = os.environ.get("CNI_COMMAND", "")
    if not command:
        fail(
            "1.1.0",
            4,
            "podwire-cni: CNI_COMMAND is not set",
            "a container runtime runs this program with CNI_COMMAND=ADD, DEL, CHECK, GC, STATUS or VERSION",
        )
    stdin = sys.stdin.buffer.read()
    with contextlib.suppress(ValueError, RecursionError):  # the agent reports invalid JSON
        parsed = json.loads(stdin)
        conf = parsed if isinstance(parsed, dict) else {}
    version = str(conf.get("cniVersion") or "1.1.0")
    if command == "VERSION":
        print(json.dumps({"cniVersion": version, "supportedVersions": VERSIONS}))
        return 0
    path = os.environ.get("PODWIRE_CNI_SOCKET") or str(conf.get("socket") or DEFAULT_SOCKET)
    what = "does not listen"
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(ANSWER_SECONDS)
            try:
                sock.connect(path)
            except OSError:
                if conf.get("standalone") is True:
                    _standalone(str(conf.get("pythonPlugin") or STANDALONE), stdin, version)
                if command == "DEL" and not_there(os.environ.get("CNI_NETNS", "")):
                    return 0  # as in client.c: the agent releases the leases at its start
                raise
            what = "did not answer"
            status, text = ask(sock, stdin)
    except OSError as err:
        fail(
            version,
            50 if command == "STATUS" else 11,
            f"podwire-cni: the node's wiring agent {what} at {path}: {err}",
            "start the agent of this node (podwire agent, or podwire wiring), or set PODWIRE_CNI_SOCKET or the key "
            f'"socket" of the network configuration to its socket; then the runtime tries {command} again',
        )
    sys.stdout.buffer.write(text)
    return status


def _standalone(plugin: str, stdin: bytes, version: str) -> NoReturn:
    copy = os.memfd_create("podwire-cni")
    os.write(copy, stdin)
    os.lseek(copy, 0, os.SEEK_SET)
    os.dup2(copy, 0)
    try:
        os.execvp(plugin, [plugin])
    except OSError as err:
        fail(
            version,
            11,
            f"podwire-cni: cannot run the standalone plugin {plugin}: {err}",
            'install podwire, or set "pythonPlugin" in the network configuration to its path',
        )


if __name__ == "__main__":
    raise SystemExit(main())
