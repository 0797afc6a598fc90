"""The changes that `podwire install` and `podwire uninstall` make to a machine, as data. The functions take the facts
about the machine, return steps, and do no I/O.

The plan omits a step whose result exists already. So a second install does nothing, and an upgrade writes only the
files that differ. Settings belong to the user: an install adds missing settings, and changes an existing setting only
if the user gives a new value.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath as Path

from podwire_cni import hostmanagers

from . import hardening

PARTS = ("plugin", "agent", "control-plane", "managers")
SETTINGS, RECORD, UNITS = "/etc/podwire/agent.env", "/etc/podwire/installed.json", "/etc/systemd/system"
ASIDE = ".before-podwire"
CONFLIST = "10-podwire.conflist"
PLUGIN = "podwire-cni"
DROP_INS = tuple(f"/run/{name}" for name in hostmanagers.drop_ins())  # they end with the boot, so no record has them


class BadInstall(Exception):
    """The request is invalid. The message names a valid alternative."""


# ---- steps: paths are those of the installed machine, without the root that they are under


@dataclass(frozen=True, slots=True)
class Write:
    path: str
    content: bytes = field(repr=False)
    mode: int = 0o644

    def __str__(self) -> str:
        return f"write {self.path} ({len(self.content)} bytes, mode {self.mode:o})"


@dataclass(frozen=True, slots=True)
class Link:
    path: str
    target: str

    def __str__(self) -> str:
        return f"link {self.path} -> {self.target}"


@dataclass(frozen=True, slots=True)
class Move:
    path: str
    to: str

    def __str__(self) -> str:
        return f"rename {self.path} to {self.to}"


@dataclass(frozen=True, slots=True)
class Remove:
    path: str

    def __str__(self) -> str:
        return f"remove {self.path}"


@dataclass(frozen=True, slots=True)
class Run:
    argv: tuple[str, ...]

    def __str__(self) -> str:
        return f"run {shlex.join(self.argv)}"


@dataclass(frozen=True, slots=True)
class CleanKernel:
    """Remove the roles' kernel state from this network namespace: nft tables, bridge, routes, addresses on lo."""

    dns_address: str

    def __str__(self) -> str:
        return "remove podwire's nft tables, its bridge with its ports, its routes, and the DNS address from lo"


Step = Write | Link | Move | Remove | Run | CleanKernel


@dataclass(frozen=True)
class Wanted:
    """The user's request. parts: a selection of PARTS. program: the path of the podwire command. plugin: the content of
    the CNI plugin program; only a compiled program can also serve as `loopback`. settings: variables to set in
    agent.env; the value "" removes a variable. listen: the "ADDRESS:PORT" at which other machines reach the API server
    (part control-plane). take_over: rename the configurations of other CNI plugins, so that runtimes ignore them.
    host_managers: whether the part managers (drop-ins for the host's network managers) writes anything.
    """

    parts: tuple[str, ...]
    program: str
    plugin: bytes = field(repr=False)
    settings: Mapping[str, str] = field(default_factory=dict)
    cni_bin_dir: str = "/opt/cni/bin"
    cni_conf_dir: str = "/etc/cni/net.d"
    data_dir: str = "/var/lib/podwire"
    listen: str = ""
    take_over: bool = False
    host_managers: bool = True

    def __post_init__(self) -> None:
        if strange := set(self.parts) - set(PARTS):
            raise BadInstall(f"--only {', '.join(sorted(strange))}: must be of {', '.join(PARTS)}")
        for name, path in (
            ("--program", self.program),
            ("--cni-bin-dir", self.cni_bin_dir),
            ("--cni-conf-dir", self.cni_conf_dir),
            ("--data-dir", self.data_dir),
        ):
            if not path.startswith("/") or ".." in Path(path).parts:
                raise BadInstall(f"{name}: {path!r} must be an absolute path")
        if "control-plane" in self.parts and ":" not in self.listen:
            raise BadInstall("--listen: missing; give the ADDRESS:PORT at which other machines reach the API server")
        for name, value in self.settings.items():
            if not name.startswith("PODWIRE_") or "\n" in value:
                raise BadInstall(f"--setting {name}: must be PODWIRE_NAME=VALUE, in one line")


