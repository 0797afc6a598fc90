"""The query of a request and its rules. Pure. Sources: meta/v1 ListOptions, and the validation of ListOptions in
apimachinery (pkg/apis/meta/internalversion/validation). What kube-apiserver 1.36 answers decides where they differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl

from podwire_base.kube import errors
from podwire_base.kube.errors import Cause, StatusError

MATCH = "resourceVersionMatch"
_MATCHES = ("Exact", "NotOlderThan")
_FORBIDDEN, _UNSUPPORTED = "FieldValueForbidden", "FieldValueNotSupported"
MAX_FIELDS = 1000


def parse(text: str) -> dict[str, str]:
    """Return the first value of each parameter. Raises a StatusError 400 for more than MAX_FIELDS parameters."""
    found: dict[str, str] = {}
    if text:
        try:
            pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="surrogateescape")
        except ValueError as err:
            raise errors.bad_request(f"query: {err}") from None
        for field, value in pairs:
            found.setdefault(field, value)
    return found


def boolean(query: Mapping[str, str], field: str) -> bool | None:
    """Return a parameter as kube-apiserver converts it: everything but "false" (in any case) and "0" is true, also an
    empty value. None if the parameter is unset.
    """
    value = query.get(field)
    return None if value is None else value.lower() != "false" and value != "0"


def number(query: Mapping[str, str], field: str) -> int | None:
    """Return a parameter as a decimal number of 64 bits, None if it is unset. Raises a StatusError 400."""
    text = query.get(field, "")
    if not text:
        return None
    if not re.fullmatch(r"[+-]?[0-9]{1,19}", text, re.ASCII) or not -(2**63) <= int(text) < 2**63:
        raise errors.bad_request(f"{field}: {text[:40]!r} is not a decimal number of 64 bits")
    return int(text)


class BadVersion(ValueError):
    """A resourceVersion is not a decimal number. kube-apiserver answers 400 for a list, else 500."""


def version(text: str) -> int:
    """Return a resourceVersion as a number, 0 for "". Raises BadVersion."""
    if not text:
        return 0
    if not re.fullmatch(r"[0-9]{1,20}", text, re.ASCII) or int(text) >= 2**64:
        raise BadVersion(f"resourceVersion: {text[:40]!r} is not a decimal number")
    return int(text)


@dataclass(frozen=True, slots=True)
class ListOptions:
    """The options of a list or watch. send_initial: None if unset. See meta/v1 ListOptions."""

    watch: bool = False
    version: str = ""
    match: str = ""
    limit: int = 0
    token: str = ""
    labels: str = ""
    fields: str = ""
    timeout: int | None = None
    bookmarks: bool = False
    send_initial: bool | None = None

    @property
    def legacy_exact(self) -> bool:
        """Whether a limit makes the version exact: a version without a match, but not version 0."""
        return bool(self.limit > 0 and self.version not in ("", "0") and not self.match)


def list_options(query: Mapping[str, str]) -> ListOptions:
    """Return the options of a list or watch, validated and with defaults. Raises a StatusError 400 or 422."""
    made = ListOptions(
        watch=bool(boolean(query, "watch")),
        version=query.get("resourceVersion", ""),
        match=query.get(MATCH, ""),
        limit=max(0, number(query, "limit") or 0),
        token=query.get("continue", ""),
        labels=query.get("labelSelector", ""),
        fields=query.get("fieldSelector", ""),
        timeout=number(query, "timeoutSeconds"),
        bookmarks=bool(boolean(query, "allowWatchBookmarks")),
        send_initial=boolean(query, "sendInitialEvents"),
    )
    if made.watch and made.send_initial is None and not made.match and made.version in ("", "0"):
        made = replace(made, send_initial=True, match="NotOlderThan")  # a watch from no version begins with the present
    if causes := (_watch_causes(made) if made.watch else _list_causes(made)):
        rows = "; ".join(f"{c.field}: {c.message}" for c in causes)
        raise StatusError(
            422,
            "Invalid",
            f'ListOptions.meta.k8s.io "" is invalid: {rows}',
            causes=causes,
            about=("meta.k8s.io", "ListOptions"),
        )
    return made


def _list_causes(options: ListOptions) -> list[Cause]:
    causes = []
    if options.match:
        if not options.version:
            causes.append(Cause(MATCH, "is forbidden unless resourceVersion is provided", _FORBIDDEN))
        if options.token:
            causes.append(Cause(MATCH, "is forbidden when continue is provided", _FORBIDDEN))
        if options.match not in _MATCHES:
            causes.append(Cause(MATCH, f"{options.match!r}: expected Exact, NotOlderThan or nothing", _UNSUPPORTED))
        if options.match == "Exact" and options.version == "0":
            causes.append(Cause(MATCH, 'Exact is forbidden for resourceVersion "0"', _FORBIDDEN))
    if options.send_initial is not None:
        causes.append(Cause("sendInitialEvents", "is forbidden for a list", _FORBIDDEN))
    return causes


def _watch_causes(options: ListOptions) -> list[Cause]:
    causes = []
    if options.send_initial is not None and options.match != "NotOlderThan":
        causes.append(Cause(MATCH, "sendInitialEvents needs resourceVersionMatch=NotOlderThan", _FORBIDDEN))
    if options.match:
        if options.send_initial is None:
            causes.append(Cause(MATCH, "is forbidden for a watch unless sendInitialEvents is provided", _FORBIDDEN))
        if options.match != "NotOlderThan":
            causes.append(Cause(MATCH, f"{options.match!r}: expected NotOlderThan", _UNSUPPORTED))
        if options.token:
            causes.append(Cause(MATCH, "is forbidden when continue is provided", _FORBIDDEN))
    return causes
