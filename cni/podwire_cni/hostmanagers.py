"""What the host's own network managers are told about podwire's interfaces: drop-in files for systemd-networkd, udev
and NetworkManager, and the lines for the status. Pure.

Without them a manager may take an interface of podwire for its own: a `.network` file with `Name=*` or NetworkManager
asks for DHCP on it, takes ports off the bridge and removes its addresses, and udev's MACAddressPolicy=persistent gives
it another MAC. The files name podwire's interfaces only. They are below /run, so they end with the boot.

Sources: systemd.network(5), systemd.link(5), networkd.conf(5), NetworkManager.conf(5).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from .overlay import TUNNELS
from .types import BRIDGE

Manager = Literal["systemd-networkd", "NetworkManager"]
NETWORKD: Manager = "systemd-networkd"
NETWORK_MANAGER: Manager = "NetworkManager"
# The first file that matches an interface wins, so the names sort before those of the host.
NETWORK, LINK = "systemd/network/00-podwire.network", "systemd/network/00-podwire.link"
# Here the last file wins, and += adds to the list of the files before it.
CONF = "NetworkManager/conf.d/99-podwire.conf"
HEAD = "# podwire writes this file at each start. To turn it off: PODWIRE_HOST_MANAGERS=false\n"
_DIGITS = 11  # hexadecimal digits in the names of pods' links, see plan.host_veth
_NO = ("no", "n", "false", "f", "off", "0")


def drop_ins(bridges: Iterable[str] = ()) -> dict[str, str]:
    """Returns path -> text of the drop-in files; the paths are below /run. bridges: further bridges of podwire."""
    fixed = [BRIDGE, *TUNNELS.values(), *sorted({*bridges} - {BRIDGE})]
    names = " ".join([*fixed, *(kind + "[0-9a-f]" * _DIGITS for kind in ("veth", "ifb"))])
    # NetworkManager knows * and ? only. Names of Weave's links (vethwe...) have the same length.
    specs = [f"interface-name:{name}" for name in (*fixed, *(kind + "?" * _DIGITS for kind in ("veth", "ifb")))]
    unmanaged = ";".join([*specs, "except:interface-name:vethwe*"])
    return {
        NETWORK: f"{HEAD}[Match]\nName={names}\n\n[Link]\nUnmanaged=yes\nRequiredForOnline=no\n",
        LINK: f"{HEAD}[Match]\nOriginalName={names}\n\n[Link]\nMACAddressPolicy=none\n",
        CONF: f"{HEAD}[keyfile]\nunmanaged-devices+={unmanaged}\n",
    }


def keeps_foreign_routes(files: Iterable[str]) -> bool:
    """Returns whether systemd-networkd leaves routes that other programs made on its links. files: the texts of
    networkd.conf and its drop-ins in their order; the last one that says something counts.
    """
    keeps = False  # the default of ManageForeignRoutes is yes
    for text in files:
        section = ""
        for line in map(str.strip, text.splitlines()):
            if line.startswith("["):
                section = line
            key, equals, value = line.partition("=")
            if section == "[Network]" and equals and key.strip() == "ManageForeignRoutes":
                keeps = value.strip().lower() in _NO
    return keeps


def ordered(found: Mapping[str, str]) -> list[str]:
    """Returns the texts of networkd.conf and its drop-ins in the order in which systemd-networkd reads them. found:
    path -> text. A file of /etc replaces one of the same name of /run, and that one of /usr/lib.
    """
    rank = {"/etc/": 2, "/run/": 1}
    main = [text for path, text in found.items() if path.endswith("/networkd.conf")]
    drops: dict[str, tuple[int, str]] = {}
    for path, text in found.items():
        name, place = path.rpartition("/")[2], next((n for start, n in rank.items() if path.startswith(start)), 0)
        if "/networkd.conf.d/" in path and name.endswith(".conf"):
            drops[name] = max(drops.get(name, (-1, "")), (place, text))
    return [*main, *(drops[name][1] for name in sorted(drops))]


@dataclass(frozen=True)
class Seen:
    """The host's network managers. running: those that run. waiting: those that were told of the drop-ins by the files
    alone, because they could not be asked to read them. removes_routes: whether systemd-networkd manages the link to
    the other nodes and removes routes that it does not know.
    """

    running: frozenset[Manager] = frozenset()
    waiting: frozenset[Manager] = frozenset()
    removes_routes: bool = False


def notes(seen: Seen, uplink: str) -> list[str]:
    """Returns the lines for the status."""
    found = [
        f"that podwire's interfaces are its own takes effect at {name}'s next reload" for name in sorted(seen.waiting)
    ]
    if seen.removes_routes:
        found.append(
            f"systemd-networkd removes the routes to other nodes from {uplink} when it starts anew; they come back "
            "within a second (set ManageForeignRoutes=no in /etc/systemd/networkd.conf)"
        )
    return found