@dataclass(frozen=True)
class Facts:
    """The machine's present state. files: path -> content of each of podwire's files that exists. modes: path -> mode.
    links: path -> target. configurations: the file names in the CNI configuration directory. systemd: whether systemd
    runs, so that units can be started.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    modes: Mapping[str, int] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    configurations: tuple[str, ...] = ()
    systemd: bool = False
    cgroup_v2: bool = True
    nft: bool = True
    root: bool = True


# ---- settings


def merged_settings(text: str, given: Mapping[str, str], defaults: Mapping[str, str]) -> str:
    """Return the text of agent.env with the variables of `given` set. Lines and comments keep their places. A variable
    of `defaults` is added only if agent.env does not set it.
    """
    lines = text.splitlines() or [
        "# Flags of `podwire agent --help`, as variables; lists have spaces between their items."
    ]
    todo = {**{name: value for name, value in defaults.items() if name not in given}, **given}
    out = []
    for line in lines:
        name = line.partition("=")[0].strip()
        if line.lstrip().startswith("#") or name not in todo:
            out.append(line)
        elif name in given:
            if given[name]:
                out.append(f"{name}={_quoted(given[name])}")
            todo.pop(name)
        else:
            out.append(line)
            todo.pop(name)
    out += [f"{name}={_quoted(value)}" for name, value in todo.items() if value]
    return "\n".join(out) + "\n"


def _quoted(value: str) -> str:
    """Return the value with quotes, so that systemd's EnvironmentFile and a shell read the same value. A value of plain
    characters needs no quotes.
    """
    if value and all(c.isalnum() or c in "/:.,_-=+@%" for c in value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def read_settings(text: str) -> dict[str, str]:
    """Return name -> value for the variables in the text of an agent.env."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith("#"):
            words = shlex.split(value)
            found[name] = words[0] if words else ""
    return found


# ---- units


def unit(
    description: str,
    program: str,
    words: Iterable[str],
    sandbox: Iterable[str],
    *,
    after: str = "",
    environment: bool = False,
) -> bytes:
    """Return the text of a systemd service unit. It has KillMode=process, because stopping the unit must not end the
    pods. The supervisor ends its roles itself. sandbox: the lines of hardening.py.

    WatchdogSec is twice the time after which a supervisor ends its own roles. SIGKILL, since a stopped process does not
    get systemd's usual SIGABRT.
    """
    return "\n".join(
        [
            "[Unit]",
            f"Description={description}",
            "Wants=network-online.target",
            f"After=network-online.target {after}".strip(),
            "",
            "[Service]",
            *([f"EnvironmentFile={SETTINGS}"] if environment else []),
            f"ExecStart={shlex.join([program, *words])}",
            "Restart=always",
            "RestartSec=1",
            "KillMode=process",
            "NotifyAccess=main",
            "WatchdogSec=60",
            "WatchdogSignal=SIGKILL",
            "LimitNOFILE=1048576",
            "TasksMax=infinity",
            "OOMScoreAdjust=-998",
            *sandbox,
            "",
            "[Install]",
            "WantedBy=multi-user.target",
            "",
        ]
    ).encode()


def units(wanted: Wanted, named: Mapping[str, str] | None = None) -> dict[str, bytes]:
    """Return unit name -> content, in the order in which the units start. named: the settings of agent.env as they will
    be (default: those of `wanted`).
    """
    found: dict[str, bytes] = {}
    named = wanted.settings if named is None else named
    if "control-plane" in wanted.parts:
        api = f"{wanted.data_dir}/api"
        port = wanted.listen.rpartition(":")[2]
        everywhere = "[::]" if "[" in wanted.listen else "0.0.0.0"
        found["podwire-apiserver.service"] = unit(
            "podwire API server",
            wanted.program,
            ["apiserver", "--data", api, "--listen", f"{everywhere}:{port}", "--advertise", wanted.listen],
            hardening.without_kernel([wanted.data_dir]),
        )
        found["podwire-controllers.service"] = unit(
            "podwire controllers",
            wanted.program,
            ["controllers", "--data", api],
            hardening.without_kernel([]),
            after="podwire-apiserver.service",
        )
    if "agent" in wanted.parts:
        found["podwire-agent.service"] = unit(
            "podwire: pods, Services and DNS of this node",
            wanted.program,
            ["agent"],
            hardening.agent(_writes(wanted, named), pods=runs_pods(named)),
            after="podwire-apiserver.service containerd.service",
            environment=True,
        )
    return found


