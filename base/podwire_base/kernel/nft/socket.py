"""Sends transactions to nf_tables and reads dumps, over one netlink socket. I/O; codec.py encodes and decodes the
messages.
"""

from __future__ import annotations

import contextlib
import errno as errnos
import socket
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

from ..netlink.codec import (
    DUMP,
    ERROR,
    NFPROTO,
    NetlinkError,
    decode_error,
    nfgenmsg,
    parse,
    split,
    text,
    to_int,
    to_text,
)
from ..netlink.socket import MANY_ANSWERS, NETFILTER, ROOM, SO_SNDBUFFORCE, Netlink, open_socket, waiting
from ..netwatch import Step, attach_filter
from . import anytable, codec
from . import objects as o
from .anytable import AnyTable
from .decode import decode_exprs, packets
from .errors import NftError

GROUP_NFTABLES = 7
# The errors of a kernel without nf_tables: nfnetlink does not have the subsystem, or there is no nfnetlink.
NOT_THERE = (errnos.EINVAL, errnos.EOPNOTSUPP, errnos.EPROTONOSUPPORT)
T = TypeVar("T")


def missing(ns_fd: int | None = None) -> bool:
    """Whether this kernel lacks nf_tables. Raises OSError if that cannot be determined."""
    try:
        with Connection(ns_fd) as conn:
            conn.generation()
    except OSError as err:
        if err.errno in NOT_THERE:
            return True
        raise
    return False


