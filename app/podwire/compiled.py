"""Lists podwire's C programs that are not compiled on this machine, with the reason and the performance cost.

`podwire status` and the last lines of `make install` (`python -m podwire.compiled`) show this list.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

REMEDY = (
    "install gcc, libc6-dev, musl-tools, python3-dev and clang (Debian's names), "
    "then podwire again (make clean install)"
)


@dataclass(frozen=True, slots=True)
class Missing:
    """A program or module that runs as Python because it is not compiled."""

    name: str
    costs: str
    why: str


def missing() -> list[Missing]:
    """Return the programs and modules that are not compiled. The list is empty if all are compiled."""
    from podwire_base.native import reason
    from podwire_base.role import native as role
    from podwire_cni import native as cni
    from podwire_cni.native import attach
    from podwire_dns import native as dns
    from podwire_node import runtime
    from podwire_proxy.ebpf import native as ebpf

    programs = (
        ("podwire-cni", cni.is_compiled("podwire-cni"), cni.FOLDER, "a call of the plugin takes 20 ms more"),
        ("podwire-pause", cni.is_compiled("podwire-pause"), cni.FOLDER, "a pod takes 10 MB more"),
        ("podwire-beat", role.beat_program() is not None, role.FOLDER, "an image has no probes"),
        ("podwire-echo", runtime.echo_binary() is not None, runtime.NATIVE, "the test server starts 50 ms later"),
        ("bypass.bpf", ebpf.code("bypass") is not None, ebpf.FOLDER, "--ebpf-bypass has no effect"),
        ("drops.bpf", ebpf.code("drops") is not None, ebpf.FOLDER, "podwire drops cannot run"),
        ("sock.bpf", ebpf.code("sock") is not None, ebpf.FOLDER, "--backend ebpf has nftables serve everything"),
    )
    libraries = (
        ("the attach module", attach.library(), "pods are attached step by step"),
        ("the packets module", dns.library(), "the DNS server receives one packet at a time"),
    )
    return [
        *(Missing(name, costs, reason(folder, name)) for name, there, folder, costs in programs if not there),
        *(Missing(name, costs, found.problem) for name, found, costs in libraries if found.module is None),
    ]


def unbuilt() -> str:
    """Return what is missing of the generated files, without which the API server cannot run, and what writes them; ""
    if all are there, as in every installation. A source tree that was never built, or only by an older version, lacks
    them.
    """
    folder = files("podwire_base.kube") / "generated"
    gone = [name for name in ("schema.json.gz", "descriptions.json.gz") if not (folder / name).is_file()]
    return f"{folder} lacks {' and '.join(gone)}: `make install` (or pip install) writes it" if gone else ""


def lines(found: list[Missing]) -> list[str]:
    """Return the lines for the user, none if `found` is empty. A reason that several parts share appears once."""
    if not found:
        return []
    by_reason: dict[str, list[Missing]] = {}
    for part in found:
        by_reason.setdefault(part.why.splitlines()[0] if part.why else "not built", []).append(part)
    told = [
        f"  {', '.join(f'{part.name} ({part.costs})' for part in parts)}: {why}" for why, parts in by_reason.items()
    ]
    return [
        "podwire works, but slower: some parts are missing or run as Python because they are not compiled",
        *told,
        f"  to have it: {REMEDY}",
    ]


if __name__ == "__main__":
    print("\n".join(lines(missing()) or ["all native programs and modules are compiled"]))
