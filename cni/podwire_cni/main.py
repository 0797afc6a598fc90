"""The programs of this package: `podwire-cni-standalone` (the plugin in Python, which needs no agent), `podwire wiring`
(the agent), its command `install`, and `podwire pause-image`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any, BinaryIO

import click

from podwire_base.role import bugs, logs
from podwire_base.role.layout import NewerLayout

from . import conflistfile, kernel, native, netnsid, pauseimage, skel
from .commands import Plugin, Sandbox
from .conf import range_sets
from .errors import CNIError, ErrorCode
from .firewall import Firewall
from .ipam.allocator import Allocator
from .ipam.store import Busy, DirStore, boot_id
from .nodetable import NodeRules
from .plan import NodeNet
from .types import BRIDGE, NetConf

DEFAULT_SOCKET = "/run/podwire/cni.sock"
# seconds that a plugin process waits for its turn: only one works at a time, and a runtime may start many pods at once
TURN_SECONDS = 60.0


class Standalone:
    """A node without an agent. The node is the caller's network namespace, and the configuration has the address
    ranges.

    The leases are in the agent's directory (beside the agent's socket), so an agent and this program can each detach
    pods that the other attached. If an agent wrote the nft tables, they stay unchanged, because only an agent knows the
    other nodes. If there are no tables, `ipMasq` decides whether pods are masqueraded.
    """

    def __init__(self, env: Mapping[str, str], stack: contextlib.ExitStack) -> None:
        self.env, self.stack = env, stack
        self.kernel = kernel.Kernel()
        stack.callback(self.kernel.close)

    def sandbox(self) -> Sandbox:
        path = self.env.get("CNI_NETNS", "")
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as err:
            return Sandbox(None, err.strerror or "" if path else "CNI_NETNS is not set")
        self.stack.callback(os.close, fd)
        ident, node = netnsid.netns_id(fd), netnsid.netns_id(self.kernel.node_fd)
        netns, no_pod = netnsid.record(path, ident), netnsid.known_netns(()).get(ident, "")
        return Sandbox(fd, "", netnsid.is_netns(fd), ident == node, netns=netns, no_pod=no_pod)

    def plugin(self, conf: NetConf) -> Plugin:
        command, node = self.env.get("CNI_COMMAND"), self._node(conf)
        try:
            store = DirStore(Path(conf.socket or DEFAULT_SOCKET).parent / "cni" / "leases", wait=TURN_SECONDS)
        except Busy as err:
            raise CNIError(
                ErrorCode.TRY_AGAIN_LATER, f"{err.filename}: {err.strerror}", "let the agent serve the call"
            ) from err
        except NewerLayout as err:
            raise CNIError(ErrorCode.TRY_AGAIN_LATER, str(err), "let the agent serve the call") from err
        self.stack.callback(store.close)
        firewall = Firewall()
        self.stack.callback(firewall.close)
        plugin = Plugin(self.kernel, firewall, Allocator(store, 30.0, time.time), lambda: node, boot_id())
        if node is None:
            return plugin
        if command in ("ADD", "STATUS"):
            from . import wiring

            plugin.with_unwanted(node, wiring.ensure_node)
        cidrs = tuple(str(r.subnet) for ranges in node.ranges for r in ranges)
        rules = NodeRules(cidrs, frozenset(conf.native) if conf.ip_masq else None, mac=node.bridge_mac)
        if firewall.present():
            firewall.adopt(rules, plugin.pods())
        elif command == "ADD":
            firewall.sync(rules, plugin.pods())
        if command == "ADD":
            plugin.reconcile()  # without an agent, no other process does this
        return plugin

    def _node(self, conf: NetConf) -> NodeNet | None:
        """Returns the node's network; None for a DEL whose configuration does not name the ranges any more."""
        command = self.env.get("CNI_COMMAND")
        if not conf.ranges and command == "DEL":
            return None
        if not conf.ranges:
            raise CNIError(
                ErrorCode.INVALID_CONFIG,
                "network configuration: ipam.ranges is missing, and there is no agent to ask",
                "name the node's podCIDR there, as the conflist does",
            )
        if command not in ("ADD", "STATUS"):  # before the first pod, a missing bridge is not an error
            return NodeNet(conf.ranges, conf.mtu or 1500)
        # importing pyroute2 takes 150 ms, so only the verbs that need it import it
        from . import wiring

        mtu, mac = conf.mtu or wiring.uplink_mtu() or 1500, wiring.bridge_mac(BRIDGE)
        return NodeNet(conf.ranges, mtu, mac=mac, ipv6=wiring.has_ipv6())


