"""Drop-ins for the host's network managers, and what the status says of them."""

from __future__ import annotations

import configparser
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from podwire_cni import hostmanagers, managerfiles
from podwire_cni.hostmanagers import CONF, LINK, NETWORK, NETWORK_MANAGER, NETWORKD, Seen
from podwire_cni.managerfiles import Managers
from podwire_cni.overlay import TUNNELS
from podwire_cni.plan import host_veth, ifb_of
from podwire_cni.types import BRIDGE, Attachment

OWNERS = [Attachment(f"c{n}", "eth0") for n in range(50)]
OURS = [BRIDGE, *TUNNELS.values(), "br-db", *map(host_veth, OWNERS), *map(ifb_of, OWNERS)]
# of the host, Docker, flannel, Calico, Cilium, Weave, libvirt, systemd-nspawn
OTHERS = [
    "eth0",
    "lo",
    "ens3",
    "docker0",
    "veth1a2b3c4",
    "veth1a2b3c4d",
    "cni0",
    "cali1234567890a",
    "lxc12345678901",
    "lxc_health",
    "vethwepl1a2b3c4",
    "vethwe-bridge",
    "virbr0",
    "vb-box",
    "ve-box",
    "podwire",
    "br-other",
    "ifb0",
    "flannel.1",
    "vethxyzabcdefgh",
]


def parsed(text: str) -> configparser.ConfigParser:
    found = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    found.optionxform = str  # type: ignore[assignment,method-assign]  # the case of keys counts
    found.read_string(text)
    return found


@pytest.mark.parametrize(
    ("name", "key", "section", "says"),
    [(NETWORK, "Name", "Link", {"Unmanaged": "yes"}), (LINK, "OriginalName", "Link", {"MACAddressPolicy": "none"})],
)
def test_systemd_is_told_of_ours_and_no_others(name: str, key: str, section: str, says: dict[str, str]) -> None:
    conf = parsed(hostmanagers.drop_ins(["br-db"])[name])
    patterns = conf["Match"][key].split()
    assert says.items() <= dict(conf[section]).items()
    assert [link for link in OURS if not any(fnmatchcase(link, p) for p in patterns)] == []
    assert [link for link in OTHERS if any(fnmatchcase(link, p) for p in patterns)] == []
    assert Path(name).name < "10-netplan-eth0.network", "the first file that matches wins"


def test_network_manager_is_told_of_our_interfaces() -> None:
    conf = parsed(hostmanagers.drop_ins(["br-db"])[CONF])
    specs = conf["keyfile"]["unmanaged-devices+"].split(";")
    wanted = [spec.removeprefix("interface-name:") for spec in specs if spec.startswith("interface-name:")]
    excepted = [spec.removeprefix("except:interface-name:") for spec in specs if spec.startswith("except:")]
    assert not any(char in pattern for pattern in wanted for char in "[]"), "it knows * and ? only"

    def ours(link: str) -> bool:
        return any(fnmatchcase(link, p) for p in wanted) and not any(fnmatchcase(link, p) for p in excepted)

    assert [link for link in OURS if not ours(link)] == []
    # nothing tells another program's name of this length apart
    assert [link for link in OTHERS if ours(link)] == ["vethxyzabcdefgh"]


@pytest.mark.parametrize(
    ("files", "keeps"),
    [
        ({}, False),
        ({"/etc/systemd/networkd.conf": "[Network]\n#ManageForeignRoutes=no\n"}, False),
        ({"/etc/systemd/networkd.conf": "[Network]\nManageForeignRoutes = no\n"}, True),
        ({"/etc/systemd/networkd.conf": "[DHCPv4]\nManageForeignRoutes=no\n"}, False),
        (
            {
                "/etc/systemd/networkd.conf": "[Network]\nManageForeignRoutes=no\n",
                "/etc/systemd/networkd.conf.d/50-x.conf": "[Network]\nManageForeignRoutes=yes\n",
            },
            False,
        ),
        (
            {
                "/usr/lib/systemd/networkd.conf.d/90-z.conf": "[Network]\nManageForeignRoutes=yes\n",
                "/etc/systemd/networkd.conf.d/90-z.conf": "[Network]\nManageForeignRoutes=false\n",
                "/run/systemd/networkd.conf.d/10-a.conf": "[Network]\nManageForeignRoutes=1\n",
            },
            True,
        ),
    ],
)
def test_whether_networkd_removes_routes(files: dict[str, str], keeps: bool) -> None:
    assert hostmanagers.keeps_foreign_routes(hostmanagers.ordered(files)) is keeps


