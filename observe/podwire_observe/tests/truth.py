"""Connections as they happened, and the messages that a kernel would send about them."""

from __future__ import annotations

from dataclasses import dataclass

from podwire_base.kernel.conntrack.counted import Counted

from ..record import FORWARDED, REFUSED, RESET, UNANSWERED, End, Ends, Service

NS = 1_000_000_000
BEGAN = 1_700_000_000.0  # seconds; when the agent began
CLIENT, SERVER, SERVICE = b"\x0a\xf4\0\x02", b"\x0a\xf4\x01\x03", b"\x0a\x60\0\x0a"
# outcome -> (protocol, status, last state, verdict)
OUTCOMES: dict[str, tuple[int, int, int, str]] = {
    "closed": (6, 0x2A6, 7, FORWARDED),
    "reset": (6, 0x2A6, 8, RESET),
    "refused": (6, 0x388, 8, REFUSED),
    "silent": (6, 0x188, 1, UNANSWERED),
    "answered": (17, 0x18A, 0, FORWARDED),
    "lonely": (17, 0x188, 0, UNANSWERED),
}


@dataclass(frozen=True)
class Connection:
    """start, length: ns since the agent began, and until the end."""

    number: int
    port: int
    start: int
    length: int
    outcome: str
    size: int = 100
    target: int = 0

    @property
    def begin(self) -> int:
        return int(BEGAN) * NS + self.start

    @property
    def counters(self) -> tuple[int, int, int, int]:
        if self.outcome == "refused":
            return 1, 60, 1, 40
        if self.outcome in ("silent", "lonely"):
            return 3, self.size, 0, 0
        return 5, self.size, 4, self.size * 2

    def message(self, what: str, *, times: bool = True) -> Counted:
        protocol, status, state, _ = OUTCOMES[self.outcome]
        over = what == "destroy"
        live = {"closed": 3, "reset": 3, "refused": 1, "silent": 1}.get(self.outcome, 0)
        return Counted(
            what,  # type: ignore[arg-type]  # the words are the literals
            self.number,
            protocol,
            CLIENT,
            self.port,
            SERVICE[:3] + bytes((self.target,)),
            80,
            SERVER,
            8080,
            status if what != "new" else 0x188,
            state if over else live if what == "entry" else min(live, 1),
            *(self.counters if over else (1, 60, 0, 0) if what == "entry" else (-1, -1, -1, -1)),
            (self.begin if times else 0) if what != "new" else 0,
            (self.begin + self.length if times else 0) if over else 0,
            (self.begin + 1000 + (self.length if over else 0) if times else 0) if what != "entry" else 0,
        )

    @property
    def verdict(self) -> str:
        return OUTCOMES[self.outcome][3]


def ends(seen: Counted, _when: float) -> Ends:
    target = seen.destination[3]
    return Ends(
        End("pod", "shop", "web", "node1"),
        End("pod", "shop", f"db-{target}", "node2"),
        Service("shop", f"db-{target}", "80"),
    )
