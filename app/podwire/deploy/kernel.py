"""Removes podwire's state from this network namespace. A node needs this before it gets another pod network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

RUN_DIR = Path("/run/podwire")


def clean(dns_address: str) -> Iterator[str]:
    """Remove podwire's state and yield a line for each removal. Running pods lose their network, because the bridge is
    removed. Raises NotGone at the end if rules of the Service proxy stay.
    """
    from podwire_base.kernel.nft import ruleset as nft
    from podwire_base.kernel.nft import socket as nft_socket
    from podwire_cni import routes
    from podwire_cni.firewall import Firewall
    from podwire_dns import heritage, host
    from podwire_observe import sysctls
    from podwire_policy.apply import cleanup as cleanup_policy
    from podwire_proxy.backend import NotGone
    from podwire_proxy.main import cleanup

    stays: NotGone | None = None
    try:
        yield from cleanup()
    except NotGone as err:  # the rest goes nevertheless
        stays = err
        yield from err.removed
    for run_dir in (RUN_DIR, RUN_DIR / "services"):  # the second is that of the container `services` (deploy/)
        heritage.end_spares(run_dir)
    yield from map("nft {}".format, cleanup_policy())
    for run_dir in (RUN_DIR, RUN_DIR / "node"):
        yield from sysctls.restore(run_dir)
    yield from host.cleanup([dns_address])
    firewall = Firewall()
    try:
        yield from firewall.forward(())
    finally:
        firewall.close()
    with nft_socket.Connection() as connection:
        for table in sorted(connection.tables(), key=str):
            if table.name in ("podwire-cni", "podwire-leases", "podwire-tunnel"):
                connection.commit(nft.Transaction().remove(table))
                yield f"nft table {table.family} {table.name}"
    yield from _links_and_routes(routes.PROTOCOL)
    if stays is not None:
        raise stays


def _links_and_routes(protocol: int) -> Iterator[str]:
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    from podwire_cni.overlay import TUNNELS

    with IPRoute() as ipr:
        bridges = ipr.link_lookup(ifname="podwire0")
        for link in ipr.get_links():
            if bridges and link.get("IFLA_MASTER") == bridges[0]:
                ipr.link("del", index=link["index"])
                yield f"link {link.get('IFLA_IFNAME')} of a pod"
        for own in ("podwire0", *TUNNELS.values()):
            for index in ipr.link_lookup(ifname=own):
                ipr.link("del", index=index)
                yield f"link {own}"
        for family in (2, 10):
            for route in ipr.get_routes(family=family):
                if route["proto"] == protocol and route.get("RTA_DST"):
                    where = f"{route.get('RTA_DST')}/{route['dst_len']}"
                    try:
                        ipr.route("del", family=family, dst=where, table=route.get("RTA_TABLE"), proto=protocol)
                        yield f"route {where}"
                    except NetlinkError:
                        continue  # the kernel deleted the route together with its link
