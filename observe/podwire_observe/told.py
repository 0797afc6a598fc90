"""What network policies dropped, as lines of the role's log. Pure but for the log that it is given."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from podwire_base.kernel.nflog import Logged
from podwire_base.kernel.reasons import Reason

from .names import Names

AGAIN = 60.0  # seconds until the same is told again
MOST = 1000  # different lines that are remembered
EACH_SECOND = 20  # lines
WORDS = {
    Reason.POLICY: "a network policy dropped a packet",
    Reason.STAGED: "a network policy that is not in force would have dropped a packet",
}
_Key = tuple[Reason, str, str, int, int, str]


class Told:
    """Tells each pair of ends, port and rule once a minute, with the number of packets that were not told before."""

    def __init__(self, write: Callable[..., None]) -> None:
        self._write = write
        self._known: OrderedDict[_Key, tuple[float, int]] = OrderedDict()  # -> when it was told, packets since
        self._second, self._lines = 0, 0

    def tell(self, one: Logged, names: Names, now: float) -> None:
        """now: seconds since 1970. A node tells what it dropped, whoever sent it."""
        if one.reason not in WORDS:
            return
        packet = one.packet
        source, target = (names.end(ip, now).words or ip for ip in (packet.src, packet.dst))
        key = one.reason, source, target, packet.protocol, packet.dport, one.words
        at, since = self._known.get(key, (0.0, 0))
        if now < at + AGAIN or not self._room(now):
            self._known[key] = at, since + 1
        else:
            self._known[key] = now, 0
            more = {"packets": since + 1} if since else {}
            service = names.dialled(packet.dst, packet.dport, packet.protocol).words
            named = {"service": service} if service else {}
            port = {"port": packet.dport} if packet.dport else {}
            self._write(
                WORDS[one.reason], rule=one.words, source=source, target=target, **named,
                protocol=packet.named, **port, source_ip=packet.src, target_ip=packet.dst, **more,
            )  # fmt: skip
        self._known.move_to_end(key)
        if len(self._known) > MOST:
            self._known.popitem(last=False)

    def _room(self, now: float) -> bool:
        if int(now) != self._second:
            self._second, self._lines = int(now), 0
        self._lines += 1
        return self._lines <= EACH_SECOND
