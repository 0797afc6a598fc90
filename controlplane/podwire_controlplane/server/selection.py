"""The selection of objects for lists and watches: labels and fields. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from podwire_base.kube import codec
from podwire_base.kube.errors import StatusError, bad_request
from podwire_base.kube.meta import Object, name, namespace
from podwire_base.kube.registry import Resource
from podwire_base.kube.selectors import Predicate, field_terms, label_needles, label_query

from .. import convert, fieldlabels

_FALSE = ("spec.hostNetwork", "spec.unschedulable")  # booleans that are false if they are not there
_TEXTS = ("metadata.name", "metadata.namespace", "spec.nodeName", "spec.schedulerName")
_ZERO = {"status.replicas": "replicas", "status.successful": "succeeded"}


def value(obj: Object, path: str) -> str:
    """Return the value of a known field as text."""
    if path in _ZERO:
        status = obj.get("status")
        return str((status.get(_ZERO[path]) if isinstance(status, dict) else None) or 0)
    if path == "source":
        source = obj.get("source")
        found: Any = (source.get("component") if isinstance(source, dict) else "") or obj.get("reportingComponent")
        return str(found or "")
    if path == "status.podIPs":
        rows = (obj.get("status") or {}).get("podIPs") or []
        return ",".join(str(row.get("ip", "")) for row in rows)
    found = obj
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    if path in _FALSE or isinstance(found, bool):
        return "true" if found else "false"
    return "" if found is None else str(found)


@dataclass(frozen=True, slots=True)
class Selection:
    """What a client selects. one: the only name that can match, "" if several can. matches: None if every object
    matches. needles: texts that the stored form of each object that matches contains; what lacks one is not decoded.
    """

    one: str = ""
    matches: Predicate | None = None
    needles: tuple[bytes, ...] = ()
    resource: Resource | None = None  # where objects are stored in the form of another version

    @property
    def everything(self) -> bool:
        return self.matches is None

    def takes(self, stored: bytes) -> bool:
        """Whether a stored object matches."""
        if self.matches is None:
            return True
        for needle in self.needles:
            if needle not in stored:
                return False
        obj = codec.decode(stored)
        return bool(self.matches(obj if self.resource is None else convert.served(self.resource, obj)))


def selection(resource: Resource, labels: str, fields: str) -> Selection:
    """Parse both selectors. Raises a StatusError 400."""
    terms = field_terms(fields)
    for path, _, _ in terms:
        if path not in fieldlabels.of(resource):
            raise _unsupported(resource, path)
    label = label_query(labels)
    needles = label_needles(labels) + tuple(
        codec.dumps(path.rpartition(".")[2]) + b":" + codec.dumps(want)
        for path, want, negate in terms
        if path in _TEXTS and want and not negate
    )
    tests = [_test(path, want, negate) for path, want, negate in terms]
    one = next((want for path, want, negate in terms if path == "metadata.name" and not negate), "")
    if label is not None:
        tests.append(label)
    converted = resource if convert.differs(resource) else None
    if len(tests) <= 1:
        return Selection(one, tests[0] if tests else None, needles, converted)
    return Selection(one, lambda obj: all(test(obj) for test in tests), needles, converted)


def _test(path: str, want: str, negate: bool) -> Callable[[Object], bool]:
    if path == "metadata.name":
        return lambda obj: (name(obj) == want) is not negate
    if path == "metadata.namespace":
        return lambda obj: (namespace(obj) == want) is not negate
    return lambda obj: (value(obj, path) == want) is not negate


def _unsupported(resource: Resource, path: str) -> StatusError:
    own = ", ".join(sorted(fieldlabels.of(resource)))
    return bad_request(f"field label not supported: {path[:200]!r}; {resource.qualified} are selected by {own}")