def standalone(env: Mapping[str, str], stdin: bytes, out: BinaryIO) -> int:
    """Serve one call without an agent. Writes the answer to `out` and returns the exit status."""
    with contextlib.ExitStack() as stack:
        host = Standalone(env, stack)
        reply = skel.run(env, stdin, host.sandbox(), host.plugin)
        out.write(reply.text)
        out.flush()
        if reply.error and reply.error.code == ErrorCode.BUG:  # runtimes record the stderr of a plugin
            bugs.report(logs.get("wiring"), env.get("CNI_COMMAND", ""), reply.error.__cause__ or reply.error)
    return reply.status


def main() -> None:
    """Entry point of `podwire-cni-standalone`."""
    if sys.argv[1:2] == ["--install"]:
        install.main(args=sys.argv[2:], prog_name="podwire-cni --install")
    # CNI_ARGS may contain bytes that are not valid UTF-8. The agent decodes them in the same way.
    env = {**os.environ, "CNI_ARGS": os.environb.get(b"CNI_ARGS", b"").decode(errors="replace")}
    raise SystemExit(standalone(env, sys.stdin.buffer.read(), sys.stdout.buffer))


def _cidrs(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        try:
            ip_network(value)
        except ValueError as err:
            raise click.BadParameter(f"{err}; write it as 10.244.0.0/16", context, option) from None
    return values


@click.command("wiring")
@click.option("--node-name", required=True, help="The name of this machine's Node object.")
@click.option(
    "--kubeconfig",
    type=click.Path(exists=True, dir_okay=False),
    default=None,
    help="The kubeconfig; default: the pod's service account.",
)
@click.option(
    "--run-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/run/podwire"),
    show_default=True,
    help="Socket, leases, conflist and status of this node.",
)
@click.option(
    "--cluster-cidr",
    "cluster_cidrs",
    multiple=True,
    default=("10.244.0.0/16",),
    show_default=True,
    callback=_cidrs,
    help="Addresses to which pods send with their own source address; may be repeated.",
)
@click.option("--uplink", default="eth0", show_default=True, help="The link to the other nodes; its MTU is the pods'.")
@click.option(
    "--mtu", type=click.IntRange(0, 65535), default=0, help="MTU of pods; 0: the uplink's, less a tunnel's header."
)
@click.option(
    "--conf-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Where container runtimes look for CNI configurations. [default: RUN_DIR/cni/net.d]",
)
@click.option(
    "--anti-spoofing/--no-anti-spoofing",
    default=True,
    show_default=True,
    help="Drop what a pod sends from an address or MAC that is not its own.",
)
@click.option(
    "--encapsulation",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Use VXLAN to nodes that are not on this node's link (auto), to all, or to none.",
)
@click.option(
    "--tunnel-sources",
    type=click.Choice(["cluster", "any"]),
    default="cluster",
    show_default=True,
    help="Sources of packets that leave a tunnel: pods and addresses of the node that sent it (cluster), or any, where "
    "the Service proxy has no detector of local traffic (kube-proxy without clusterCIDR).",
)
@click.option(
    "--no-pod",
    "no_pods",
    multiple=True,
    metavar="PATH",
    help="A network namespace that is no pod's, besides the node's own and that of process 1; may be repeated.",
)
@click.option(
    "--quarantine",
    type=click.FloatRange(0, 86400),
    default=30.0,
    show_default=True,
    help="Seconds that a pod's address rests before another pod gets it, if others are free.",
)
@click.option(
    "--host-local",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Take over the leases of the reference plugins, of /var/lib/cni/networks/NAME. Remove their conflist first.",
)
@click.option(
    "--host-managers/--no-host-managers",
    default=True,
    show_default=True,
    help="Keep systemd-networkd, udev and NetworkManager of this machine off podwire's interfaces (drop-ins in /run).",
)
@click.option(
    "--forward-accept/--no-forward-accept",
    default=True,
    show_default=True,
    help="Append rules for pods to the iptables chain FORWARD while its policy is drop (Docker sets it).",
)
@click.option(
    "--runtime-socket",
    "runtime_sockets",
    type=click.Path(),
    multiple=True,
    default=None,
    help="CRI socket of the node's container runtime; may be repeated. It is asked for its sandboxes when a pod "
    "vanished without a DEL. [default: with --conf-dir the usual ones of containerd, CRI-O, k3s and others; else none]",
)
def command(**settings: Any) -> None:
    """Attach the pods of this node: bridge, veths, routes to other nodes, masquerading. Ends at SIGTERM; pods stay
    attached.
    """
    from podwire_base.kube.errors import ConfigError

    from .agent import WiringConfig, run

    logs.configure(node=settings["node_name"])
    settings["runtime_sockets"] = settings["runtime_sockets"] or None
    try:
        run(WiringConfig(**settings))
    except (ConfigError, OSError) as err:
        raise click.ClickException(str(err)) from err


