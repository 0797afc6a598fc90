"""The only module that knows the concrete backends: the list of them, and the calls that go to all. I/O.

A backend is a folder beside this file with a class like backend.Backend, and a line in ALL.
"""

from __future__ import annotations

from collections.abc import Mapping

from podwire_base.kube.errors import ConfigError

from .backend import AnyBackend, Live, Setting
from .config import ProxyConfig
from .config import check as check_others
from .hostfacts import Foreign
from .iptables.backend import Iptables
from .model import NodeInfo
from .nftables.backend import Nftables
from .proxier import Proxier

ALL: tuple[AnyBackend, ...] = (Nftables(), Iptables())  # the first one is the default


def names() -> tuple[str, ...]:
    return tuple(backend.name for backend in ALL)


def settings() -> tuple[Setting, ...]:
    """The settings that belong to one backend alone."""
    return tuple(setting for backend in ALL for setting in backend.settings)


def choices() -> tuple[str, ...]:
    """Names that choose backend and variant at once: "nftables", "iptables", "iptables-legacy"."""
    return tuple(
        choice
        for backend in ALL
        for choice in (
            backend.name,
            *(f"{backend.name}-{value}" for setting in backend.settings for value in setting.choices[1:]),
        )
    )


def chosen(choice: str) -> dict[str, str]:
    """One of `choices` as fields of ProxyConfig; the settings of the other backends have their defaults. Raises
    ConfigError for any other name.
    """
    if choice not in choices():
        raise ConfigError(f"backend: {choice!r} is none of {', '.join(choices())}")
    name, _, value = choice.partition("-")
    fields = {setting.field: setting.choices[0] for setting in settings()}
    own = next((setting for setting in choose(name).settings if value in setting.choices), None)
    return {"backend": name, **fields, **({own.field: value} if own else {})}


def check(config: ProxyConfig) -> None:
    """Check the whole configuration. Raises ConfigError that names the field and its valid values."""
    fields = [("backend", names()), *((setting.field, setting.choices) for setting in settings())]
    for field, known in fields:
        if (value := getattr(config, field)) not in known:
            raise ConfigError(f"{field}: {value!r} is not known; use {' or '.join(map(repr, known))}")
    check_others(config)


def choose(name: str, values: Mapping[str, str] | None = None) -> AnyBackend:
    """values: the backend's own settings, by their fields. Raises KeyError for a name that check() would refuse."""
    return {backend.name: backend for backend in ALL}[name].having(values or {})


def configured(config: ProxyConfig) -> AnyBackend:
    return choose(config.backend, {setting.field: getattr(config, setting.field) for setting in settings()})


def proxier(node: NodeInfo, ns_fd: int | None = None, choice: str = "") -> Proxier:
    """choice: one of `choices`; "": the default."""
    fields = chosen(choice or ALL[0].name)
    return Proxier(choose(fields["backend"], fields), node, ns_fd)


def retire(proxier: Proxier) -> list[str]:
    """Remove the rules of every other backend, and of other variants of this one; returns what was found. Call it after
    the first sync of `proxier`: translated flows stay translated, and new ones find its rules. Raises OSError.
    """
    others = [backend for backend in ALL if backend.name != proxier.backend.name]
    return [
        *(line for backend in others for line in backend.cleanup(proxier.ns_fd, patient=False)),
        *proxier.kernel.retire(),
    ]


def existing(ns_fd: int | None = None) -> list[str]:
    return [line for backend in ALL for line in backend.existing(ns_fd)]


def cleanup(ns_fd: int | None = None) -> list[str]:
    """Remove everything that any backend ever wrote; returns what was found."""
    return [line for backend in ALL for line in backend.cleanup(ns_fd)]


def observe(ns_fd: int | None = None) -> Live | None:
    """The rules that serve Services here. If two backends are present (one replaces the other), the first one in the
    list.
    """
    return next((live for backend in ALL if (live := backend.observe(ns_fd)) is not None), None)


def places() -> tuple[str, ...]:
    """Where rules would be."""
    return tuple(backend.place for backend in ALL)


def foreign() -> tuple[Foreign, ...]:
    """Rules of other programs in the caller's namespace."""
    return tuple(backend.foreign() for backend in ALL)
