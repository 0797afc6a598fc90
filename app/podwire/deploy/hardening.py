"""The sandbox of each systemd unit (systemd.exec(5)): as much as the unit's work allows. Pure.

Every unit loses what none of them needs. The API server and the controllers touch no kernel state, so they keep no
capability but that for a port below 1024. The agent changes the node's network and enters pods' namespaces.

An agent that runs pods itself has none of this: its pods are its descendants, and would inherit the sandbox (a
read-only file system, a system call filter, no_new_privs). MemoryDenyWriteExecute is nowhere: Python's ctypes makes a
callback when it is imported. What pods must not inherit otherwise (limit of open files,
OOM score) the shim resets.
"""

from __future__ import annotations

from collections.abc import Sequence

_ALL = (
    "NoNewPrivileges=yes",
    "LockPersonality=yes",
    "PrivateTmp=yes",
    "ProtectSystem=strict",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "RestrictSUIDSGID=yes",
    "SystemCallArchitectures=native",
    "KeyringMode=private",
)
_NO_KERNEL = (
    "CapabilityBoundingSet=CAP_NET_BIND_SERVICE",
    "PrivateDevices=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectProc=invisible",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",  # the default gateway is in no load balancer pool
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "SystemCallFilter=@system-service",
    "SystemCallFilter=~@privileged @resources",
    "SystemCallFilter=setrlimit prlimit64",  # the role raises its limit of open files
    "SystemCallErrorNumber=EPERM",
    "UMask=0077",
)
# What each is for: pods' interfaces, rules, sysctls; ARP and packets of the load balancer; entering namespaces; port
# 53; files and processes of other users, and giving the DNS servers a user of their own; scheduling of DNS and the
# load balancer; the limit of open files; kernel modules of legacy iptables.
_AGENT_CAPABILITIES = (
    "CAP_NET_ADMIN CAP_NET_RAW CAP_SYS_ADMIN CAP_NET_BIND_SERVICE CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_CHOWN "
    "CAP_FOWNER CAP_KILL CAP_SETUID CAP_SETGID CAP_SETPCAP CAP_SYS_PTRACE CAP_SYS_NICE CAP_SYS_RESOURCE CAP_SYS_MODULE"
)
_AGENT = (
    f"CapabilityBoundingSet={_AGENT_CAPABILITIES}",
    "ProtectHome=read-only",  # a kubeconfig may be there
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET",
    "RestrictNamespaces=net",
    "SystemCallFilter=~@clock @cpu-emulation @debug @obsolete @raw-io @reboot @swap",
    "SystemCallErrorNumber=EPERM",
)
HOMES = ("/home", "/root", "/run/user")


def without_kernel(writes: Sequence[str]) -> list[str]:
    """Return the lines for a unit that only serves or asks the API. writes: the directories that it writes."""
    in_home = any(path == home or path.startswith(home + "/") for path in writes for home in HOMES)
    return [*_ALL, *_NO_KERNEL, *([] if in_home else ["ProtectHome=yes"]), *_writes(writes)]


def agent(writes: Sequence[str], *, pods: bool) -> list[str]:
    """Return the lines for the agent. pods: it runs pods itself."""
    return [] if pods else [*_ALL, *_AGENT, *_writes(writes)]


def _writes(paths: Sequence[str]) -> list[str]:
    if not paths:
        return []
    # "-": a directory that does not exist yet is left out instead of refused
    return ["ReadWritePaths=" + " ".join(f'"-{path}"' if " " in path else f"-{path}" for path in paths)]
