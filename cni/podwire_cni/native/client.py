"""client.c in Python, for hosts without a compiler. It has the same protocol, variables, keys and error codes.

The program uses only the standard library, because the runtime starts it with the host's own python3.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import json
import os
import socket
import struct
import sys
import time
from typing import Any, NoReturn

DEFAULT_SOCKET = "/run/podwire/cni.sock"
STANDALONE = "podwire-cni-standalone"
ANSWER_SECONDS = 120
WAIT_SECONDS, WAIT_TURN = 30.0, 0.02  # of ADD and DEL for an agent that is being replaced
READY_SECONDS = 60.0  # STATUS answers well that long after the agent was ready
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


def has_table(name: str) -> bool:
    """Whether nf_tables has the IPv4 table of this name: NFT_MSG_GETTABLE, whose answer is no error."""
    text = name.encode() + b"\0"
    attribute = (struct.pack("=2H", 4 + len(text), 1) + text).ljust((4 + len(text) + 3) & ~3, b"\0")
    body = struct.pack("=2BH", 2, 0, 0) + attribute
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as sock:
        sock.settimeout(1)
        sock.send(struct.pack("=I2H2I", 16 + len(body), 10 << 8 | 1, 1, 0, 0) + body)
        return bool(struct.unpack_from("=I2H", sock.recv(4096))[1] == 10 << 8)


def is_up(link: str) -> bool:
    with socket.socket() as sock:
        answer = fcntl.ioctl(sock, 0x8913, struct.pack("16s24x", link.encode()))  # SIOCGIFFLAGS
        return bool(struct.unpack_from("16xH", answer)[0] & 1)


def stands(path: str) -> bool:
    """Whether the node is as an agent left it that was ready a moment ago."""
    folder = path.rpartition("/")[0]
    try:
        with open(f"{folder}/cni/ready") as file:
            head, at, bridge, conflist = file.read().rstrip("\n").split(" ", 3)
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - float(at.removeprefix("at="))
        fresh = head == "podwire-ready/1" and 0 <= age <= READY_SECONDS
        missing = not_there(conflist.removeprefix("conflist=")) or not_there(f"{folder}/cni/leases")
        return fresh and not missing and is_up(bridge.removeprefix("bridge=")) and has_table("podwire-cni")
    except (OSError, ValueError):
        return False


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
    waits = float(os.environ.get("PODWIRE_CNI_WAIT") or WAIT_SECONDS) if command in ("ADD", "DEL") else 0.0
    end = time.monotonic() + waits
    while True:
        what, again = "does not listen", False
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(ANSWER_SECONDS)
                try:
                    sock.connect(path)
                except OSError as err:
                    if conf.get("standalone") is True:
                        _standalone(str(conf.get("pythonPlugin") or STANDALONE), stdin, version)
                    if command == "DEL" and not_there(os.environ.get("CNI_NETNS", "")):
                        return 0  # as in client.c: the agent releases the leases at its start
                    again = err.errno in (errno.ENOENT, errno.ECONNREFUSED)
                    raise
                # what an ADD did before its agent died, only a DEL can undo
                what, again = "did not answer", command == "DEL"
                status, text = ask(sock, stdin)
                break
        except OSError as err:
            if again and time.monotonic() < end:
                time.sleep(WAIT_TURN)
                continue
            if command == "STATUS" and stands(path):
                return 0
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
