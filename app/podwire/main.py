"""The `podwire` command. It imports a subcommand's module only when the user calls it, so `podwire --help` is fast."""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import Any

import click

# name -> (module, attribute, help): the composition root of the command line.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "up": ("podwire.commands.cluster", "up", "Start a cluster on this machine, in network namespaces."),
    "down": ("podwire.commands.cluster", "down", "Take the cluster down and remove everything of it."),
    "status": ("podwire.commands.status", "status", "Nodes, pods, Services, and where each role stands."),
    "demo": ("podwire.commands.demo", "demo", "Start a cluster, prove each behaviour with real traffic, end it."),
    "check": ("podwire.commands.check", "check", "Check the network of any cluster with probe pods."),
    "apply": ("podwire.commands.objects", "apply", "Create or change objects from YAML files."),
    "get": ("podwire.commands.objects", "get", "Show objects."),
    "delete": ("podwire.commands.objects", "delete", "Delete objects."),
    "exec": ("podwire.commands.pods", "exec_", "Run a command in a pod of the cluster on this machine."),
    "logs": ("podwire.commands.pods", "logs", "Show what a container wrote."),
    "publish": ("podwire.commands.publish", "publish", "Services at ports of this machine."),
    "tunnel": ("podwire.commands.publish", "tunnel", "Every LoadBalancer Service at a free port of this machine."),
    "open": ("podwire.commands.publish", "open_", "Print the URL of a Service for a browser on this machine."),
    "explain": ("podwire.commands.explain", "explain_", "Say what becomes of a packet, step by step, and why."),
    "drops": ("podwire.commands.drops", "drops", "Packets that the kernel drops, with the reason, as they happen."),
    "node-walk": ("podwire.commands.explain", "node_walk", "Answer `podwire explain` about this node."),
    "flows": ("podwire.commands.flows", "flows", "Who connects to whom, what failed, and why."),
    "ui": ("podwire.commands.ui", "ui", "The same on a page, live."),
    "policy": ("podwire.commands.policy", "group", "Network policies: list, a pod's rules, what becomes of a packet."),
    "nft": ("podwire.commands.nft", "group", "The ruleset of a node, with the Service or pod of each element."),
    "report": ("podwire.commands.report", "report", "Collect what a bug report needs into one file."),
    "cleanup": ("podwire.commands.explain", "cleanup", "Remove the Service proxy's rules from a node."),
    "node": ("podwire.commands.pods", "node", "Run a command in a node of the cluster on this machine."),
    "list": ("podwire.commands.cluster", "list_", "The clusters on this machine."),
    "nodes": ("podwire.commands.nodes", "nodes", "List, add, stop, start, cordon and remove nodes of a cluster."),
    "kubeconfig": ("podwire.commands.cluster", "kubeconfig", "Print or merge the cluster's kubeconfig; add users."),
    "completion": ("podwire.commands.completion", "completion", "Print the script that completes words in a shell."),
    "init": ("podwire.commands.join", "init", "Make a cluster's certificates on its first machine."),
    "join": ("podwire.commands.join", "join", "Make this machine a node of a cluster."),
    "token": ("podwire.commands.join", "token", "Make a join token, for any new node or for one."),
    "revoke": ("podwire.commands.join", "revoke", "Refuse the certificates of a node at once."),
    "store": ("podwire.commands.store", "store", "Back the cluster's objects up, and restore them."),
    "install": ("podwire.commands.install", "install", "Put podwire on a node without images."),
    "uninstall": ("podwire.commands.install", "uninstall", "Remove podwire from the node."),
    "image": ("podwire.commands.image", "image", "Build images; load, pull, list and remove those of a cri cluster."),
    "agent": ("podwire.commands.parts", "agent", "All roles of one node, supervised."),
    "apiserver": ("podwire.commands.parts", "apiserver", "The API server alone."),
    "controllers": ("podwire.commands.parts", "controllers", "Controllers and scheduler alone."),
    "wiring": ("podwire_cni.main", "command", "The pod wiring role of one node alone."),
    "pause-image": ("podwire_cni.main", "pause_image", "Write the pause program as an OCI image archive."),
    "proxy": ("podwire_proxy.main", "command", "The Service proxy role of one node alone."),
    "dns": ("podwire_dns.main", "command", "The cluster DNS role of one node alone."),
    "lb": ("podwire_proxy.l2.announcer", "command", "The responder for load balancers' addresses of one node alone."),
}


# What people try, by other tools' habits -> what does it. {name}: the word itself.
_KUBECTL = "`kubectl {name}` does it with this cluster: `export KUBECONFIG=$(podwire kubeconfig)`"
INSTEAD: dict[str, str] = {
    **dict.fromkeys(
        (
            *("annotate", "api-resources", "attach", "autoscale", "cp", "create", "debug", "describe", "diff", "edit"),
            *(
                "events",
                "expose",
                "label",
                "patch",
                "replace",
                "rollout",
                "run",
                "scale",
                "set",
                "taint",
                "top",
                "wait",
            ),
        ),
        _KUBECTL,
    ),
    "port-forward": "`podwire publish 8080:SERVICE:80` does it, for Services",
    "service": "`podwire open SERVICE` prints a Service's URL, `podwire get services` lists them",
    "ps": "`podwire get pods -A` lists pods, `podwire status` what runs on the nodes",
    "pods": "`podwire get pods` lists them",
    "services": "`podwire get services` lists them",
    "ssh": "`podwire node node1 -- COMMAND` runs a command in a node, `podwire exec POD -- COMMAND` in a pod",
    "shell": "`podwire exec -it POD -- sh` does it, and `podwire node node1` for a node",
    "start": "`podwire up` does it",
    "stop": "`podwire down` does it, and removes the cluster",
    "clusters": "`podwire list` does it",
    "test": "`podwire check` does it",
    "trace": "`podwire explain SRC DST:PORT` does it",
    "version": "`podwire --version` does it",
    "help": "`podwire --help` does it, and `podwire COMMAND --help`",
    **dict.fromkeys(("build", "pull", "images"), "`podwire image --help` lists what it does with images"),
    "load": "`podwire image load FILE` does it, in a cluster with the runtime cri",
}


def instead(name: str) -> str:
    """Return what to do for a command that does not exist."""
    if name in INSTEAD:
        return f"podwire has no command {name!r}; {INSTEAD[name].format(name=name)}"
    near = difflib.get_close_matches(name, COMMANDS, 1)
    return f"podwire has no command {name!r}; " + (
        f"did you mean `podwire {near[0]}`?" if near else "`podwire --help` lists the commands"
    )


class LazyGroup(click.Group):
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(instead(args[0]))
        return super().resolve_command(ctx, args)

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[name]
        found: click.Command = getattr(importlib.import_module(module), attribute)
        return found

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="podwire")
def cli(**_: Any) -> None:
    """The whole network of a Kubernetes cluster: pods, Services and DNS."""


if __name__ == "__main__":
    sys.exit(cli())
