"""The CNI_* variables of a call, checked one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .conf import NAME, addresses, ifname_is_good, mac_address
from .errors import CNIError, ErrorCode
from .types import VERSIONS, Attachment, Call, NetConf

COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
# The variables that each verb needs. Source: the table in section 2 of the CNI spec.
NEEDS = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
}


def _error(msg: str, details: str) -> CNIError:
    return CNIError(ErrorCode.INVALID_ENVIRONMENT, msg, details)


def parse_env(env: Mapping[str, str]) -> Call:
    """Parse the CNI_* variables. Raises CNIError with code 4; its text names the missing or wrong variables."""
    command = env.get("CNI_COMMAND", "")
    if command not in COMMANDS:
        raise _error(f"CNI_COMMAND is {command!r}", "it must be one of " + ", ".join(COMMANDS))
    missing = [v for v in NEEDS.get(command, ()) if not env.get(v)]
    if missing:
        raise _error(
            f"{', '.join(missing)} not set; CNI_COMMAND={command} needs {'them' if len(missing) > 1 else 'it'}",
            "the container runtime sets these variables",
        )
    container, ifname = env.get("CNI_CONTAINERID", ""), env.get("CNI_IFNAME", "")
    if container and not NAME.match(container):
        raise _error(
            f"CNI_CONTAINERID {container!r} is not a container id",
            "it starts with a letter or digit and has letters, digits, '.', '_' and '-' only",
        )
    if ifname and not ifname_is_good(ifname):
        raise _error(
            f"CNI_IFNAME {ifname!r} is not an interface name",
            "it has at most 15 bytes, none of them '/', ':', '%' or a space",
        )
    args = {}
    for part in filter(None, env.get("CNI_ARGS", "").split(";")):
        key, equals, value = part.partition("=")
        if not equals and command == "DEL":
            continue  # the end of a pod needs no arguments
        if not equals:
            raise _error(f"CNI_ARGS: {part!r} is not KEY=VALUE", "write it as KEY=VALUE;KEY=VALUE")
        args[key] = value
    override = env.get("CNI_NETNS_OVERRIDE", "").lower() in ("1", "t", "true")
    return Call(command, Attachment(container, ifname), env.get("CNI_NETNS", ""), args, override)


def check_version(call: Call, conf: NetConf) -> None:
    """Raise CNIError with code 1 if the requested CNI version does not have the verb."""
    since = SINCE.get(call.command)
    if since and VERSIONS.index(conf.version) < VERSIONS.index(since):
        raise CNIError(
            ErrorCode.INCOMPATIBLE_VERSION,
            f"{call.command} does not exist in cniVersion {conf.version}",
            f"set cniVersion to {since} or newer",
        )


def as_asked(conf: NetConf, call: Call) -> NetConf:
    """Returns the configuration with the addresses and the MAC that CNI_ARGS requests (IP=, MAC=). An address or MAC
    that a capability requests takes precedence. Raises CNIError with code 4.
    """
    wanted, mac = call.args.get("IP", ""), call.args.get("MAC", "")
    if not wanted and not mac:
        return conf
    try:
        ips = addresses(wanted.split(",") if wanted else None, "IP")
        own = mac_address(mac, "MAC")
    except CNIError as err:
        raise _error(f"CNI_ARGS: {err.msg.removeprefix('network configuration: ')}", err.details) from None
    return replace(conf, ips=conf.ips or ips, mac=conf.mac or own)
