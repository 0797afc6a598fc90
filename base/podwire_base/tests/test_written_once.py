"""Code that two packages need is defined once, in base: the syntax trees are searched for second definitions.

A row of ONCE names a definition, its form in a syntax tree, its home, and the files that have their own, each with the
reason. Test modules are not searched: they may check the code with a second definition.
"""

from __future__ import annotations

import ast
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from podwire_base.testing.counts import uncollected

ROOT = Path(__file__).parents[3]
PLACES = (
    "app",
    "base",
    "cni",
    "controlplane",
    "dns",
    "observe",
    "policy",
    "proxy",
    "netns-tests/lab",
    "bench",
    "vagrant",
)
# The nodes that may be definitions; all others (names, expressions) are skipped at once.
KINDS = (ast.Call, ast.Constant, ast.Attribute, ast.ClassDef, ast.FunctionDef, ast.Subscript, ast.Assign, ast.AnnAssign)
KERNEL = "base/podwire_base/kernel/"
ROLE = "base/podwire_base/role/"
SHIM = "controlplane/podwire_node/shim.py"


class Once(NamedTuple):
    """homes: file -> number of definitions there. second: a definition that must be found outside its home. excused:
    file -> why it has its own.
    """

    what: str
    is_one: Callable[[ast.AST], bool]
    homes: Mapping[str, int]
    second: str
    excused: Mapping[str, str] = {}


def _struct(form: str) -> Callable[[ast.AST], bool]:
    """struct.Struct(form), struct.pack(form, ...) and the like."""

    def is_one(node: ast.AST) -> bool:
        if not isinstance(node, ast.Call) or not node.args:
            return False
        first = node.args[0]
        return isinstance(first, ast.Constant) and first.value == form

    return is_one


def _constant(*values: object) -> Callable[[ast.AST], bool]:
    wanted = {(type(value), value) for value in values}
    return lambda node: isinstance(node, ast.Constant) and (type(node.value), node.value) in wanted


def _attribute(*names: str) -> Callable[[ast.AST], bool]:
    return lambda node: isinstance(node, ast.Attribute) and node.attr in names


def _class(*names: str) -> Callable[[ast.AST], bool]:
    return lambda node: isinstance(node, ast.ClassDef) and node.name in names


def _assigned(*names: str) -> Callable[[ast.AST], bool]:
    """A name of a module or a class that gets a value there; an import does not count."""

    def is_one(node: ast.AST) -> bool:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        parts = [part for target in targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])]
        return any(isinstance(part, ast.Name) and part.id in names for part in parts)

    return is_one


def _is_checksum(node: ast.AST) -> bool:
    """A function that folds carries into 16 bits."""
    if not isinstance(node, ast.FunctionDef):
        return False
    found = {
        (type(part.op), part.right.value)
        for part in ast.walk(node)
        if isinstance(part, ast.BinOp) and isinstance(part.right, ast.Constant)
    }
    return {(ast.RShift, 16), (ast.BitAnd, 0xFFFF)} <= found


def _is_family(node: ast.AST) -> bool:
    """Literal["ip", "ip6"], in any order and with more beside them."""
    if not isinstance(node, ast.Subscript) or not isinstance(node.slice, ast.Tuple):
        return False
    return {"ip", "ip6"} <= {part.value for part in node.slice.elts if isinstance(part, ast.Constant)}


def _lists_addresses(node: ast.AST) -> bool:
    """pyroute2's get_addr() of everything."""
    return isinstance(node, ast.Call) and _attribute("get_addr")(node.func) and not node.args and not node.keywords


def _is_mac_reader(node: ast.AST) -> bool:
    """bytes.fromhex(mac.replace(":", ""))."""
    return isinstance(node, ast.Call) and _attribute("fromhex")(node.func) and "replace(':', '')" in ast.unparse(node)


