"""`podwire status --services`: what the socket hooks of each node counted, by Service and endpoint. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from podwire_base.kube.meta import Object, key
from podwire_proxy.convert import service_ports
from podwire_proxy.dataplane import Key
from podwire_proxy.tally import GONE, Tallies

NONE = "nothing counts connections here: the socket hooks of the proxy do, on the nodes of this machine"
FIELDS = ("service", "node", "protocol", "port", "to", "connections")


def named(services: Iterable[Object]) -> dict[Key, str]:
    """Returns the Service of each address and port that the API names. NodePorts are under the address ""."""
    found: dict[Key, str] = {}
    for service in services:
        for port in service_ports(service)[0]:
            ips = (*port.cluster_ips, *port.external_ips, *port.load_balancer_ips)
            found.update((Key(ip, port.protocol, port.port), key(service)) for ip in ips)
            if port.node_port:
                found[Key("", port.protocol, port.node_port)] = key(service)
    return found


def rows(tallies: Mapping[str, Tallies], services: Iterable[Object]) -> list[Object]:
    """Returns a row for each Service, node and endpoint or reason. The endpoint "left: REASON": nftables serves it."""
    names, found = named(services), list[Object]()
    for node, one in sorted(tallies.items()):
        for row in one.rows:
            name = names.get(row.key) or names.get(row.key._replace(ip="")) or row.key.ip
            to = f"left: {row.why}" if row.why else f"{row.to.ip}:{row.to.port}" if row.to else GONE
            found.append(dict(zip(FIELDS, (name, node, row.key.protocol, row.key.port, to, row.number), strict=True)))
        if one.uncounted:
            found.append(dict(zip(FIELDS, ("not counted: too many", node, "", "", "", one.uncounted), strict=True)))
    return sorted(found, key=lambda row: (row["service"], row["node"], str(row["port"]), row["to"]))
