"""Collects what a bug report needs, from this machine and from the API, into one archive."""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import subprocess
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path

from podwire_base.kernel.netns import call_in
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import ApiError
from podwire_base.kube.meta import Object
from podwire_base.patience import patient

from .redact import Kind, redact, scrub

LOG_BYTES = 512 * 1024  # of each log: its end
OUTPUT_BYTES = 8 << 20  # of each command
SECONDS = 15.0  # for each command
LISTS = (
    "/api/v1/nodes",
    "/api/v1/namespaces",
    "/api/v1/pods",
    "/api/v1/services",
    "/api/v1/endpoints",
    "/api/v1/configmaps",
    "/api/v1/events",
    "/apis/discovery.k8s.io/v1/endpointslices",
    "/apis/apps/v1/deployments",
    "/apis/apps/v1/replicasets",
    "/apis/coordination.k8s.io/v1/leases",
    "/apis/networking.k8s.io/v1/servicecidrs",
    "/apis/networking.k8s.io/v1/networkpolicies",
)
_ONLY_RIGHTS = (403, 404)  # what this cluster or user does not have is left out by name
# File -> command, for each network namespace. A program that is missing is named in errors.txt.
COMMANDS = {
    "nft.txt": ("nft", "-nn", "list", "ruleset"),
    "iptables.txt": ("iptables-save",),
    "ip6tables.txt": ("ip6tables-save",),
    "links.json": ("ip", "-j", "-d", "link"),
    "addresses.json": ("ip", "-j", "address"),
    "routes.json": ("ip", "-j", "route", "show", "table", "all"),
    "routes6.json": ("ip", "-6", "-j", "route", "show", "table", "all"),
    "rules.json": ("ip", "-j", "rule"),
    "neighbours.json": ("ip", "-j", "neigh"),
    "bridge.json": ("bridge", "-j", "-d", "link"),
    "fdb.json": ("bridge", "-j", "fdb"),
    "sockets.txt": ("ss", "-Hltun"),
}
_SYSCTLS = (
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_max",
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/bridge/bridge-nf-call-iptables",
    "net/ipv4/conf/all/rp_filter",
)
# In a run directory, these hold what a report is for; keys, certificates, tokens and kubeconfigs are elsewhere in it.
_STATE = ("cluster.json", "supervisor.json", "agent.json", "publish.json")
_STATE_FOLDERS = ("status", "cni/leases", "cni/networks", "cni/net.d", "leases")


@dataclass
class Archive:
    """The files of a report, and what could not be collected."""

    files: dict[str, bytes] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def text(self, name: str, text: str) -> None:
        self.files[name] = scrub(text).encode()

    def write(self, path: Path) -> None:
        """Write the archive with mode 0600. Raises OSError, also if the file is there already."""
        self.text("errors.txt", "".join(f"{line}\n" for line in self.errors) or "nothing is missing\n")
        out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        top = path.name.partition(".")[0]
        with os.fdopen(out, "wb") as raw, tarfile.open(fileobj=raw, mode="w:gz") as tar:
            for name, data in sorted(self.files.items()):
                entry = tarfile.TarInfo(f"{top}/{name}")
                entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
                tar.addfile(entry, io.BytesIO(data))


def versions(archive: Archive) -> None:
    """Programs, kernel and Python packages."""
    import re

    rows = [f"kernel: {platform.platform()}", f"python: {platform.python_version()}"]
    with contextlib.suppress(OSError):
        rows.append(f"system: {platform.freedesktop_os_release().get('PRETTY_NAME', '')}")
    wanted = re.compile(r"podwire|aiohttp|pyroute2|lightkube|msgspec|cffi|cryptography|dnslib|dnspython", re.I)
    found = {f"{d.metadata['Name']} {d.version}" for d in distributions() if wanted.match(d.metadata["Name"] or "")}
    rows += sorted(found)
    for command in (("nft", "--version"), ("iptables", "--version"), ("ip", "-V"), ("slirp4netns", "--version")):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=patient(5), check=False)
            rows += [f"{command[0]}: {line}" for line in (done.stdout or done.stderr).splitlines()[:1]]
    archive.text("versions.txt", "\n".join(rows) + "\n")