def runs_pods(named: Mapping[str, str]) -> bool:
    return named.get("PODWIRE_PODS", "").lower() in ("1", "true", "t", "yes", "y", "on")


def _writes(wanted: Wanted, named: Mapping[str, str]) -> list[str]:
    """Return the directories that the agent writes. /run also has the drop-ins for the host's network managers and the
    lock of iptables; /var/lib/cni the leases of an earlier plugin; /etc/podwire the node's certificate.
    """
    own = (named.get("PODWIRE_RUN_DIR") or "/run/podwire", named.get("PODWIRE_CNI_CONF_DIR") or wanted.cni_conf_dir)
    return list(dict.fromkeys(["/run", "/var/lib/cni", "/etc/podwire", *own]))


# ---- plans


def _files(wanted: Wanted, facts: Facts) -> dict[str, Write]:
    found, named = list[Write](), dict[str, str]()
    if "plugin" in wanted.parts:
        found.append(Write(f"{wanted.cni_bin_dir}/{PLUGIN}", wanted.plugin, 0o755))
        # containerd and CRI-O call the plugin `loopback` for each pod. A loopback plugin of another package also works.
        loopback = f"{wanted.cni_bin_dir}/loopback"
        if wanted.plugin.startswith(b"\x7fELF") and (
            loopback not in facts.files or loopback in recorded(facts).written
        ):
            found.append(Write(loopback, wanted.plugin, 0o755))
    if "agent" in wanted.parts:
        before = facts.files.get(SETTINGS, b"").decode(errors="replace")
        defaults = {"PODWIRE_CNI_CONF_DIR": wanted.cni_conf_dir, "PODWIRE_RUN_DIR": "/run/podwire"}
        text = merged_settings(before, wanted.settings, defaults)
        named = read_settings(text)
        found.append(Write(SETTINGS, text.encode(), 0o600))
    if "managers" in wanted.parts and wanted.host_managers:
        found += [Write(f"/run/{name}", text.encode()) for name, text in hostmanagers.drop_ins().items()]
    found += [Write(f"{UNITS}/{name}", content) for name, content in units(wanted, named).items()]
    return {write.path: write for write in found}


@dataclass(frozen=True)
class Record:
    """The files and links that installs have made on this machine. An uninstall removes them."""

    written: tuple[str, ...] = ()
    links: tuple[str, ...] = ()


def recorded(facts: Facts) -> Record:
    try:
        found = json.loads(facts.files.get(RECORD, b"{}"))
        return Record(tuple(found.get("written", ())), tuple(found.get("links", ())))
    except (ValueError, AttributeError, TypeError):
        return Record()  # another program wrote this file, so an uninstall must not remove it


def _same(facts: Facts, step: Write) -> bool:
    return facts.files.get(step.path) == step.content and facts.modes.get(step.path) == step.mode


def paths(wanted: Wanted) -> list[str]:
    """Return every path whose state `install` needs in Facts."""
    return [
        f"{wanted.cni_bin_dir}/{PLUGIN}",
        f"{wanted.cni_bin_dir}/loopback",
        SETTINGS,
        RECORD,
        *DROP_INS,
        *(f"{UNITS}/{name}" for name in units(wanted)),
    ]


def link_path(name: str) -> str:
    return f"{UNITS}/multi-user.target.wants/{name}"


def install(wanted: Wanted, facts: Facts) -> list[Step]:
    """Return the steps that turn the present state of the machine into the wanted state."""
    before, steps = recorded(facts), list[Step]()
    files = _files(wanted, facts)
    if wanted.take_over:
        places = [f"{wanted.cni_conf_dir}/{name}" for name in foreign(facts.configurations)]
        steps += [Move(path, path + ASIDE) for path in places]
    changed = [write for write in files.values() if not _same(facts, write)]
    steps += changed
    links = {link_path(name): f"../{name}" for name in units(wanted)}
    steps += [Link(path, target) for path, target in links.items() if facts.links.get(path) != target]
    record = json.dumps(
        {"written": sorted({*before.written, *files} - {*DROP_INS}), "links": sorted({*before.links, *links})}, indent=1
    )
    # An install of the plugin alone writes no record: the image's install container can write only to the plugin
    # directories.
    if units(wanted) and facts.files.get(RECORD) != record.encode() + b"\n":
        steps.append(Write(RECORD, record.encode() + b"\n"))
    if facts.systemd and units(wanted):
        if any(write.path.startswith(UNITS) for write in changed):
            steps.append(Run(("systemctl", "daemon-reload")))
        steps += [Run(("systemctl", "restart" if changed else "start", name)) for name in units(wanted)]
    return steps


