"""Settings of a node's agent, with the same names in flags, environment variables, a ConfigMap and
/etc/podwire/agent.env. This module does no I/O.

The flag `--cluster-cidr` has the variable PODWIRE_CLUSTER_CIDR. Spaces separate the items of a list. `--set
wiring.mtu=1400` or PODWIRE_SET="wiring.mtu=1400 proxy.masquerade_all=true" sets a field of a role's Config that has no
flag.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
PREFIX = "PODWIRE_"
ROLES = ("wiring", "proxy", "dns", "lb")  # that run where none is named
CHOICES = ("policy", *ROLES)
SETTABLE = (*CHOICES, "observe")  # whose fields `set` may set
JOINED = "podwire.io/joined"  # the mark in kubeconfigs of `podwire join`: the agent renews their certificates
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class BadSetting(ValueError):
    """A setting is invalid. The message names the setting and the accepted values."""


def variable(flag: str) -> str:
    """Return the environment variable of a flag: "cluster-cidr" -> "PODWIRE_CLUSTER_CIDR"."""
    return PREFIX + flag.strip("-").replace("-", "_").upper()


def assignments(texts: Iterable[str]) -> tuple[tuple[str, str, str], ...]:
    """Parse --set values: ("wiring.mtu=1400",) -> (("wiring", "mtu", "1400"),). Raises BadSetting."""
    found = []
    for text in texts:
        left, equals, value = text.partition("=")
        role, dot, name = left.partition(".")
        if not (equals and dot and name) or role not in SETTABLE:
            raise BadSetting(f"set: {text!r} is not ROLE.FIELD=VALUE with ROLE one of {', '.join(SETTABLE)}")
        found.append((role, name.replace("-", "_"), value))
    return tuple(found)


def _parse(text: str, kind: Any, where: str) -> Any:
    if isinstance(kind, types.UnionType):
        options = [k for k in typing.get_args(kind) if k is not type(None)]
        return None if text == "" else _parse(text, options[0], where)
    if typing.get_origin(kind) is typing.Literal:
        if text not in typing.get_args(kind):
            raise BadSetting(f"{where}: {text!r} is none of {', '.join(map(str, typing.get_args(kind)))}")
        return text
    if kind is bool:
        if text.lower() not in _WORDS:
            raise BadSetting(f"{where}: {text!r} is neither true nor false")
        return _WORDS[text.lower()]
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise BadSetting(f"{where}: {text!r} is not a number") from None
    if kind in (str, Path):
        return kind(text)
    if kind == tuple[str, ...]:
        return tuple(item for item in text.split(",") if item)
    raise BadSetting(f"{where}: cannot be set with `set`")


def override(config: T, role: str, sets: Iterable[tuple[str, str, str]]) -> T:
    """Return a copy of `config` (a dataclass) with the values that `sets` gives for `role`. Commas separate the items
    of a list. Raises BadSetting.
    """
    assert is_dataclass(config)
    assert not isinstance(config, type)
    kinds, known = typing.get_type_hints(type(config)), {field.name for field in fields(config)}
    changed = {}
    for whose, name, text in sets:
        if whose != role:
            continue
        if name not in known:
            raise BadSetting(f"set: {role}.{name}: there is no such field; fields are {', '.join(sorted(known))}")
        changed[name] = _parse(text, kinds[name], f"set: {role}.{name}")
    try:
        return replace(config, **changed)
    except ValueError as err:  # the message of an error from the Config begins with the field's name
        raise BadSetting(f"set: {role}.{err}") from None


def chosen(roles: Iterable[str]) -> tuple[str, ...]:
    """Return the chosen roles without duplicates, in the order of CHOICES. Raises BadSetting for an unknown role or no
    role.
    """
    wanted = set(roles)
    if strange := wanted - set(CHOICES):
        raise BadSetting(f"role: {', '.join(sorted(strange))}: must be of {', '.join(CHOICES)}")
    if not wanted:
        raise BadSetting(f"role: no role is chosen; choose from {', '.join(CHOICES)}")
    return tuple(role for role in CHOICES if role in wanted)


def nameservers(resolv_conf: str, own: Iterable[str]) -> tuple[str, ...]:
    """Return the nameservers in the text of a resolv.conf(5), in order, without duplicates and without the addresses in
    `own`.
    """
    rows = [line.split() for line in resolv_conf.splitlines()]
    found = [row[1] for row in rows if len(row) > 1 and row[0] == "nameserver"]
    return tuple(dict.fromkeys(address for address in found if address not in set(own)))
