"""Applies ops to the kernel. It is the only module that changes a pod's links.

A worker thread enters the pod's namespace only to open a netlink socket, and returns at once, because a socket stays in
the namespace in which it was opened. The module starts no process. If the kernel refuses a step, the module undoes the
completed steps and then raises the error.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import NoReturn

from podwire_base.kernel.ip import IPAddress
from podwire_base.kernel.netlink import rtnetlink as nl
from podwire_base.kernel.netlink.codec import NetlinkError
from podwire_base.kernel.netlink.socket import RouteSocket
from podwire_base.kernel.netns import setns
from podwire_base.role import logs

from . import announce
from .encode import encode, removal
from .errors import CNIError, ErrorCode
from .native import attach
from .netnsid import is_netns, netns_id, netns_id_of, own_netns
from .ops import AddRoute, Announce, CreateVeth, DeleteLink, EnableIPv6, JoinBridge, Op, undo, with_ipv6
from .plan import LinkSeen, Seen, default_route, host_veth
from .prepared import PodPlan
from .program import batches, peers, watched
from .types import PORT_GROUP

log = logs.get("wiring")
READY_SECONDS = 2.0
_GONE = (errno.ENODEV, errno.ENOENT, errno.ESRCH)
ATTACH = attach.load()  # None if it is not compiled; then Python sends the steps one by one


class Kernel:
    """Applies ops on one node. The node is the network namespace of the thread that calls the constructor. Methods are
    thread-safe.
    """

    def __init__(self) -> None:
        self.node_fd = own_netns()
        # RTM_DELLINK returns 15 ms after the link is deleted (the kernel waits for its readers). Other calls must not
        # wait for that, so threads of their own send it.
        self._reapers: Executor = ThreadPoolExecutor(16, thread_name_prefix="dellink")
        self._idle: list[RouteSocket] = []

    def close(self) -> None:
        self._reapers.shutdown(wait=True)
        for sock in self._idle:
            sock.close()
        os.close(self.node_fd)

    @contextlib.contextmanager
    def _node(self) -> Iterator[RouteSocket]:
        """Yields an rtnetlink socket of the node's namespace for exclusive use. It reuses an idle socket."""
        try:
            sock = self._idle.pop()
        except IndexError:
            sock = RouteSocket()
        try:
            yield sock
        except BaseException:
            sock.close()  # a late answer may still arrive on this socket
            raise
        self._idle.append(sock)

    @contextlib.contextmanager
    def inside(self, fd: int) -> Iterator[None]:
        """A context manager that moves the calling thread into the network namespace behind `fd`, and back at
        the end.
        """
        setns(fd)
        try:
            yield
        finally:
            self._return()

    def _return(self) -> None:
        try:
            setns(self.node_fd)
        except OSError:
            self._lost()

    def _lost(self) -> NoReturn:
        """End the process, because this thread cannot return to the node's namespace. It would attach the next pod from
        inside this pod's namespace.
        """
        log.error("cannot return to the node's network namespace, exiting")
        os._exit(70)

    def _open(self, pod_fd: int) -> RouteSocket:
        setns(pod_fd)
        try:
            return RouteSocket()
        finally:
            self._return()

    def apply(self, ops: Sequence[Op], pod_fd: int | None = None) -> None:
        """Apply all of `ops` or none, and wait until the pod's links carry packets. Raises CNIError; its text names the
        refused step.

        pod_fd: a descriptor of the pod's namespace; None if no op is for the pod.
        """
        done, late = list[Op](), list[str]()
        with contextlib.ExitStack() as stack:
            links = {"node": _Links(stack.enter_context(self._node()))}
            if pod_fd is not None:
                links["pod"] = _Links(stack.enter_context(self._open(pod_fd)))
            try:
                for place, created, batch in batches(ops):
                    # If the kernel refuses to create a link, the existing link belongs to another pod, so do not undo
                    # it. Any other batch may be partly applied.
                    done += [] if created else batch
                    late += _send(links[place], batch, pod_fd, watched(batch))
                    done += batch if created else []
                    for op in ops if created else ():
                        if isinstance(op, EnableIPv6) and pod_fd is not None:
                            with self.inside(pod_fd):
                                Path(f"/proc/sys/net/ipv6/conf/{op.link}/disable_ipv6").write_text("0")
                _await(links["node"], late)
                _await(links["pod" if pod_fd is not None else "node"], peers(ops))
                for op in ops:
                    if isinstance(op, JoinBridge):
                        _no_routers(op.link)
                        _no_ipv6_address(op.link)
                    if isinstance(op, Announce) and pod_fd is not None:
                        with self.inside(pod_fd):
                            announce.send(op)
            except BaseException:
                self._undo(done)
                raise

    def attach_pod(self, pod: PodPlan, pod_fd: int) -> None:
        """Apply the plan of one pod, as a prepared program if possible. Raises CNIError or OSError."""
        try:
            self._wire(pod, pod_fd)
        except CNIError as err:
            # Docker disables IPv6 in its sandboxes, so a pod with an IPv6 address needs it enabled first.
            refused = isinstance(err.__cause__, NetlinkError) and err.__cause__.errno == errno.EACCES
            if not refused or all(address.version == 4 for address, _ in pod.addresses):
                raise
            self.apply(with_ipv6(pod.plan.ops), pod_fd)

    def _wire(self, pod: PodPlan, pod_fd: int) -> None:
        library, program = ATTACH, pod.program(pod_fd)
        if library is None or program is None:
            self.apply(pod.plan.ops, pod_fd)
            return
        with self._node() as sock:
            out = library.run(sock.sock.fileno(), sock.take(program[1]), self.node_fd, pod_fd, program[0])
        if out is not None:
            self._unfinished(out, pod.plan.ops, pod_fd)
        _no_routers(host_veth(pod.call.attachment))

    def _unfinished(self, out: attach.AttachResult, ops: Sequence[Op], pod_fd: int) -> None:
        """Handle an incomplete result. If the kernel refused the program, undo it and raise the error. If some links
        carry no packets yet, wait for them.
        """
        steps = list(batches(ops))
        if out.status == attach.LOST:
            self._lost()
        try:
            if out.status == attach.REFUSED:
                why = NetlinkError(out.error, out.message, out.extack)
                raise refusal(_culprit(steps, out), why) from why
            if out.status == attach.FAILED:
                raise OSError(out.error, os.strerror(out.error))
            with self._node() as sock, self._open(pod_fd) as pod:
                _await(_Links(sock), watched(ops))
                _await(_Links(pod), peers(ops))
        except BaseException:
            last = len(steps) if out.status == attach.DONE else out.batch + 1
            self._undo(
                [
                    op
                    for n, (_, created, batch) in enumerate(steps[:last])
                    for op in batch
                    if not created or n + 1 < last or out.status == attach.DONE
                ]
            )
            raise

    def _undo(self, done: Sequence[Op]) -> None:
        """Undo completed steps. Errors are ignored: the caller raises the original error, and a DEL or the next start
        removes the rest.
        """
        for op in undo(tuple(done)):
            try:
                self.remove([op])
            except OSError as err:
                log.error("undo failed", step=op, error=str(err))

    def remove(self, ops: Sequence[Op], meanwhile: Callable[[], None] | None = None) -> None:
        """Apply deletions in the node's namespace. A missing link is not an error. Raises OSError.

        The method returns when the kernel no longer lists the links. Both ends of each veth are then down, and the
        remaining 15 ms of the kernel's work affect no caller. meanwhile: a function to call while the kernel works.
        """
        with self._node() as sock:
            jobs = self._start(ops, _Links(sock))
            if meanwhile:
                meanwhile()
            pause = 0.00005
            while jobs:
                for (name, index), job in list(jobs.items()):
                    if job.done():
                        job.result()
                        del jobs[name, index]
                    elif sock.index(name) != index:
                        job.add_done_callback(_report)
                        del jobs[name, index]
                if jobs:
                    time.sleep(pause)
                    pause = min(2 * pause, 0.001)

    def _start(self, ops: Sequence[Op], links: _Links) -> dict[tuple[str, int], Future[None]]:
        """Start the deletions. Returns (name, index) of each link -> the future of the call that deletes the link. The
        other deletions are sent first, in the same call as a link.
        """
        jobs, links_last = dict[tuple[str, int], Future[None]](), sorted(ops, key=lambda op: isinstance(op, DeleteLink))
        batch = list[bytes]()
        for op in links_last:
            index = links[op.link] if not isinstance(op, CreateVeth) else 0
            message = removal(op, index)
            if index and isinstance(op, DeleteLink):
                jobs[op.link, index] = self._reapers.submit(self._delete, [*batch, message])
                batch = []
            elif index:
                batch.append(message)
        if batch:
            self._delete(batch)
        return jobs

    def _delete(self, batch: Sequence[bytes]) -> None:
        with self._node() as sock:
            sock.send(batch, fine=_GONE)

    def links(self) -> dict[str, tuple[int, int]]:
        """Returns name -> (index, index of the link's master or 0) for every link of the node. If an existing link were
        missing here, its pod would lose its lease. So an inconsistent dump is repeated, and a link counts as present if
        any of the dumps has it.
        """
        found: dict[str, tuple[int, int]] = {}

        with RouteSocket() as sock:
            for body in sock.everything(nl.GETLINK, nl.all_links()):
                name, index, master = nl.link_of(body)
                found[name] = (index, master)
        return found

    def down(self) -> set[str]:
        """Returns the links of the node that are set down."""
        with RouteSocket() as sock:
            bodies = list(sock.everything(nl.GETLINK, nl.all_links()))
        return {nl.link_of(body)[0] for body in bodies if not nl.is_set_up(body)}

    def lives(self, recorded: str) -> bool | None:
        """Returns whether the recorded file (see `record`) still is the recorded namespace; None if there is no
        record.
        """
        ident, _, path = recorded.partition(" ")
        try:
            return ":".join(map(str, netns_id_of(path))) == ident if path else None
        except (OSError, ValueError):
            return False

    @contextlib.contextmanager
    def namespace(self, recorded: str) -> Iterator[int]:
        """Yields a descriptor of the recorded namespace. Raises OSError if the recorded file is another one now."""
        ident, _, path = recorded.partition(" ")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if ":".join(map(str, netns_id(fd))) != ident or not is_netns(fd):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
            yield fd
        finally:
            os.close(fd)

    def unmarked(self) -> frozenset[str]:
        """Returns the links of the node that lack the link group or the flag of a pod's port."""
        with RouteSocket() as sock:
            found = list(sock.everything(nl.GETLINK, nl.all_links()))
        return frozenset(nl.link_of(body)[0] for body in found if not nl.is_marked(body, PORT_GROUP))

    def holder(self, address: IPAddress) -> str:
        """Returns the MAC of the pod on this node that has the address; "" if no pod has the address. The neighbour
        entry gives the MAC. But neighbour entries stay when a pod ends, so the MAC must also have a forwarding entry at
        a bridge port, which vanishes with the port.
        """
        import socket

        from pyroute2 import IPRoute

        with IPRoute() as ipr:
            macs = {
                n.get("NDA_LLADDR")
                for n in ipr.get_neighbours(family=nl.family(address))
                if n.get("NDA_DST") == str(address) and n["state"] & nl.NUD_PERMANENT
            }
            return next(
                (
                    str(n.get("NDA_LLADDR"))
                    for n in ipr.get_neighbours(family=socket.AF_BRIDGE)
                    if n.get("NDA_LLADDR") in macs and n["state"] & nl.NUD_NOARP and n.get("NDA_MASTER")
                ),
                "",
            )

    def observe(self, eth: str, host: str, pod_fd: int) -> Seen:
        """Returns the kernel's state of one attachment. eth: the name of the pod's interface. host: the name of the
        node's end of the veth.
        """
        from pyroute2 import IPRoute

        with IPRoute() as node:
            host_link, rates = _look(node, host), _rates(node, {host, "ifb" + host[4:]})
        with self.inside(pod_fd), IPRoute() as pod:
            link = _look(pod, eth)
            if link is None:
                return Seen(None, host_link, rates=rates)
            index = pod.link_lookup(ifname=eth)[0]
            addresses = frozenset(
                ip_interface(f"{a.get('IFA_ADDRESS')}/{a['prefixlen']}") for a in pod.get_addr(index=index)
            )
            all_routes = pod.get_routes()
            routes = frozenset(_route(r) for r in all_routes if r.get("RTA_OIF") == index)
            elsewhere = frozenset(_route(r)[0] for r in all_routes if r.get("RTA_OIF") != index)
        return Seen(link, host_link, addresses, routes, rates, elsewhere)