class Connection:
    """One socket for commits and dumps. Not thread-safe."""

    def __init__(self, ns_fd: int | None = None) -> None:
        self._ns_fd = ns_fd
        self._netlink = Netlink(NETFILTER, ns_fd, room=MANY_ANSWERS)
        self._sock = self._netlink.sock
        self._sock.bind((0, 0))
        self._buffer = 1 << 17

    @property
    def port_id(self) -> int:
        """Returns the port id of this socket. The kernel's notifications of changes made through this connection have
        this port id.
        """
        return int(self._sock.getsockname()[0])

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def commit(self, transaction: o.Transaction) -> None:
        """Apply the whole transaction. Raises NftError; then nothing is applied. For an empty transaction, nothing is
        sent.
        """
        if not transaction:
            return
        messages, owners = codec.encode(transaction)
        batch = b"".join(messages)
        if len(batch) + 4096 > self._buffer:
            self._buffer = 2 * len(batch)
            self._sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, self._buffer)
        self._sock.send(batch)
        # The kernel processes the batch during the send call, so every answer is in the queue when send returns.
        errors: list[NetlinkError] = []
        acknowledged = False
        while True:
            try:
                data = self._sock.recv(ROOM, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as err:
                if err.errno != errnos.ENOBUFS:  # the queue overflowed with errors; the first errors are enough
                    raise
                continue
            for kind, flags, seq, _, body in split(data):
                if kind == ERROR:
                    error = decode_error(flags, seq, body)
                    errors += [error] if error else []
                    acknowledged = acknowledged or error is None
        if errors:
            first = errors[0]
            raise NftError(first, owners[first.seq] if first.seq < len(owners) else None, len(errors))
        if not acknowledged:
            raise NftError(NetlinkError(errnos.EPROTO, 0, "no acknowledgement"), None, 1)

    def commit_encoded(self, batch: bytes, exchange: Callable[[int, bytes], bytes]) -> bool:
        """Apply a batch that codec.encode made. Returns False if the kernel refused the batch; then nothing is applied,
        and `commit` of the same transaction raises the error. exchange: sends bytes on a socket and returns all
        answers.
        """
        answers = list(split(exchange(self._sock.fileno(), batch)))
        return bool(answers) and all(
            kind == ERROR and decode_error(flags, seq, body) is None for kind, flags, seq, _, body in answers
        )

    def _request(self, kind: int, family: int, body: bytes, flags: int = DUMP) -> Iterator[tuple[int, bytes]]:
        """Send a request. Yields (family, attributes) of each answer. Raises NftError."""
        try:
            for _, payload in self._netlink.request(codec.SUBSYS | kind, nfgenmsg(family) + body, flags):
                yield payload[0], payload[4:]
        except NetlinkError as err:
            raise NftError(err, None, 1) from err

    def generation(self) -> int:
        """Returns the generation of the namespace's ruleset. Every commit of any program increments the generation."""
        answers = list(self._request(codec.GETGEN, 0, b"", 0))
        return to_int(parse(answers[0][1]).get(1))

    def tables(self) -> list[o.Table]:
        return [codec.decode_table(fam, body) for fam, body in self._request(codec.GETTABLE, 0, b"")]

    def chains(self) -> list[o.Chain]:
        """Returns the base chains and regular chains of all tables whose family this package knows."""
        found = []
        for family, body in self._request(codec.GETCHAIN, 0, b""):
            if family in codec.FAMILY_NAMES:
                # literals
                table = o.Table(codec.FAMILY_NAMES[family], to_text(parse(body).get(1)))  # type: ignore[arg-type]
                found.append(codec.decode_chain(table, body)[1])
        return found

    def everything(self, without: Callable[[str, str], bool] = lambda _family, _name: False) -> list[AnyTable]:
        """Returns all tables of all programs, with rules and elements. without: (family, name) of tables whose content
        is left out. The tables are read one after another, so a commit meanwhile may show in some of them. Raises
        NftError.
        """
        found = {}
        for family, body in self._request(codec.GETTABLE, 0, b""):
            table = AnyTable(anytable.NAMES.get(family, str(family)), to_text(parse(body).get(1)))
            found[table.family, table.name] = table
        for number, name in anytable.NAMES.items():
            for _, body in self._request(codec.GETCHAIN, number, b""):
                owner, chain = anytable.chain_of(name, body)
                if (name, owner) in found:
                    found[name, owner].chains[chain.name] = chain
        for (name, owner), table in found.items():
            if without(name, owner):
                continue
            number = next(number for number, known in anytable.NAMES.items() if known == name)
            for _, body in self._request(codec.GETRULE, number, text(1, owner)):
                where, chain_name, rule = anytable.rule_of(body)
                if where == owner and chain_name in table.chains:
                    table.chains[chain_name].rules.append(rule)
            for _, body in self._request(codec.GETSET, number, text(1, owner)):
                where, made = anytable.set_of(body)
                if where == owner:
                    table.sets[made.name] = made
            for made in table.sets.values():
                for _, body in self._request(codec.GETSETELEM, number, text(1, owner) + text(2, made.name)):
                    made.elements.extend(anytable.elements_of(body))
        return list(found.values())

    def chain(self, table: o.Table, name: str) -> o.Chain | None:
        """Returns one chain; None if it does not exist. Raises NftError."""
        try:
            answers = list(
                self._request(codec.GETCHAIN, NFPROTO[table.family], text(1, table.name) + text(3, name), flags=0)
            )
        except NftError as err:
            if err.errno == errnos.ENOENT:
                return None
            raise
        return codec.decode_chain(table, answers[0][1])[1]

    def rules(self, chain: o.Chain) -> list[o.Rule]:
        """Returns the rules of a chain with comments and handles, and without expressions; [] if it does not exist.
        Raises NftError.
        """
        table, found = chain.table, list[o.Rule]()
        for _, body in self._request(codec.GETRULE, NFPROTO[table.family], text(1, table.name) + text(2, chain.name)):
            name, where, comment, handle, _ = codec.decode_rule(body)
            if (name, where) == (table.name, chain.name):
                found.append(o.Rule(chain, (), comment, handle))
        return found

    def counts(self, tables: Collection[o.Table], *, contents: bool = False) -> tuple[tuple[str, int], ...]:
        """Returns what the kernel counts of these tables, which costs little whatever is in them: the uses of each
        table and chain. A chain's uses are its rules, and the rules and elements that lead to it. contents: also how
        many bytes the rules and elements have, for small tables. Raises NftError.
        """
        found = list[tuple[str, int]]()
        for table in tables:
            family, body = NFPROTO[table.family], text(1, table.name)
            there = [
                one for _, one in self._request(codec.GETTABLE, family, b"") if to_text(parse(one).get(1)) == table.name
            ]
            found += [(f"{table.family} {table.name}", to_int(parse(one).get(codec.TABLE_USE))) for one in there]
            for _, one in self._request(codec.GETCHAIN, family, b"") if there else ():
                chain = parse(one)
                if to_text(chain.get(1)) == table.name:
                    found.append((to_text(chain.get(3)), to_int(chain.get(codec.CHAIN_USE))))
            if there and contents:
                found.append(("rules", sum(len(one) for _, one in self._request(codec.GETRULE, family, body))))
                sets = [to_text(parse(one).get(2)) for _, one in self._request(codec.GETSET, family, body)]
                for name in sets:
                    answers = self._request(codec.GETSETELEM, family, body + text(2, name))
                    found.append((name, sum(len(one) for _, one in answers)))
        return tuple(found)

    def elements(self, set_: o.Set) -> dict[bytes, o.Value]:
        """Returns the elements of one set, without expired elements. Raises NftError."""
        found: dict[bytes, o.Value] = {}
        body = text(1, set_.table.name) + text(2, set_.name)
        for _, answer in self._request(codec.GETSETELEM, NFPROTO[set_.table.family], body):
            found.update(codec.decode_elements(answer))
        return found

    def packets(self, table: o.Table, chain: str) -> dict[str, int]:
        """Returns comment -> packet count of the rules of a chain; {} if the chain does not exist. Raises NftError."""
        found: dict[str, int] = {}
        for _, body in self._request(codec.GETRULE, NFPROTO[table.family], text(1, table.name) + text(2, chain)):
            name, where, comment, _, raw = codec.decode_rule(body)
            if (name, where) == (table.name, chain):
                found[comment] = found.get(comment, 0) + packets(raw)
        return found

    def dump(self, table: o.Table, *, elements: bool = True, exprs: bool = False) -> codec.TableDump | None:
        """Returns a consistent copy of the content of `table`; None if the table does not exist.

        The generation counts the commits of all programs, and on a busy node other tables change all the time. So if
        the generation changed during a dump, the dump is still valid if *this* table did not change. exprs: also decode
        the expressions of the rules; the program that wrote the rules does not need them.
        """
        with contextlib.closing(Watcher(table, 0, self._ns_fd)) as watcher:

            def once() -> codec.TableDump | None:
                watcher.changed()
                found = self._dump(table, elements, exprs)
                if watcher.changed():
                    raise InterruptedError
                return found

            return _retry(once)

    def _dump(self, table: o.Table, elements: bool, exprs: bool) -> codec.TableDump | None:
        family = NFPROTO[table.family]
        if table not in [codec.decode_table(fam, body) for fam, body in self._request(codec.GETTABLE, family, b"")]:
            return None
        out = codec.TableDump(table)
        for _, body in self._request(codec.GETCHAIN, family, b""):
            name, chain = codec.decode_chain(table, body)
            if name == table.name:
                out.chains[chain.name] = chain
                out.rules[chain.name] = []
        for _, body in self._request(codec.GETRULE, family, text(1, table.name)):
            name, where, comment, handle, raw = codec.decode_rule(body)
            if name == table.name and where in out.chains:
                out.rules[where].append(o.Rule(out.chains[where], decode_exprs(raw) if exprs else (), comment, handle))
        for _, body in self._request(codec.GETSET, family, text(1, table.name)):
            name, set_ = codec.decode_set(table, body)
            if name == table.name:
                out.sets[set_.name] = set_
        for name, set_ in out.sets.items() if elements else ():
            out.elements[name] = self.elements(set_)
        return out


def _retry(work: Callable[[], T]) -> T:
    for _ in range(20):
        try:
            return work()
        except InterruptedError:
            continue
    raise NftError(NetlinkError(errnos.EBUSY, 0, "the table changes faster than it can be read"), None, 1)


class Watcher:
    """Receives notifications of changes that other programs make to one table. `fileno()` is for a selector or an event
    loop.
    """

    def __init__(self, table: o.Table, ours: int, ns_fd: int | None = None) -> None:
        """ours: the port id of our own Connection; its changes are ignored."""
        self.table, self.ours = table, ours
        self._sock = open_socket(NETFILTER, ns_fd, room=MANY_ANSWERS, groups=[GROUP_NFTABLES])
        self._sock.setblocking(False)

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def changed(self) -> bool:
        """Read all waiting notifications. Returns whether another program changed the table. Returns True also if the
        kernel dropped notifications.
        """
        foreign = False
        for data in waiting(self._sock):
            foreign = (
                foreign
                or data is None
                or any(self._is_foreign(kind, pid, body) for kind, _, _, pid, body in split(data))
            )
        return foreign

    def _is_foreign(self, kind: int, pid: int, body: bytes) -> bool:
        if kind >> 8 != codec.SUBSYS >> 8 or kind & 0xFF == codec.NEWGEN or pid == self.ours or len(body) < 4:
            return False
        # Attribute 1 is the table's name in messages about tables, chains, rules, sets and elements.
        name = to_text(parse(body[4:]).get(1))
        return body[0] == NFPROTO[self.table.family] and name == self.table.name


class Commits:
    """Hears of every commit that other programs make, whatever the table: a hint to look at counts. A filter in the
    kernel drops all that a commit changed, and the commits of our own connection.
    """

    def __init__(self, ours: int = 0, ns_fd: int | None = None) -> None:
        """ours: the port id of our own Connection."""
        self._sock = open_socket(NETFILTER, ns_fd, groups=[GROUP_NFTABLES])
        try:
            attach_filter(self._sock, commits_of_others(ours))
            self._sock.setblocking(False)
            self.changed()
        except BaseException:
            self._sock.close()
            raise

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def changed(self) -> bool:
        """Read all waiting notifications. Returns False: which table was changed is not known."""
        for _ in waiting(self._sock):
            pass
        return False


def commits_of_others(ours: int) -> list[Step]:
    """Returns the filter of Commits: nlmsg_type at 4 is that of a new generation, and nlmsg_pid at 12 is not `ours`.
    BPF reads numbers in network byte order, and netlink has them in that of the machine.
    """
    new = socket.htons(codec.SUBSYS & 0xFF00 | codec.NEWGEN)
    return [
        (0x28, 0, 0, 4),
        (0x15, 0, 3, new),
        (0x20, 0, 0, 12),
        (0x15, 1, 0, socket.htonl(ours)),
        (6, 0, 0, 0xFFFF),
        (6, 0, 0, 0),
    ]


def apply(transaction: o.Transaction, ns_fd: int | None = None) -> None:
    """Commit one transaction in the namespace behind `ns_fd` (None: the caller's own). Raises NftError."""
    with Connection(ns_fd) as conn:
        conn.commit(transaction)
