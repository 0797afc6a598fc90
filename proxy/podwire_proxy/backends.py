"""Lists the backends, and makes the calls that go to all of them. I/O.

No other module knows the concrete backends. A backend is a folder beside this file with a class like backend.Backend,
and an entry in ALL.
"""

from __future__ import annotations

from collections.abc import Mapping

from podwire_base.kube.errors import ConfigError
from podwire_base.role.layout import NewerLayout

from .backend import AnyBackend, Live, Setting
from .config import ProxyConfig
from .config import check as check_others
from .ebpf.backend import Ebpf
from .hostfacts import Foreign
from .iptables.backend import Iptables
from .model import NodeInfo
from .nftables.backend import Nftables
from .proxier import Proxier
from .tally import Counting, Tallies

ALL: tuple[AnyBackend, ...] = (Nftables(), Iptables(), Ebpf())  # the first backend is the default

PLACES = (
    "ebpf_cgroup",
    "ebpf_bpffs",
    "require_ebpf",
    "run_dir",
    "ebpf_bypass",
)  # fields that a backend may read besides its settings


def names() -> tuple[str, ...]:
    return tuple(backend.name for backend in ALL)


def settings() -> tuple[Setting, ...]:
    """Returns the settings that belong to only one backend."""
    return tuple(setting for backend in ALL for setting in backend.settings)


def choices() -> tuple[str, ...]:
    """Returns the names of backend and variant together: "nftables", "iptables", "iptables-legacy"."""
    return tuple(
        choice
        for backend in ALL
        for choice in (
            backend.name,
            *(f"{backend.name}-{value}" for setting in backend.settings for value in setting.choices[1:]),
        )
    )


def chosen(choice: str) -> dict[str, str]:
    """Converts one of `choices` to fields of ProxyConfig. Raises ConfigError for any other name.

    The settings of the other backends have their defaults.
    """
    if choice not in choices():
        raise ConfigError(f"backend: {choice!r} is none of {', '.join(choices())}")
    name, _, value = choice.partition("-")
    fields = {setting.field: setting.choices[0] for setting in settings()}
    own = next((setting for setting in choose(name).settings if value in setting.choices), None)
    return {"backend": name, **fields, **({own.field: value} if own else {})}


def check(config: ProxyConfig) -> None:
    """Checks the whole configuration. Raises ConfigError, which names the field and its valid values."""
    fields = [("backend", names()), *((setting.field, setting.choices) for setting in settings())]
    for field, known in fields:
        if (value := getattr(config, field)) not in known:
            raise ConfigError(f"{field}: {value!r} is not known; use {' or '.join(map(repr, known))}")
    if config.require_ebpf and config.backend != Ebpf.name:
        raise ConfigError(f"require_ebpf: needs backend '{Ebpf.name}', not {config.backend!r}")
    if config.ebpf_bypass and config.backend != Ebpf.name:
        raise ConfigError(f"ebpf_bypass: needs backend '{Ebpf.name}', not {config.backend!r}")
    check_others(config)


def choose(name: str, values: Mapping[str, str] | None = None) -> AnyBackend:
    """Returns a backend by name. values: its settings, by field. Raises KeyError for a name that check() refuses."""
    return {backend.name: backend for backend in ALL}[name].having(values or {})


def configured(config: ProxyConfig) -> AnyBackend:
    fields = [*(setting.field for setting in settings()), *PLACES]
    return choose(config.backend, {field: str(getattr(config, field)) for field in fields})


def proxier(node: NodeInfo, ns_fd: int | None = None, choice: str = "") -> Proxier:
    """Returns a Proxier for the node. choice: one of `choices`; "": the default."""
    fields = chosen(choice or ALL[0].name)
    return Proxier(choose(fields["backend"], fields), node, ns_fd)


def retire(proxier: Proxier) -> list[str]:
    """Removes the rules of every other backend and of other variants of this backend.

    Returns a line for each item found. Raises OSError. Call `retire` after the first sync of `proxier`: translated
    flows then stay translated, and new flows meet the new rules.
    """
    kept = (proxier.backend.name, *proxier.backend.beneath)
    others = [backend for backend in ALL if backend.name not in kept]
    return [
        *(line for backend in others for line in backend.cleanup(proxier.ns_fd, patient=False)),
        *proxier.kernel.retire(),
    ]


def existing(ns_fd: int | None = None) -> list[str]:
    return [line for backend in ALL for line in backend.existing(ns_fd)]


def cleanup(ns_fd: int | None = None) -> list[str]:
    """Removes everything that any backend ever wrote. Returns a line for each item found."""
    return [line for backend in ALL for line in backend.cleanup(ns_fd)]


def refuse_newer(ns_fd: int | None = None) -> None:
    """Raises NewerLayout if a later version of podwire wrote the rules of a backend. Reads only."""
    for backend in ALL:
        if told := backend.newer(ns_fd):
            raise NewerLayout(told)


def downgrade(ns_fd: int | None = None) -> list[str]:
    """Makes the rules of all backends readable for the version before. Returns a line for each item removed."""
    return [line for backend in ALL for line in backend.downgrade(ns_fd)]


def observe(ns_fd: int | None = None) -> Live | None:
    """Returns the rules that serve Services in the namespace; None without rules.

    If the rules of two backends are present (one replaces the other), the result is for the first backend in the list,
    but for a backend that has another beneath.
    """
    above = sorted(ALL, key=lambda backend: not backend.beneath)
    return next((live for backend in above if (live := backend.observe(ns_fd)) is not None), None)


def tallies(ns_fd: int | None = None) -> Tallies | None:
    """Returns what programs of a backend counted in the namespace; None if none of them count there."""
    counting = (backend for backend in ALL if isinstance(backend, Counting))
    return next((found for backend in counting if (found := backend.tallies(ns_fd)) is not None), None)


def places() -> tuple[str, ...]:
    """Returns the names of the places that can have the proxy's rules."""
    return tuple(backend.place for backend in ALL)


def foreign() -> tuple[Foreign, ...]:
    """Returns the rules of other programs in the caller's namespace."""
    return tuple(backend.foreign() for backend in ALL)
