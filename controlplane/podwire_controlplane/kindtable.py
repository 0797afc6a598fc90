"""The page docs/api.md: which kinds the API server serves, with which verbs. Pure: made from a Registry."""

from __future__ import annotations

from collections.abc import Iterable

from podwire_base.kube.registry import VERBS, Registry, Resource

from .server.streams import SUBS

INTRODUCTION = """# The API, kind by kind

Made from the registry by `python -m podwire_controlplane.testing.kindpage`; a test compares it. The rows are those that
kube-apiserver 1.36 lists in its discovery, in stable versions. Custom resources come with their definitions. What
differs from kube-apiserver is in [controlplane/README.md](../controlplane/README.md).

A dot stands for a verb that the kind has. Subresources are written with their verbs, where these are not get, patch
and update. Those in italics check what they are asked and then answer that there is no way to the node.
"""
_SHORT = ("get", "patch", "update")


def _subs(resource: Resource) -> str:
    parts = []
    for sub in resource.subs:
        verbs = "" if sorted(sub.verbs) == sorted(_SHORT) else f" ({', '.join(sub.verbs)})"
        parts.append(f"*{sub.name}*{verbs}" if sub.name in SUBS else f"{sub.name}{verbs}")
    return ", ".join(parts)


def _row(resource: Resource) -> Iterable[str]:
    yield resource.kind
    yield f"`{', '.join((resource.plural, *resource.short))}`"
    yield "namespace" if resource.namespaced else "cluster"
    for verb in VERBS:
        yield "•" if verb in resource.verbs else ""
    yield _subs(resource)


def page(registry: Registry) -> str:
    out = [INTRODUCTION]
    for group, version in registry.groups:
        head = ("kind", "names", "scope", *VERBS, "subresources")
        out += [
            f"## {group}/{version}\n" if group else f"## {version}\n",
            f"| {' | '.join(head)} |",
            "|---" * len(head) + "|",
        ]
        rows = [r for r in registry.resources if (r.group, r.version) == (group, version)]
        out += [f"| {' | '.join(_row(row))} |" for row in sorted(rows, key=lambda r: r.kind)]
        out.append("")
    return "\n".join(out)
