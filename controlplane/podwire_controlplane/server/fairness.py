"""Fairness between clients: how many requests are served at the same time, whose turn is next, and who is refused.

A server has seats. A request takes a seat while it is served; a watch gives it back when its stream has begun. While
all seats are taken, the requests of each user wait in a queue of their own, and the users take turns. One user has most
of the seats at most, so there is always room for another. A user whose queue is full gets 429 and is told when to come
again. (kube-apiserver: API priority and fairness, with one priority level and a flow for each user.)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, defaultdict, deque
from collections.abc import AsyncIterator

from podwire_base.kube.errors import StatusError

SEATS = 64
MOST_OF_ONE = 48  # seats of one user
QUEUE = 256  # requests of one user that wait
RETRY_AFTER = 1  # seconds


class Fairness:
    """`async with fairness.seat(user):` around the work of a request. Raises a StatusError 429."""

    def __init__(self, seats: int = SEATS, most: int = MOST_OF_ONE, queue: int = QUEUE) -> None:
        self.seats, self.most, self.queue = seats, most, queue
        self.taken: defaultdict[str, int] = defaultdict(int)
        self.refused = 0
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()  # the next user is the first

    @property
    def busy(self) -> int:
        return sum(self.taken.values())

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @contextlib.asynccontextmanager
    async def seat(self, user: str) -> AsyncIterator[Seat]:
        await self._take(user)
        seat = Seat(self, user)
        try:
            yield seat
        finally:
            seat.leave()

    async def _take(self, user: str) -> None:
        if self.busy < self.seats and self.taken[user] < self.most:
            self.taken[user] += 1
            return
        line = self._waiting.setdefault(user, deque())
        if len(line) >= self.queue:
            self.refused += 1
            raise StatusError(
                429,
                "TooManyRequests",
                f"{self.queue} requests of {user!r} wait already, please try again later",
                retry_after=RETRY_AFTER,
            )
        turn = asyncio.get_running_loop().create_future()
        line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(user)  # the seat came in the same moment
            else:
                self._forget(user, turn)
            raise

    def _forget(self, user: str, turn: asyncio.Future[None]) -> None:
        line = self._waiting.get(user)
        if line is not None:
            with contextlib.suppress(ValueError):
                line.remove(turn)
            if not line:
                del self._waiting[user]

    def leave(self, user: str) -> None:
        """Give a seat back, and seat who is next."""
        self.taken[user] -= 1
        if not self.taken[user]:
            del self.taken[user]
        for other in list(self._waiting):
            if self.busy >= self.seats:
                return
            if self.taken.get(other, 0) >= self.most:
                continue
            line = self._waiting[other]
            turn = line.popleft()
            del self._waiting[other]
            if line:
                self._waiting[other] = line  # at the end of the order
            if not turn.done():
                self.taken[other] += 1
                turn.set_result(None)


class Seat:
    """A seat of one request. `leave` gives it back early."""

    def __init__(self, fairness: Fairness, user: str) -> None:
        self._fairness, self._user, self._held = fairness, user, True

    def leave(self) -> None:
        if self._held:
            self._held = False
            self._fairness.leave(self._user)