def _no_routers(link: str) -> None:
    """Set accept_ra of a port to 0. It uses plain system calls, because a pod waits for it."""
    try:
        fd = os.open(f"/proc/sys/net/ipv6/conf/{link}/accept_ra", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # the kernel has no IPv6, or the link is gone
    try:
        os.write(fd, b"0")
    finally:
        os.close(fd)


def _no_ipv6_address(link: str) -> None:
    """Remove the link-local address that a port of an older version has. (For new ports see ops.SetUp.) Packets to a
    port still pass the rules that count them, so IPv6 stays enabled.
    """
    conf = Path("/proc/sys/net/ipv6/conf") / link
    for key, value in (("addr_gen_mode", "1"), ("disable_ipv6", "1"), ("disable_ipv6", "0")):
        with contextlib.suppress(FileNotFoundError):
            (conf / key).write_text(value)


class _Links(dict[str, int]):
    """Maps the name of a link to its index, 0 for a missing link. Each name is looked up in the kernel once."""

    def __init__(self, sock: RouteSocket) -> None:
        super().__init__(lo=1)
        self.sock = sock

    def __missing__(self, name: str) -> int:
        index = self.sock.index(name)
        if index:
            self[name] = index
        return index


def _send(links: _Links, batch: Sequence[Op], pod_fd: int | None, watches: Sequence[str] = ()) -> list[str]:
    """Send one batch. Returns the links of `watches` that carry no packets yet at the end of the batch."""
    parts = [encode(op, links, -1 if pod_fd is None else pod_fd) for op in batch]
    messages, seen = [*itertools.chain(*parts), *(nl.get_link(links[name]) for name in watches)], list[bytes]()

    def step(position: int) -> Op | str:
        return [*(op for op, part in zip(batch, parts, strict=True) for _ in part), *watches][position]

    try:
        # A second interface must not replace the default route of the first interface. Other plugins do the same.
        links.sock.send(messages, lambda _, body: seen.append(body), present=lambda i: isinstance(step(i), AddRoute))
    except NetlinkError as err:
        raise refusal(step(err.seq), err) from err
    return [name for name, body in zip(watches, seen, strict=True) if not nl.carries(body)]


def _culprit(steps: Sequence[tuple[object, bool, list[Op]]], out: attach.AttachResult) -> Op | str:
    """Returns the step that the refused message belongs to."""
    batch = steps[out.batch][2] if out.batch < len(steps) else []
    messages = [op for op in batch for _ in encode(op, defaultdict(int), 0)]
    return messages[out.message] if out.message < len(messages) else "check the links"


def refusal(op: Op | str, err: NetlinkError) -> CNIError:
    """Returns the kernel's refusal of one step as a CNI error."""
    if isinstance(op, CreateVeth) and err.errno == errno.EEXIST:
        return CNIError(
            ErrorCode.INVALID_ENVIRONMENT,
            f"the pod already has an interface {op.peer}, or the node has {op.host}",
            "run DEL for this container first, or set CNI_IFNAME to another name",
        )
    return CNIError(ErrorCode.IO_FAILURE, f"the kernel refused a step: {err.strerror}", f"step: {op}")


def _await(links: _Links, waiting: Sequence[str]) -> None:
    """Wait until these links carry packets. The kernel's link watch starts the queue of a link, or its bridge port,
    some time after the carrier is up. (From Linux 6.7 on, RTM_GETLINK starts it at once.) A packet that a pod sends
    before is lost, and TCP retransmits it only after a second.
    """
    deadline = time.monotonic() + READY_SECONDS
    while waiting := _send(links, (), None, waiting):
        if time.monotonic() > deadline:
            name = waiting[0]
            raise CNIError(
                ErrorCode.IO_FAILURE,
                f"link {name} carries no packets after {READY_SECONDS:g} s",
                f"check `bridge -d link show` and `ip -d link show {name}` (spanning tree must be off)",
            )
        time.sleep(0.0005)


def _report(job: Future[None]) -> None:
    if err := job.exception():
        log.error("deleting a link failed late", error=str(err))


def _look(ipr: object, name: str) -> LinkSeen | None:
    found = ipr.get_links(ifname=name)  # type: ignore[attr-defined]  # pyroute2 ships no types
    if not found:
        return None
    link = found[0]
    master = link.get("IFLA_MASTER")
    bridge = ipr.get_links(master)[0].get("IFLA_IFNAME") if master else ""  # type: ignore[attr-defined]  # as above
    return LinkSeen(link.get("IFLA_ADDRESS"), link["state"] == "up", link.get("IFLA_MTU"), bridge)


def _rates(ipr: object, names: set[str]) -> frozenset[tuple[str, int]]:
    """Returns (link, bytes per second) of the token buckets of these links. The rate is at most plan.FASTEST, because
    pyroute2 does not read the attribute for higher rates.
    """
    found = set()
    for name in names:
        for index in ipr.link_lookup(ifname=name):  # type: ignore[attr-defined]  # pyroute2 ships no types
            for queue in ipr.get_qdiscs(index=index):  # type: ignore[attr-defined]  # as above
                if queue.get("TCA_KIND") == "tbf" and (options := queue.get("TCA_OPTIONS")):
                    found.add((name, int(options.get("TCA_TBF_PARMS")["rate"])))
    return frozenset(found)


def _route(route: object) -> tuple[nl.IPNetwork, IPAddress | None]:
    from ipaddress import ip_address

    get = route.get  # type: ignore[attr-defined]  # pyroute2 ships no types
    gateway = get("RTA_GATEWAY")
    via = ip_address(gateway) if gateway else None
    if get("RTA_DST"):
        return ip_network(f"{get('RTA_DST')}/{get('dst_len')}"), via
    return default_route(via or ip_address("0.0.0.0")), via