@click.command("install", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--bin-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/opt/cni/bin"),
    show_default=True,
    help="Where the container runtime looks for plugins (Debian's containerd: /usr/lib/cni).",
)
@click.option(
    "--conf-dir", type=click.Path(file_okay=False, path_type=Path), default=Path("/etc/cni/net.d"), show_default=True
)
@click.option(
    "--run-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/run/podwire"),
    show_default=True,
    help="Where the agent has its socket and its leases.",
)
@click.option(
    "--subnet",
    "subnets",
    multiple=True,
    callback=_cidrs,
    help="Addresses of this node's pods; at most one of each IP family. Writes a configuration that also works "
    "without an agent. Leave it out if `podwire wiring --conf-dir` writes the configuration.",
)
def install(bin_dir: Path, conf_dir: Path, run_dir: Path, subnets: tuple[str, ...]) -> None:
    """Install the plugin, and with --subnet its configuration, where container runtimes look for them."""
    try:
        ranges = range_sets([[{"subnet": subnet}] for subnet in subnets], "--subnet")
    except CNIError as err:
        raise click.UsageError(err.msg.removeprefix("network configuration: ")) from None
    if len({r.subnet.version for s in ranges for r in s}) < len(ranges):
        raise click.UsageError("--subnet: a pod has one address of each IP family, so give one subnet of each")
    for path in conflistfile.install(
        native.client_path(), bin_dir, conf_dir, run_dir, subnets, Path(sys.argv[0]).absolute()
    ):
        click.echo(path)


@click.command("pause-image")
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write. [default: standard output]",
)
@click.option("--name", default=pauseimage.NAME, show_default=True, help="REPOSITORY:TAG of the image.")
def pause_image(output: Path | None, name: str) -> None:
    """Write the pause program as an OCI archive, for `ctr --namespace k8s.io images import`."""
    try:
        archive = pauseimage.build(Path(native.pause_command()[0]).read_bytes(), os.uname().machine, name)
        if output is None and sys.stdout.isatty():
            raise ValueError("the output is binary: name a file with -o, or use a pipe")
    except ValueError as err:
        raise click.ClickException(str(err)) from err
    if output is None:
        sys.stdout.buffer.write(archive)
    else:
        output.write_bytes(archive)


if __name__ == "__main__":
    main()
