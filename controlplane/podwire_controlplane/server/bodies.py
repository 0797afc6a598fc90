"""Reads the bodies of requests: JSON, YAML and protobuf. Large YAML is parsed in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web

from podwire_base.kube import codec, errors, yamltext
from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object

from .. import protobuf
from . import duplicates
from .media import ALL, PROTOBUF, YAML, body_type
from .query import boolean, number

MAX_BODY = 3 * 1024 * 1024
BODY_SECONDS = 60.0
MAX_GRACE = 10**9  # seconds
MAX_MANAGER = 128  # bytes of a field manager's name
_LONG_YAML = 4096  # bytes; more is parsed in a thread: a text of 3 MB takes seconds
_REPEATS = 100_000  # values that aliases repeat
_THREAD = ThreadPoolExecutor(1, "yaml")  # one: so the event loop has at least half of the time
PROPAGATION = ("Background", "Foreground", "Orphan")


async def read(request: web.Request) -> bytes:
    """Return the raw body. Raises a StatusError 413, or 408 for a client that sends too slowly."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError:
        raise StatusError(408, "Timeout", f"the body did not arrive within {BODY_SECONDS:g} s") from None
    except web.HTTPRequestEntityTooLarge:
        raise StatusError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {MAX_BODY}") from None


def media_of(request: web.Request, allowed: tuple[str, ...] = ALL) -> str:
    """Return the media type of the body. Raises a StatusError 415 before anything is read."""
    kind = body_type(request.headers.get("Content-Type", ""))
    if kind not in allowed:
        raise StatusError(
            415,
            "UnsupportedMediaType",
            f"the body of the request was in an unknown format - accepted media types include: {', '.join(allowed)}",
        )
    return kind


async def decode(raw: bytes, kind: str, api_version: str = "", own: str = "", repeated: list[str] | None = None) -> Any:
    """Return a decoded body. kind: its media type. api_version, own: the object that the path expects. repeated: gets a
    text for each key that the body has twice. Raises a StatusError 400.
    """
    if kind == PROTOBUF:
        try:
            return protobuf.builtin().decode(raw, api_version, own)
        except protobuf.BadProtobuf as err:
            raise errors.bad_request(f"the body is not protobuf of Kubernetes: {err}") from None
    if not raw.strip():
        raise errors.bad_request("the body is empty")
    try:
        if kind == YAML:
            if len(raw) > _LONG_YAML:
                return await asyncio.get_running_loop().run_in_executor(_THREAD, _yaml, raw, repeated)
            return _yaml(raw, repeated)
        made = codec.decode(raw)
        if repeated is not None:
            repeated += duplicates.in_json(raw, made)
        return made
    except RecursionError:
        raise errors.bad_request("the body is nested too deeply") from None
    except ValueError as err:
        raise errors.bad_request(f"the body is not {'YAML' if kind == YAML else 'JSON'}: {err}") from err


def _yaml(raw: bytes, repeated: list[str] | None) -> Any:
    made = next(yamltext.documents(raw, repeats=_REPEATS), None)
    if repeated is not None:
        repeated += duplicates.in_yaml(raw)
    return made


def delete_options(body: Any, query: Mapping[str, str]) -> Object:
    """Return a meta/v1 DeleteOptions: the body, or if there is none the query. Raises a StatusError 400 or 422."""
    if not isinstance(body, dict):
        raise errors.bad_request("expected a DeleteOptions object")
    options = body or _from_query(query)
    for field, kinds, what in (
        ("preconditions", dict, "an object"),
        ("dryRun", list, "a list"),
        ("propagationPolicy", str, "a text"),
        ("orphanDependents", bool, "true or false"),
        ("gracePeriodSeconds", int, "a whole number of seconds"),
    ):
        value = options.get(field)
        if value is not None and (not isinstance(value, kinds) or (kinds is int and isinstance(value, bool))):
            raise errors.bad_request(f"DeleteOptions: {field}: expected {what}")
    if (options.get("gracePeriodSeconds") or 0) > MAX_GRACE:
        raise errors.bad_request(f"DeleteOptions: gracePeriodSeconds: expected at most {MAX_GRACE}")
    _check_options("DeleteOptions", options)
    if options.get("propagationPolicy") is not None and options.get("orphanDependents") is not None:
        raise _invalid(
            "DeleteOptions", "propagationPolicy", "is not allowed beside orphanDependents", "FieldValueInvalid"
        )
    policy = options.get("propagationPolicy")
    if policy is not None and policy not in PROPAGATION:
        raise _invalid("DeleteOptions", "propagationPolicy", f"{policy!r}: expected one of {', '.join(PROPAGATION)}")
    return options


def _from_query(query: Mapping[str, str]) -> Object:
    options: Object = {}
    if (grace := number(query, "gracePeriodSeconds")) is not None:
        options["gracePeriodSeconds"] = grace
    if (orphan := boolean(query, "orphanDependents")) is not None:
        options["orphanDependents"] = orphan
    if "propagationPolicy" in query:
        options["propagationPolicy"] = query["propagationPolicy"]
    if query.get("dryRun"):
        options["dryRun"] = [query["dryRun"]]
    return options


def _check_options(kind: str, options: Mapping[str, Any]) -> None:
    for value in options.get("dryRun") or []:
        if value != "All":
            raise _invalid(kind, "dryRun", f"{value!r}: expected All")


def _invalid(kind: str, field: str, message: str, reason: str = "FieldValueNotSupported") -> StatusError:
    return StatusError(
        422,
        "Invalid",
        f'{kind}.meta.k8s.io "" is invalid: {field}: {message}',
        causes=[errors.Cause(field, message, reason)],
        about=("meta.k8s.io", kind),
    )


def manager_of(kind: str, query: Mapping[str, str], agent: str, apply: bool = False) -> str:
    """Return the name of the field manager: the parameter fieldManager, else the client's name, which is the part of
    its User-Agent before the first slash. kind: as of `write_mode`. An apply must name its manager, and only an apply
    can be forced. Raises a StatusError 422.
    """
    name = query.get("fieldManager", "")
    if apply and not name:
        raise _invalid(kind, "fieldManager", "is required for apply patch", "FieldValueRequired")
    if query.get("force") is not None and not apply and kind == "PatchOptions":
        raise _invalid(kind, "force", "may not be specified for non-apply patch", "FieldValueForbidden")
    if len(name.encode(errors="surrogateescape")) > MAX_MANAGER:
        raise _invalid(kind, "fieldManager", f"may not be more than {MAX_MANAGER} bytes", "FieldValueTooLong")
    if not name.isprintable():
        raise _invalid(kind, "fieldManager", "should only contain printable characters", "FieldValueInvalid")
    if name:
        return name
    client = "".join(filter(str.isprintable, agent.partition("/")[0]))
    return client.encode(errors="replace")[:MAX_MANAGER].decode(errors="ignore") or "unknown"


def write_mode(kind: str, query: Mapping[str, str]) -> tuple[bool, str]:
    """Return (dry run, field validation) of a create, update or patch. kind: CreateOptions, UpdateOptions or
    PatchOptions. Raises a StatusError 422.
    """
    dry = query.get("dryRun", "")
    _check_options(kind, {"dryRun": [dry] if dry else []})
    mode = query.get("fieldValidation") or "Warn"
    if mode not in ("Strict", "Warn", "Ignore"):
        raise _invalid(kind, "fieldValidation", f"{mode!r}: expected Ignore, Warn or Strict")
    return dry == "All", mode
