"""`--send`: proves an explanation with real packets of one flow, and compares. I/O."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from podwire_base.kernel.frames import checksum
from podwire_base.kernel.ip import Family
from podwire_base.kernel.netns import call_in
from podwire_base.kernel.nft.trace import Traced
from podwire_proxy.model import PROTOCOLS

from .answer import Answer
from .seen import Sight, last_seen
from .steps import Unreachable
from .tracing import Followed, Tracer

if TYPE_CHECKING:
    from .lookup import Question

ANSWER = 1.5  # seconds
SETTLE = 0.02  # seconds, until the last packets are told
MOST_ENDS = 20  # endpoints that are followed
_REFUSED = {errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.ENOPROTOOPT}


class CannotSend(Exception):
    """--send cannot be done. The message says why."""


def attempt(
    src: str, dst: str, port: int, protocol: str, ready: Callable[[int], None] = lambda _: None
) -> tuple[str, str]:
    """Sends one connection, datagram or echo request from the caller's network namespace. Returns (verdict, words).
    ready: called with the source port (0 for ICMP) before anything is sent. Raises CannotSend.

    A connection is at most three SYNs or six packets in ANSWER seconds; anything else is one packet.
    """
    family = socket.AF_INET6 if ":" in dst else socket.AF_INET
    if protocol == "ICMP":
        ready(0)
        return _echo(family, src, dst)
    kind = socket.SOCK_DGRAM if protocol == "UDP" else socket.SOCK_STREAM
    started = time.monotonic()
    try:
        made = socket.socket(family, kind, PROTOCOLS[protocol])
    except OSError as err:
        raise CannotSend(f"--send: this kernel has no {protocol} sockets: {err.strerror}") from err
    with made as sock:
        sock.settimeout(ANSWER)
        try:
            sock.bind((src, 0))
            ready(sock.getsockname()[1])
            sock.connect((dst, port))
            if protocol == "UDP":
                sock.send(b"podwire explain")
                sock.recv(2048)
        except ConnectionRefusedError:
            return "reject", "refused"
        except TimeoutError:
            # A server need not answer a datagram that it does not understand.
            return ("silent" if protocol == "UDP" else "drop"), f"no answer within {ANSWER} s"
        except PermissionError:  # a rule of the sender's own output chain dropped or rejected it
            return "local", "not permitted: a rule at the sender itself stops it"
        except OSError as err:
            return "reject", str(err.strerror)
        word = "answered" if kind == socket.SOCK_DGRAM else "connected"
        return "forward", f"{word} in {(time.monotonic() - started) * 1000:.1f} ms"


def _echo(family: int, src: str, dst: str) -> tuple[str, str]:
    """Sends one ICMP echo request and waits for the reply to this very request."""
    v6 = family == socket.AF_INET6
    ident, started = os.getpid() & 0xFFFF, time.monotonic()
    body = struct.pack(">BBHHH", 128 if v6 else 8, 0, 0, ident, 1) + b"podwire explain!"
    if not v6:
        body = body[:2] + checksum(body) + body[4:]
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP) as sock:
        try:
            sock.bind((src, 0))
            sock.sendto(body, (dst, 0))
            while (rest := started + ANSWER - time.monotonic()) > 0:
                sock.settimeout(rest)
                data = sock.recv(2048)
                data = data if v6 else data[(data[0] & 15) * 4 :]
                kind = data[0]
                if kind == (129 if v6 else 0) and data[4:6] == struct.pack(">H", ident):
                    return "forward", f"answered in {(time.monotonic() - started) * 1000:.1f} ms"
                quoted = data[8:][40 if v6 else 20 :]
                if kind == (1 if v6 else 3) and quoted[4:6] == struct.pack(">H", ident):
                    return "reject", f"refused: ICMP unreachable, code {data[1]}"
        except TimeoutError:
            pass
        except OSError as err:
            return "reject", str(err.strerror)
    return "drop", f"no answer within {ANSWER} s"


def agrees(explained: str, reason: str, sent: str) -> bool:
    """Whether what was sent met the fate that was explained."""
    if explained == "unknown":
        return True
    if sent == "local":
        return explained in ("drop", "reject")
    if sent == "silent":
        return explained in ("forward", "drop", "pass")
    if explained == "pass" and not reason:  # what is outside the cluster may answer, refuse or keep silent
        return True
    return explained == sent or (explained == "pass" and sent == "forward")


def prove(question: Question, answer: Answer) -> None:
    """Sends, and fills in what became of it. Raises CannotSend, Unreachable."""
    if not answer.dst:
        raise CannotSend(f"--send: {answer.destination} has no address: {answer.cause}")
    reach: Any = question.reach
    path = reach.space(answer.node, answer.src) if hasattr(reach, "space") else ""
    elsewhere = question.source.kind != "outside" and hasattr(reach, "send") and reach.is_elsewhere(answer.node)
    if not path and not elsewhere:
        raise CannotSend(
            f"--send: {answer.src} is not an address of the node; SRC must be a pod, `node`, or one of its addresses"
        )
    with contextlib.ExitStack() as stack:
        tracers: list[Tracer] = []

        def ready(sport: int) -> None:
            tracers.extend(stack.enter_context(one) for one in _tracers(question, answer, sport))

        if path:
            verdict, words = call_in(path, lambda: attempt(answer.src, answer.dst, answer.port, answer.protocol, ready))
            time.sleep(SETTLE)
            sights = [Sight(one.node, one.read(), one.links) for one in tracers]
        else:
            sent = reach.send(answer.node, [answer.src, answer.dst, answer.port, answer.protocol])
            verdict, words = str(sent["verdict"]), str(sent["words"])
            links = {int(index): str(name) for index, name in sent["links"].items()}
            sights = [Sight(answer.node, [Traced(*one) for one in sent["told"]], links)]
            answer.doubts.append(f"only node {answer.node}, which sent it, was followed")
    answer.sent, answer.agrees = words, agrees(answer.verdict, answer.reason, verdict)
    if sights:
        answer.last_seen, answer.seen = last_seen(sights, answer.src, {end.src for end in answer.ends if end.src})


def on_node(path: str, here: str, node: str, data: Sequence[Any]) -> dict[str, Any]:
    """The node's half of `--send`. path: the namespace that sends. here: the node's own. data: source, destination,
    port, protocol. Raises CannotSend, OSError.
    """
    src, dst, port, protocol = str(data[0]), str(data[1]), int(data[2]), str(data[3])
    if protocol not in (*PROTOCOLS, "ICMP"):
        raise CannotSend(f"--send: {protocol!r} is no protocol that can be sent")
    family: Family = "ip6" if ":" in dst else "ip"
    with contextlib.ExitStack() as stack:
        tracers: list[Tracer] = []

        def ready(sport: int) -> None:
            flows = [Followed(src, dst, protocol, sport, port), Followed("", src, protocol, 0, sport)]
            tracers.append(stack.enter_context(call_in(here, lambda: Tracer(node, family, flows))))

        verdict, words = call_in(path, lambda: attempt(src, dst, port, protocol, ready))
        time.sleep(SETTLE)
        told = [list(one) for tracer in tracers for one in tracer.read()]
        links = {index: name for tracer in tracers for index, name in tracer.links.items()}
    return {"verdict": verdict, "words": words, "told": told, "links": links}


def _tracers(question: Question, answer: Answer, sport: int) -> Iterator[Tracer]:
    """Yields a tracer for each node on the way, in the order of the way. What cannot be traced is told as a doubt."""
    family: Family = "ip6" if ":" in answer.dst else "ip"
    protocol = answer.protocol
    flows = {answer.node: [
        Followed(answer.src, answer.dst, protocol, sport, answer.port), Followed("", answer.src, protocol, 0, sport),
    ]}  # fmt: skip
    for end in answer.ends[:MOST_ENDS]:
        there = flows.setdefault(end.node or answer.node, [])
        there += [Followed(end.src, end.ip, protocol, 0, end.port), Followed(end.ip, end.src, protocol, end.port)]
    for node, wanted in flows.items():
        try:
            yield question.reach.trace(node, family, wanted)  # type: ignore[attr-defined]  # `space` is of the same reach
        except (Unreachable, OSError) as err:
            answer.doubts.append(f"node {node or 'here'} was not followed: {getattr(err, 'strerror', None) or err}")