class Machine:
    """A machine's files below a folder."""

    def __init__(self, folder: Path) -> None:
        self.run, self.host, self.asked, self.answers = folder / "run", folder, list[str](), True
        for name in ("systemd/netif/links", "NetworkManager"):
            (self.run / name).mkdir(parents=True)
        (folder / "sys/class/net/eth0").mkdir(parents=True)
        (folder / "sys/class/net/eth0/ifindex").write_text("2\n")
        (self.run / "systemd/netif/links/2").write_text("ADMIN_STATE=configured\nOPER_STATE=routable\n")
        (self.run / "NetworkManager/NetworkManager.pid").touch()
        self.start()

    def start(self) -> None:
        self.managers = Managers("eth0", self.run, self.host, self.ask)

    def ask(self, manager: str) -> bool:
        self.asked.append(manager)
        return self.answers

    def notes(self) -> str:
        return "; ".join(hostmanagers.notes(self.managers.seen(), "eth0"))


def test_files_are_written_once_and_the_managers_are_asked(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    (tmp_path / "etc/systemd").mkdir(parents=True)
    (tmp_path / "etc/systemd/networkd.conf").write_text("[Network]\nManageForeignRoutes=no\n")
    assert len(machine.managers.write()) == 3
    machine.managers.reload()
    assert machine.asked == sorted([NETWORKD, NETWORK_MANAGER]) and machine.notes() == ""
    assert machine.managers.write() == []
    machine.managers.reload()
    assert len(machine.asked) == 2
    assert len(machine.managers.write(["br-db"])) == 3, "a further bridge is ours too"
    machine.managers.reload()
    assert len(machine.asked) == 4
    assert "br-db" in (machine.run / NETWORK).read_text() and (machine.run / CONF).stat().st_mode & 0o777 == 0o644


def test_a_manager_that_cannot_be_asked_is_named(tmp_path: Path) -> None:
    """Also after a restart of the agent, which does not know whether the manager read its files since."""
    machine = Machine(tmp_path)
    machine.answers = False
    machine.managers.write()
    machine.managers.reload()
    for _ in range(2):
        assert "takes effect at NetworkManager's next reload" in machine.notes()
        assert "takes effect at systemd-networkd's next reload" in machine.notes()
        machine.start()
        assert machine.managers.write() == []
        machine.managers.reload()
    machine.answers = True
    machine.managers.reload()
    assert "reload" not in machine.notes()


def test_a_setting_that_removes_routes_is_named(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert "set ManageForeignRoutes=no in /etc/systemd/networkd.conf" in machine.notes()
    (machine.run / "systemd/netif/links/2").write_text("ADMIN_STATE=unmanaged\n")
    assert "ManageForeignRoutes" not in machine.notes(), "another program manages the uplink"


def test_a_machine_without_managers_gets_no_files(tmp_path: Path) -> None:
    managers = Managers("eth0", tmp_path / "run", tmp_path, lambda _: False)
    assert managers.write() == [] and managers.seen() == Seen() and not (tmp_path / "run").exists()


def test_a_folder_that_takes_no_files_is_no_error(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    (machine.run / "systemd/network").write_text("a file")
    assert machine.managers.write() == [machine.run / CONF]


def test_a_manager_out_of_sight_is_seen_by_its_socket(tmp_path: Path) -> None:
    """As in a container of the machine's network namespace: another container wrote the files."""
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/unix").write_text("0: 2 0 10000 1 1 1 /run/NetworkManager/private-dhcp\n")
    seen = Managers("eth0", tmp_path / "run", tmp_path, lambda _: True).seen()
    assert seen == Seen(frozenset({NETWORK_MANAGER}), frozenset({NETWORK_MANAGER}))


def test_nodes_in_namespaces_do_not_touch_the_machine(tmp_path: Path) -> None:
    for name in ("machine", "node"):
        (tmp_path / name).touch()
    (tmp_path / "agent").symlink_to("machine")
    machine = str(tmp_path / "machine")
    assert managerfiles.on_the_machine(str(tmp_path / "agent"), machine)
    assert not managerfiles.on_the_machine(str(tmp_path / "node"), machine)
    assert not managerfiles.on_the_machine(str(tmp_path / "node"), str(tmp_path / "out of sight"))
