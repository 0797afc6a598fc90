"""The way out of a cluster on this machine: which addresses slirp4netns uses, and the rules before it. Pure.

slirp4netns makes a tap device in the switch's network namespace and opens an ordinary socket on this machine for each
flow that leaves by it, so the machine's own network is not changed. What it can reach, it reaches as this machine:
therefore rules in the switch's namespace drop what is for the machine itself (its addresses, and link-local addresses,
where clouds serve credentials), unless `--host-access`. Loopback is never reached.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network

from podwire_base.kernel.ip import FAMILIES, Family, IPAddress
from podwire_base.kernel.nft import ruleset as nft

TABLE, TAP, MTU = "podwire-internet", "tap0", 65520
PROGRAM = "slirp4netns"
_R0 = 8  # the first register
_SIZE, _DADDR, _TYPE = {"ip": 4, "ip6": 16}, {"ip": 16, "ip6": 24}, {"ip": "ipv4_addr", "ip6": "ipv6_addr"}
LOOPBACK = {"ip": ("0.0.0.0/8", "127.0.0.0/8"), "ip6": ("::/127",)}
LINK_LOCAL = {"ip": ("169.254.0.0/16",), "ip6": ("fe80::/10",)}


def _candidates() -> Iterator[str]:
    """Yield ranges that few networks use. First the upper half of the range for benchmarks (RFC 2544); 10.0.2.0/24, the
    default of slirp4netns, is also that of VirtualBox.
    """
    yield from (f"198.19.{n}.0/24" for n in range(252, 0, -1))
    yield from (f"10.253.{n}.0/24" for n in range(256))


def choose_cidr(taken: Iterable[str]) -> str:
    """Return a range for slirp4netns that overlaps none of `taken` (CIDRs and addresses); "" if there is none."""
    networks = [n for n in (ip_network(text, strict=False) for text in taken) if n.version == 4 and n.prefixlen]
    return next((text for text in _candidates() if not any(ip_network(text).overlaps(n) for n in networks)), "")


def overlapping(cidr: str, taken: Iterable[IPv4Network | IPv6Network]) -> list[str]:
    wanted = ip_network(cidr)
    return [str(n) for n in taken if n.version == wanted.version and n.overlaps(wanted)]


def resolver(cidr: str) -> str:
    """Return the address at which slirp4netns answers DNS with the machine's own resolver (slirp4netns(1): the third
    address of the range).
    """
    return str(ip_network(cidr)[3])


def command(program: str, netns: str, cidr: str, ready_fd: int, exit_fd: int) -> list[str]:
    """Return the command line of slirp4netns. It ends when the other end of `exit_fd` is closed."""
    return [
        program,
        "--configure",
        f"--mtu={MTU}",
        "--disable-host-loopback",
        "--enable-sandbox",
        "--enable-seccomp",
        f"--cidr={cidr}",
        f"--ready-fd={ready_fd}",
        f"--exit-fd={exit_fd}",
        "--netns-type=path",
        netns,
        TAP,
    ]


def closed(family: Family, own: Iterable[IPAddress], host_access: bool) -> tuple[str, ...]:
    """Return the CIDRs of a family that pods do not reach through slirp4netns. own: the machine's addresses."""
    mine = [str(ip_network(ip)) for ip in own if (ip.version == 4) == (family == "ip") and not ip.is_loopback]
    return LOOPBACK[family] if host_access else (*LOOPBACK[family], *LINK_LOCAL[family], *mine)


def plan(own: Iterable[IPAddress], host_access: bool) -> nft.Transaction:
    """Return the transaction that replaces the tables in the switch's namespace."""
    tx, own = nft.Transaction(), tuple(own)
    leaves = (nft.Meta("oifname"), nft.Cmp(TAP.encode().ljust(16, b"\0")))
    for family in FAMILIES:
        table = nft.Table(family, TABLE)
        forbidden = nft.Set(table, "closed", (_TYPE[family],), interval=True)
        tx.remake(table).add(forbidden, nft.Elements(forbidden, nft.intervals(closed(family, own, host_access))))
        to = nft.Payload("network", _DADDR[family], _SIZE[family])
        for hook in ("forward", "output"):
            chain = nft.Chain(table, hook, hook=hook)
            exprs = (*leaves, to, nft.Lookup(forbidden.name), nft.Counter(), nft.drop())
            tx.add(chain, nft.Rule(chain, exprs, "this machine itself, and link-local addresses"))
        post = nft.Chain(table, "postrouting", hook="postrouting", type="nat", priority=100)
        tx.add(post, nft.Rule(post, (*leaves, nft.Masquerade()), "the cluster to the world"))
    return tx
