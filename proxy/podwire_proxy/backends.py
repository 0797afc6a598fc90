"""The only file that knows the concrete backends: which there are, and what is asked of all of them. IO.

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
    """Those that belong to one backend alone."""
    return tuple(setting for backend in ALL for setting in backend.settings)


def choices() -> tuple[str, ...]:
    """Names for one setting that chooses backend and variant at once: "nftables", "iptables", "iptables-legacy"."""
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
    ConfigError for none of them."""
    if choice not in choices():
        raise ConfigError(f"backend: {choice!r} is none of {', '.join(choices())}")
    name, _, value = choice.partition("-")
    fields = {setting.field: setting.choices[0] for setting in settings()}
    own = next((setting for setting in choose(name).settings if value in setting.choices), None)
    return {"backend": name, **fields, **({own.field: value} if own else {})}


def check(config: ProxyConfig) -> None:
    """The whole configuration. Raises ConfigError that names the field and what it should be."""
    fields = [("backend", names()), *((setting.field, setting.choices) for setting in settings())]
    for field, known in fields:
        if (value := getattr(config, field)) not in known:
            raise ConfigError(f"{field}: {value!r} is not known; use {' or '.join(map(repr, known))}")
    check_others(config)


def choose(name: str, values: Mapping[str, str] | None = None) -> AnyBackend:
    """values: its own settings, by their fields. Raises KeyError for a name that check() would not let through."""
    return {backend.name: backend for backend in ALL}[name].having(values or {})


def configured(config: ProxyConfig) -> AnyBackend:
    return choose(config.backend, {setting.field: getattr(config, setting.field) for setting in settings()})


def proxier(node: NodeInfo, ns_fd: int | None = None, choice: str = "") -> Proxier:
    """choice: one of `choices`; "": the default."""
    fields = chosen(choice or ALL[0].name)
    return Proxier(choose(fields["backend"], fields), node, ns_fd)


def retire(proxier: Proxier) -> list[str]:
    """Remove what every other backend, and another variant of this one, left; returns what was there. To be called when
    `proxier` has made its first sync: flows that are translated stay so, and new ones find its rules. Raises
    OSError."""
    others = [backend for backend in ALL if backend.name != proxier.backend.name]
    return [
        *(line for backend in others for line in backend.cleanup(proxier.ns_fd, patient=False)),
        *proxier.kernel.retire(),
    ]


def existing(ns_fd: int | None = None) -> list[str]:
    return [line for backend in ALL for line in backend.existing(ns_fd)]


def cleanup(ns_fd: int | None = None) -> list[str]:
    """Remove everything that any backend ever wrote; returns what was there."""
    return [line for backend in ALL for line in backend.cleanup(ns_fd)]


def observe(ns_fd: int | None = None) -> Live | None:
    """The rules that serve Services here. Where two backends are (one is being replaced), the one that is met first."""
    return next((live for backend in ALL if (live := backend.observe(ns_fd)) is not None), None)


def places() -> tuple[str, ...]:
    """Where rules would be."""
    return tuple(backend.place for backend in ALL)


def foreign() -> tuple[Foreign, ...]:
    """Rules of others in the caller's namespace."""
    return tuple(backend.foreign() for backend in ALL)