def namespace(archive: Archive, folder: str, netns: str) -> None:
    """Rules, routes and counts of the network namespace at `netns`."""
    for name, command in COMMANDS.items():
        try:
            done = subprocess.run(
                ["nsenter", f"--net={netns}", "--", *command],
                capture_output=True,
                timeout=patient(SECONDS),
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as err:
            archive.errors.append(f"{folder}/{name}: {err}")
            continue
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            archive.errors.append(f"{folder}/{name}: `{' '.join(command)}`: {said[-1] if said else done.returncode}")
        archive.text(f"{folder}/{name}", done.stdout[:OUTPUT_BYTES].decode(errors="replace"))

    def read() -> str:
        rows = []
        for key in _SYSCTLS:
            with contextlib.suppress(OSError):
                rows.append(f"{key.replace('/', '.')} = {Path('/proc/sys', key).read_text().strip()}")
        return "\n".join(rows) + "\n"

    try:
        archive.text(f"{folder}/sysctls.txt", call_in(netns, read))
    except OSError as err:
        archive.errors.append(f"{folder}/sysctls.txt: {err.strerror}")


def _regular(path: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from (entry for entry in sorted(path.rglob("*")) if entry.is_file() and not entry.is_symlink())


def run_dir(archive: Archive, folder: str, path: Path) -> None:
    """States, leases and the ends of the logs in a run directory, of an agent or of a cluster."""
    found = [path / name for name in _STATE if (path / name).is_file()]
    found += [file for name in _STATE_FOLDERS for file in _regular(path / name)]
    for file in (*found, *_regular(path / "log")):
        with contextlib.suppress(OSError):
            with file.open("rb") as source:
                size = os.fstat(source.fileno()).st_size
                source.seek(max(0, size - LOG_BYTES))
                data = source.read(LOG_BYTES)
            archive.text(f"{folder}/{file.relative_to(path)}", data.decode(errors="replace"))


def processes(archive: Archive) -> None:
    """podwire's processes, by their titles; arguments of other programs are nobody's business."""
    rows = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            name = (entry / "comm").read_text().strip() if entry.name.isdecimal() else ""
            if name.startswith(("podwire", "slirp4netns")):
                title = (entry / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
                rows.append(f"{entry.name:>8} {name:<16} {title if title.startswith('podwire') else ''}")
    archive.text("processes.txt", "\n".join(sorted(rows)) + "\n")


async def objects(archive: Archive, api: ApiClient, include: frozenset[Kind]) -> None:
    """The lists of the API, without Secrets, redacted."""
    for path in LISTS:
        name = path.rpartition("/")[2]
        try:
            found = await api.get(path)
        except ApiError as err:
            if getattr(err, "code", 0) not in _ONLY_RIGHTS:
                archive.errors.append(f"api/{name}.json: {err.message}")
            continue
        kind = str(found.get("kind") or "").removesuffix("List")
        items: list[Object] = [{"kind": kind, **item} for item in found.get("items") or []]
        kept = [made for item in items if (made := redact(item, include)) is not None]
        archive.files[f"api/{name}.json"] = json.dumps(kept, indent=1).encode()


async def agents_logs(archive: Archive, api: ApiClient) -> None:
    """The ends of the logs of podwire's pods, from a cluster whose API server serves logs."""
    try:
        pods = (await api.get("/api/v1/namespaces/kube-system/pods"))["items"]
    except ApiError as err:
        archive.errors.append(f"logs of kube-system: {err.message}")
        return
    for pod in pods:
        own = str(pod["metadata"]["name"])
        for container in pod["spec"].get("containers") or []:
            if not own.startswith("podwire"):
                continue
            path = f"/api/v1/namespaces/kube-system/pods/{own}/log"
            params = {"container": container["name"], "tailLines": "2000"}
            try:
                text = await api.request("GET", path, params=params, accept="text/plain, */*")
                archive.text(f"logs/{own}/{container['name']}.log", str(text))
            except ApiError as err:
                archive.errors.append(f"logs/{own}/{container['name']}.log: {err.message}")
