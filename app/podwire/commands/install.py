"""`podwire install` makes a machine a node with podwire. `podwire uninstall` reverts that."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from ..deploy import apply, plan
from ..settings import CHOICES, PREFIX
from .common import Failed

root_option = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=Path("/"),
    show_default=True,
    help="Where the machine's files are.",
)
conf_option = click.option(
    "--cni-conf-dir",
    envvar="PODWIRE_CNI_CONF_DIR",
    default="/etc/cni/net.d",
    show_default=True,
    help="Where container runtimes look for CNI configurations.",
)
bin_option = click.option(
    "--cni-bin-dir",
    envvar="PODWIRE_CNI_BIN_DIR",
    default="/opt/cni/bin",
    show_default=True,
    help="Where container runtimes look for plugins (Debian's containerd: /usr/lib/cni).",
)
dry_option = click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing.")
NOT_CONFIG = ("only_check", "log_json", "api_servers", "watchdog")  # settings of the process, not of its roles


def _carry_out(root: Path, steps: Sequence[plan.Step], *, dry: bool, done: str) -> None:
    if dry:
        for step in steps:
            click.echo(step)
    elif steps and root == Path("/") and os.geteuid():
        raise Failed("this needs root: the machine's files are root's")
    else:
        try:
            apply.do(root, steps, click.echo)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Failed(f"{error}; fix that and run the command again; it continues where it stopped") from error
    if not steps:
        click.echo(done)


def refused(settings: Mapping[str, str]) -> str:
    """Return the reason why `podwire agent` would refuse these settings, "" if it would accept them. This check does
    not read the files that the settings name.
    """
    from ..settings import BadSetting
    from .parts import agent, agent_config

    words, known = [], {f"{PREFIX}{name}" for name in ("TAKE_OVER", "CNI_BIN_DIR", "SERVICE_ACCOUNT_DIR")}
    for option in (each for each in agent.params if isinstance(each, click.Option)):
        for name in [option.envvar] if isinstance(option.envvar, str) else option.envvar or ():
            known.add(name)
            if value := settings.get(name):
                words += [(name, option, value)]
    if strange := [name for name, value in settings.items() if value and name.startswith(PREFIX) and name not in known]:
        return f"--setting {strange[0]}: `podwire agent` has no such setting; its --help names them"
    line = []
    for name, option, value in words:
        if not option.is_flag:
            line += [f"{option.opts[0]}={item}" for item in (value.split() if option.multiple else [value])]
            continue
        try:
            line += option.opts[:1] if click.BOOL.convert(value, option, None) else option.secondary_opts[:1]
        except click.BadParameter as error:
            return f"--setting {name}: {error.message}"
    try:
        params = agent.make_context("podwire agent", line).params
        agent_config(**{name: params[name] for name in params if name not in NOT_CONFIG})
    except click.UsageError as error:
        return error.format_message()
    except BadSetting as error:
        return str(error)
    return ""


@click.command()
@root_option
@click.option(
    "--only",
    "parts",
    multiple=True,
    type=click.Choice(plan.PARTS),
    default=("plugin", "agent"),
    show_default=True,
    help="What to install; repeatable.",
)
@click.option("--kubeconfig", help="For the agent; /etc/kubernetes/kubelet.conf with the rights of docs/migration.md.")
@click.option("--address", help="This node's InternalIP.")
@click.option("--node-name", help="Name of this node's Node object; default: the host's name.")
@click.option(
    "--role", "roles", multiple=True, type=click.Choice(CHOICES), help="Roles of the agent; default: all but policy."
)
@click.option("--pods", is_flag=True, help="The agent also runs pods (for a cluster without kubelets).")
@click.option(
    "--setting",
    "settings",
    multiple=True,
    metavar="PODWIRE_NAME=VALUE",
    help="Any other setting of `podwire agent --help`; repeatable. An empty value removes the setting.",
)
@click.option("--listen", default="", metavar="ADDRESS:PORT", help="Of the API server, for --only control-plane.")
@click.option(
    "--data-dir",
    default="/var/lib/podwire",
    show_default=True,
    help="The control plane's data directory, made by `podwire init`.",
)
@bin_option
@conf_option
@click.option(
    "--take-over/--no-take-over",
    envvar="PODWIRE_TAKE_OVER",
    default=False,
    show_default=True,
    help="Put other plugins' configurations aside; uninstall puts them back. [PODWIRE_TAKE_OVER]",
)
@click.option(
    "--host-managers/--no-host-managers",
    envvar="PODWIRE_HOST_MANAGERS",
    default=True,
    show_default=True,
    help="Whether --only managers writes drop-ins for networkd, udev and NetworkManager. [PODWIRE_HOST_MANAGERS]",
)
@click.option(
    "--program",
    default=str(Path(sys.prefix) / "bin" / "podwire"),
    show_default=True,
    help="The podwire command, as units call it.",
)
@dry_option
def install(
    root: Path,
    parts: tuple[str, ...],
    kubeconfig: str | None,
    address: str | None,
    node_name: str | None,
    roles: tuple[str, ...],
    pods: bool,
    settings: tuple[str, ...],
    listen: str,
    data_dir: str,
    cni_bin_dir: str,
    cni_conf_dir: str,
    take_over: bool,
    host_managers: bool,
    program: str,
    dry_run: bool,
) -> None:
    """Put podwire on a node without images: the CNI plugin, settings in /etc/podwire/agent.env, systemd units.

    It can be repeated: it writes only what differs and keeps existing settings. It reports what will keep the node from
    working.
    """
    from podwire_cni import native

    given = {
        f"{PREFIX}{name}": value
        for name, value in (
            ("KUBECONFIG", kubeconfig),
            ("ADDRESS", address),
            ("NODE_NAME", node_name),
            ("ROLE", " ".join(roles)),
            ("PODS", "true" if pods else None),
        )
        if value
    }
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise Failed(f"--setting {text!r}: expected PODWIRE_NAME=VALUE")
        given[name] = value
    try:
        wanted = plan.Wanted(
            parts,
            program,
            native.client_path().read_bytes(),
            given,
            cni_bin_dir,
            cni_conf_dir,
            data_dir,
            listen,
            take_over,
            host_managers,
        )
    except plan.BadInstall as error:
        raise Failed(str(error)) from error
    facts = apply.look(root, plan.paths(wanted), cni_conf_dir)
    text = facts.files.get(plan.SETTINGS, b"").decode(errors="replace")
    named = plan.read_settings(plan.merged_settings(text, given, {}))
    problem = refused(named) if "agent" in parts else ""
    if problem and problem != refused(plan.read_settings(text)):
        raise Failed(problem)
    there = (root / named.get(f"{PREFIX}KUBECONFIG", "").lstrip("/")).is_file()
    problems = plan.checks(wanted, facts, there)
    if problem:
        problems.append(f"{problem} (in {plan.SETTINGS}): the agent will not start")
    for problem in problems:
        click.echo(f"warning: {problem}", err=True)
    _carry_out(root, plan.install(wanted, facts), dry=dry_run, done="everything is installed already")


@click.command()
@root_option
@bin_option
@conf_option
@click.option(
    "--kernel/--no-kernel", default=None, help="Also remove podwire's state from the kernel. [default: with --root /]"
)
@click.option(
    "--dns-address", envvar="PODWIRE_DNS_ADDRESS", help="The cluster DNS address; default: as in the settings."
)
@click.option("--purge", is_flag=True, help="Remove the settings too.")
@dry_option
def uninstall(
    root: Path,
    cni_bin_dir: str,
    cni_conf_dir: str,
    kernel: bool | None,
    dns_address: str | None,
    purge: bool,
    dry_run: bool,
) -> None:
    """Remove what `podwire install` put on this node, and restore the files that it put aside. Drain the node first."""
    facts = apply.look_for_uninstall(root, cni_bin_dir, cni_conf_dir)
    wanted = root == Path("/") if kernel is None else kernel
    steps = plan.uninstall(
        facts,
        cni_bin_dir=cni_bin_dir,
        cni_conf_dir=cni_conf_dir,
        kernel=wanted,
        purge=purge,
        dns_address=dns_address or "",
    )
    _carry_out(root, steps, dry=dry_run, done="nothing of podwire is installed")