def _renames(node: ast.AST) -> bool:
    """os.rename, os.replace, Path.rename or Path.replace; the `replace` of strings and of dataclasses has more."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    if isinstance(node.func.value, ast.Name) and node.func.value.id == "os":
        return node.func.attr in ("rename", "replace")
    return node.func.attr in ("rename", "replace") and len(node.args) == 1 and not node.keywords


def _text(start: str) -> Callable[[ast.AST], bool]:
    """A string, or the first part of one, that begins with this text."""
    return lambda node: isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(start)


KERNEL_HALF = [
    Once(
        "netlink attributes",
        _struct("=HH"),
        {KERNEL + "netlink/codec.py": 1},
        'import struct\n_HEAD = struct.Struct("=HH")',
    ),
    Once(
        "netlink's message header",
        _struct("=IHHII"),
        {KERNEL + "netlink/codec.py": 1},
        'import struct\ndef ask(k):\n    return struct.pack("=IHHII", 16, k, 1, 1, 0)',
    ),
    Once(
        "netfilter's message header",
        _struct(">BBH"),
        {KERNEL + "netlink/codec.py": 1},
        'import struct\nstruct.pack(">BBH", 2, 0, 0)',
    ),
    Once(
        "what a refusal of netlink is",
        _class("NetlinkError"),
        {KERNEL + "netlink/codec.py": 1},
        "class NetlinkError(OSError): ...",
    ),
    Once(
        "netlink sockets",
        _attribute("AF_NETLINK"),
        {KERNEL + "netlink/socket.py": 1},
        "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
        {"cni/podwire_cni/native/client.py": "it runs alone, by the host's own python3, without this package"},
    ),
    Once(
        "a flow of conntrack",
        _class("Flow"),
        {KERNEL + "conntrack/codec.py": 1},
        "class Flow: ...",
        {"observe/podwire_observe/record.py": "a connection with names and verdict, as readers of the flow log get it"},
    ),
    Once("conntrack's socket", _class("Conntrack"), {KERNEL + "conntrack/socket.py": 1}, "class Conntrack: ..."),
    Once(
        "ctnetlink's attributes",
        _assigned("TUPLE_ORIG", "CTA_TUPLE_ORIG"),
        {KERNEL + "conntrack/codec.py": 1},
        "GET, TUPLE_ORIG = 1, 1",
    ),
    Once(
        "the Internet checksum",
        _is_checksum,
        {KERNEL + "frames.py": 1},
        "def f(n):\n    while n >> 16:\n        n = (n & 0xFFFF) + (n >> 16)\n    return n",
    ),
    Once(
        "ARP frames",
        _constant(0x0806, b"\x08\x06"),
        {KERNEL + "frames.py": 1},
        'FRAME = bytes(12) + b"\\x08\\x06"',
        {"cni/podwire_cni/antispoofing.py": "an operand of a rule, which has the type as it stands in the frame"},
    ),
    Once("neighbour advertisements", _assigned("ADVERTISEMENT"), {KERNEL + "frames.py": 1}, "ADVERTISEMENT = 136"),
    Once("MAC addresses read", _is_mac_reader, {KERNEL + "ip.py": 1}, 'bytes.fromhex(mac.replace(":", ""))'),
    Once(
        "setns",
        _attribute("setns"),
        {KERNEL + "netns.py": 1},
        "import ctypes\nctypes.CDLL(None).setns(3, 0)",
        {SHIM: "it runs alone, without this package (python -ISE), and starts in milliseconds"},
    ),
    Once(
        "CLONE_NEWNET",
        _constant(0x40000000),
        {KERNEL + "netns.py": 1},
        "CLONE_NEWNET = 0x40000000",
        {SHIM: "as above"},
    ),
    Once(
        "all addresses of a namespace",
        lambda node: _attribute("GETADDR", "RTM_GETADDR")(node) or _lists_addresses(node),
        {KERNEL + "addresses.py": 2},  # all of them, and the link of one
        "for message in ipr.get_addr(): ...",
    ),
    Once(
        "the uplink",
        lambda node: (
            _attribute("GETROUTE", "get_default_routes")(node)
            or _constant("/proc/net/route", "/proc/net/ipv6_route")(node)
        ),
        {KERNEL + "addresses.py": 1},
        'from pathlib import Path\nPath("/proc/net/route").read_text()',
        {"cni/podwire_cni/wiring.py": "it looks for the routes of router advertisements, whichever link they are on"},
    ),
    Once("Family", _is_family, {KERNEL + "ip.py": 1}, 'from typing import Literal\nF = Literal["ip6", "ip"]'),
    Once("the families", _assigned("FAMILIES"), {KERNEL + "ip.py": 1}, 'FAMILIES = ("ip", "ip6")'),
]
ROLE_HALF = [
    Once(
        "Events",
        _constant("involvedObject"),
        {"base/podwire_base/kube/events.py": 1},
        'told = {"kind": "Event", "involvedObject": {}}',
        {
            "app/podwire/explain/catalogue.py": "it reads which object an Event is about",
            "app/podwire/statuspage.py": "it reads which Service an Event is about",
            "controlplane/podwire_controlplane/rules/core.py": "the rule for the field",
            "base/podwire_base/kube/columns.py": "it reads the key for a column",
            "controlplane/podwire_controlplane/convert.py": "the names of the fields in both versions of an Event",
            "base/podwire_base/testing/builders.py": "the least object of each kind, for tests",
        },
    ),
    Once("the supervisor", _class("Supervisor"), {ROLE + "supervisor.py": 1}, "class Supervisor: ..."),
    Once(
        "a child that ends with its parent",
        _assigned("PR_SET_PDEATHSIG"),
        {ROLE + "supervisor.py": 1},
        "PR_SET_PDEATHSIG = 1",
        {
            SHIM: "it runs alone, without this package (python -ISE), and starts in milliseconds",
            "netns-tests/lab/netns.py": "the lab's own processes, which are no roles",
        },
    ),
    Once(
        "the signals that end a role",
        lambda node: isinstance(node, ast.Call) and _attribute("add_signal_handler")(node.func),
        {ROLE + "run.py": 1},
        "loop.add_signal_handler(signal.SIGTERM, stop.set)",
        {
            "dns/podwire_dns/sources.py": "SIGHUP, which reads the settings anew",
        },
    ),
    Once("sd_notify", _constant("NOTIFY_SOCKET"), {ROLE + "run.py": 1}, 'os.environ["NOTIFY_SOCKET"]'),
    Once(
        "the histogram",
        lambda node: (
            isinstance(node, ast.Subscript)
            and isinstance(node.slice, ast.Call)
            and ast.unparse(node.slice).startswith("bisect_left(self.bounds")
        ),
        {ROLE + "metrics.py": 1},
        "class Times:\n    def note(self, x):\n        self.counts[bisect_left(self.bounds, x)] += 1",
    ),
    Once(
        "the text format of Prometheus",
        _text("# TYPE "),
        {ROLE + "metrics.py": 1},
        'f"# TYPE {name} gauge"',
    ),
    Once(
        "the page server",
        _text("HTTP/1.1 "),
        {ROLE + "web.py": 1},
        'f"HTTP/1.1 {status} OK"',
        {
            "base/podwire_base/testing/scripted.py": "an API server of tests that answers as it is told",
            "controlplane/podwire_node/native/echo.py": "a test server in a pod; it stands in for echo.c",
        },
    ),
    Once(
        "a file written beside and renamed",
        _renames,
        {ROLE + "files.py": 1},
        "fresh.replace(path)",
        {
            SHIM: "it runs alone, without this package; a log's old part is kept under another name",
            "app/podwire/cluster/teardown.py": "the folders of logs, moved",
            "controlplane/podwire_node/apiaccess.py": "a link to a whole folder, so that its files change together",
            "controlplane/podwire_controlplane/store/copies.py": "a store's files, which SQLite writes",
            "controlplane/podwire_controlplane/store/damage.py": "a damaged store, kept under another name",
            "app/podwire/deploy/apply.py": "a step that gives a file of another plugin another name",
            ROLE + "rotate.py": "a log's old part is kept under another name",
            "cni/podwire_cni/ipam/store.py": "a lease that is given back keeps its file under another name",
            ROLE + "unixsocket.py": "a socket, not a file",
            "netns-tests/lab/clients.py": "a folder of packages, which appears whole",
            "netns-tests/lab/incluster.py": "a Secret's files, exchanged as a kubelet does it",
            "vagrant/qemu.py": "a log that is whole when it has its name",
        },
    ),
    Once(
        "times of the API",
        lambda node: isinstance(node, ast.FunctionDef) and node.name.lstrip("_") in ("timestamp", "parse_time"),
        {"base/podwire_base/kube/times.py": 2},
        "def timestamp(now): ...",
    ),
    Once(
        "RFC 3339 in seconds",
        _constant("%Y-%m-%dT%H:%M:%SZ"),
        {"base/podwire_base/kube/times.py": 1},
        'now.strftime("%Y-%m-%dT%H:%M:%SZ")',
    ),
    Once(
        "the title of a process",
        _assigned("PR_SET_NAME"),
        {ROLE + "title.py": 1},
        "PR_SET_NAME = 15",
    ),
]
ONCE = [*KERNEL_HALF, *ROLE_HALF]


@functools.cache
def trees() -> Mapping[str, tuple[ast.AST, ...]]:
    """For every searched file, the nodes that may define something."""
    with uncollected():
        return _trees()


def _trees() -> Mapping[str, tuple[ast.AST, ...]]:
    return {
        str(path.relative_to(ROOT)): tuple(
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, KINDS)
        )
        for place in PLACES
        for path in sorted((ROOT / place).rglob("*.py"))
        if "tests" not in path.relative_to(ROOT / place).parts
    }


def found(thing: Once) -> Iterator[str]:
    for path, nodes in trees().items():
        yield from (path for node in nodes if thing.is_one(node))


@pytest.mark.parametrize("thing", ONCE, ids=lambda thing: thing.what)
def test_it_is_defined_once(thing: Once) -> None:
    counted = Counter(found(thing))
    elsewhere = {path: counted.pop(path, 0) for path in thing.excused}
    assert counted == thing.homes
    assert all(elsewhere.values()), f"an excuse without need: {elsewhere}"


@pytest.mark.parametrize("thing", ONCE, ids=lambda thing: thing.what)
def test_a_second_definition_would_be_found(thing: Once) -> None:
    assert any(thing.is_one(node) for node in ast.walk(ast.parse(thing.second)))


def test_all_of_the_tree_is_searched() -> None:
    assert {path.split("/")[0] for path in trees()} == {place.split("/")[0] for place in PLACES}
    assert len(trees()) > 250