def foreign(configurations: Iterable[str]) -> list[str]:
    """Return the configurations of other CNI plugins, found by libcni's suffixes. A runtime uses the alphabetically
    first configuration, which may be one of these.
    """
    return sorted(
        name for name in configurations if name != CONFLIST and name.endswith((".conf", ".conflist", ".json"))
    )


def uninstall(
    facts: Facts, *, cni_bin_dir: str, cni_conf_dir: str, kernel: bool, purge: bool, dns_address: str = ""
) -> list[Step]:
    """Return the steps that revert an install: remove units, files and kernel state, and restore the configurations of
    other plugins. kernel: remove the kernel state. purge: also remove the settings.
    """
    record, steps = recorded(facts), list[Step]()
    if facts.systemd:
        names = [Path(path).name for path in record.links if path in facts.links]
        steps += [Run(("systemctl", "stop", name)) for name in reversed(names)]
    if kernel:
        settings = read_settings(facts.files.get(SETTINGS, b"").decode(errors="replace"))
        steps.append(CleanKernel(dns_address or settings.get("PODWIRE_DNS_ADDRESS", "10.96.0.10")))
    steps += [Remove(path) for path in record.links if path in facts.links]
    if CONFLIST in facts.configurations:
        steps.append(Remove(f"{cni_conf_dir}/{CONFLIST}"))
    aside = [name for name in facts.configurations if name.endswith(ASIDE)]
    steps += [Move(f"{cni_conf_dir}/{name}", f"{cni_conf_dir}/{name.removesuffix(ASIDE)}") for name in sorted(aside)]
    plugin, loopback = f"{cni_bin_dir}/{PLUGIN}", f"{cni_bin_dir}/loopback"
    ours = {*record.written, *DROP_INS, plugin} - ({SETTINGS} if not purge else set())
    if facts.files.get(loopback) == facts.files.get(plugin):
        ours.add(loopback)
    gone = sorted(path for path in ours if path in facts.files)
    steps += [Remove(path) for path in gone]
    if RECORD in facts.files:
        steps.append(Remove(RECORD))
    if facts.systemd and any(path.startswith(UNITS) for path in gone):
        steps.append(Run(("systemctl", "daemon-reload")))
    return steps


# ---- checks


def checks(wanted: Wanted, facts: Facts, kubeconfig_exists: bool) -> list[str]:
    """Return the problems that will prevent this node from working, each with its fix. They are warnings: the install
    continues.
    """
    found = []
    if not facts.nft:
        found.append("the kernel has no nf_tables: modprobe nf_tables, or a kernel with CONFIG_NF_TABLES")
    others = foreign(facts.configurations)
    if others and not wanted.take_over:
        found.append(
            f"{wanted.cni_conf_dir} has {', '.join(others)}: runtimes take the alphabetically first; --take-over "
            "puts others aside"
        )
    if "agent" in wanted.parts:
        settings = read_settings(_files(wanted, facts)[SETTINGS].content.decode())
        if not settings.get("PODWIRE_KUBECONFIG"):
            found.append(
                f"PODWIRE_KUBECONFIG is not set in {SETTINGS}: give --kubeconfig (/etc/kubernetes/kubelet.conf "
                "will do with the rights that docs/migration.md binds)"
            )
        elif not kubeconfig_exists:
            found.append(f"PODWIRE_KUBECONFIG: there is no {settings['PODWIRE_KUBECONFIG']} yet")
    if not facts.cgroup_v2:
        found.append(
            "this kernel offers only cgroup v1: a kubelet needs failCgroupV1: false and cgroupDriver: cgroupfs in its "
            "configuration"
        )
    return found
