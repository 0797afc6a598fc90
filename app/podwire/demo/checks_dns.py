"""Demo, part 6: names. Ordinary clients (getent, dig) inside a pod use the pod's /etc/resolv.conf."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator

from podwire_base.patience import patient

from .lab import OUTSIDE_HOST, UPSTREAM_NAME, DemoLab, Pod, wait_for
from .rows import Row


def _asker(lab: DemoLab, pod: Pod) -> Callable[..., list[str]]:
    """Return a function that runs dig in the pod and returns the sorted answers. With +search, dig uses the search path
    as the C library does.
    """

    def ask(*words: str) -> list[str]:
        return sorted(lab.in_pod(pod, "shell", "dig", "+search", "+short", "+tries=2", "+time=2", *words).splitlines())

    return ask


def _shown(answers: list[str]) -> str:
    return ", ".join(answers[:4]) + (f" ... ({len(answers)})" if len(answers) > 4 else "") or "nothing"


def names(lab: DemoLab) -> Iterator[Row]:
    """A, SRV, PTR, CNAME, headless with and without selector, and a name from upstream."""
    client = lab.pods("client")[-1]
    ask = _asker(lab, client)
    address = lab.cluster_ip("my-service")
    web = sorted(p.address for p in lab.pods("MyApp"))
    reverse = ipaddress.ip_address(address).reverse_pointer
    full = "my-service.default.svc.cluster.local."
    cases: list[tuple[str, tuple[str, ...], list[str]]] = [
        ("A my-service", ("my-service", "A"), [address]),
        ("A my-service.outside", ("my-service.outside", "A"), [lab.cluster_ip("my-service", "outside")]),
        (f"A {full}", (full, "A"), [address]),
        ("SRV _http._tcp.my-service", ("_http._tcp.my-service", "SRV"), [f"0 100 80 {full}"]),
        (f"PTR {address}", (reverse, "PTR"), [full]),
        ("A my-headless (selector)", ("my-headless", "A"), web),
        ("A my-database (no selector)", ("my-database", "A"), [OUTSIDE_HOST, "192.0.2.43"]),
        ("CNAME my-externalname", ("my-externalname", "CNAME"), [UPSTREAM_NAME + "."]),
        (f"A {UPSTREAM_NAME} (upstream)", (UPSTREAM_NAME, "A"), [OUTSIDE_HOST]),
    ]
    for label, words, wanted in cases:
        last: list[str] = []

        def look(words: tuple[str, ...] = words, wanted: list[str] = wanted) -> bool:
            nonlocal last
            last = ask(*words)
            return last == sorted(wanted)

        try:
            good = wait_for(look, 5)
        except Exception:
            good = False
        yield Row("6", f"dig {label}", client.name, _shown(last), good, f"expected {_shown(sorted(wanted))}")


def resolver(lab: DemoLab) -> Iterator[Row]:
    """The C library's resolver (getent) and curl resolve names as an application writes them."""
    client = lab.pods("client")[0]
    address = lab.cluster_ip("my-service")
    got = lab.in_pod(client, "shell", "getent", "ahostsv4", "my-service")
    yield Row(
        "6",
        "getent ahostsv4 my-service",
        client.name,
        got.split("\n")[0] or "nothing",
        {line.split()[0] for line in got.splitlines()} == {address},
        got,
    )
    got = lab.in_pod(client, "shell", "getent", "ahostsv4", "my-externalname")
    yield Row(
        "6",
        "getent ahostsv4 my-externalname",
        client.name,
        got.split("\n")[0] or "nothing",
        {line.split()[0] for line in got.splitlines()} == {OUTSIDE_HOST},
        got,
    )
    got = lab.in_pod(client, "shell", "curl", "-sS", "--max-time", str(patient(5)), "http://my-service/")
    yield Row("6", "curl http://my-service/", client.name, got[:60], any(p.name in got for p in lab.pods("MyApp")), got)
    unknown = lab.in_pod(client, "shell", "dig", "+search", "no-such-service", "A")
    yield Row(
        "6",
        "dig A no-such-service",
        client.name,
        "NXDOMAIN" if "NXDOMAIN" in unknown else unknown[:40],
        "status: NXDOMAIN" in unknown,
        unknown[:200],
    )


CHECKS = (names, resolver)
