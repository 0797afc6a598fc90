"""How wiring asks the policy role to judge a pod before its ADD returns: one line of JSON over a unix socket, and "ok"
back. Pure; asking.py asks.

Without the role there is no socket, and nothing is asked. Where the role has ended, its socket refuses: the kernel
keeps the rules, which drop what comes from or goes to a pod that nobody has judged.
"""

from __future__ import annotations

import json
from typing import NamedTuple

SOCKET = "policy.sock"
WAIT = 1.0  # seconds, for which an ADD waits; after that the pod is isolated until it is judged


class Asked(NamedTuple):
    """verb: ADD or DEL. pod: "namespace/name", "" for a container that is no pod's. uid: "" if the runtime does not
    say it.
    """

    verb: str
    container: str
    pod: str
    uid: str
    ips: tuple[str, ...] = ()

    @property
    def namespace(self) -> str:
        return self.pod.partition("/")[0]

    def line(self) -> bytes:
        return json.dumps(self._asdict()).encode() + b"\n"


def read(line: bytes) -> Asked:
    """Returns the question in a line. Raises ValueError."""
    try:
        found = json.loads(line)
        ips = tuple(str(ip) for ip in found["ips"])
        verb, container, pod, uid = (str(found[name]) for name in ("verb", "container", "pod", "uid"))
        return Asked(verb, container, pod, uid, ips)
    except (KeyError, TypeError) as err:
        raise ValueError(f"no question: {line[:80]!r}") from err
