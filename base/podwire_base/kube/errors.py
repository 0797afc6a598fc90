"""API errors as Kubernetes Status objects: code, reason, message and causes (meta/v1 Status); and ConfigError."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .meta import Object
from .registry import Resource


@dataclass(frozen=True, slots=True)
class Cause:
    """One wrong field. reason: FieldValueInvalid, FieldValueRequired, FieldValueDuplicate, FieldValueNotSupported
    ..."""

    field: str
    message: str
    reason: str = "FieldValueInvalid"


class ConfigError(Exception):
    """A kubeconfig or setting is invalid. The text names the file and the field."""


class ApiError(Exception):
    """A request to the API server failed: Unreachable, Refused or BadAnswer. Any other exception of the client is a bug
    of podwire.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Unreachable(ApiError):
    """No answer: the connection was refused, reset or timed out, or the peer's certificate is not trusted."""


class BadAnswer(ApiError):
    """The answer is not a valid answer of the API: for example a list without resourceVersion, or invalid JSON."""


class Refused(ApiError):
    """The server answered with an error. `code` is the HTTP status, `reason` the Status reason (NotFound, Conflict
    ...). body: the Status, {} if the answer has none. retry_after: the seconds that the server requests to wait, 0 if
    it requests none.
    """

    def __init__(
        self, code: int, reason: str, message: str, body: Object | None = None, retry_after: float = 0
    ) -> None:
        super().__init__(message)
        self.code, self.reason, self.body, self.retry_after = code, reason, body or {}, retry_after


class StatusError(Exception):
    """An error answer of our API server. Code below the HTTP handlers raises it, and the server answers with `code` and
    `body()`.
    """

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        resource: Resource | None = None,
        name: str = "",
        causes: Sequence[Cause] = (),
        retry_after: int = 0,
        about: tuple[str, str] = ("", ""),
        again: str = "",
        warnings: Sequence[str] = (),
    ) -> None:
        """about: (group, kind) for the details, where the error is not about `resource`. again: a continue token with
        which the client can go on.
        """
        super().__init__(message)
        self.warnings = tuple(warnings)  # sent with the answer, as with an answer that accepts
        self.code, self.reason, self.message = code, reason, message
        self.resource, self.name, self.causes, self.retry_after = resource, name, tuple(causes), retry_after
        self.about = (resource.group, resource.plural) if resource and not any(about) else about
        self.again = again

    def body(self) -> Object:
        details: Object = {}
        if self.name:
            details["name"] = self.name
        group, kind = self.about
        details |= {field: text for field, text in (("group", group), ("kind", kind)) if text}
        if self.causes:
            details["causes"] = [
                {"reason": c.reason, "message": c.message, **({"field": c.field} if c.field else {})}
                for c in self.causes
            ]
        if self.retry_after:
            details["retryAfterSeconds"] = self.retry_after
        body: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {"continue": self.again} if self.again else {},
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            body["reason"] = self.reason
        if details:
            body["details"] = details
        return {**body, "code": self.code}


def not_found(resource: Resource, name: str) -> StatusError:
    return StatusError(404, "NotFound", f'{resource.qualified} "{name}" not found', resource=resource, name=name)


def exists(resource: Resource, name: str) -> StatusError:
    return StatusError(
        409, "AlreadyExists", f'{resource.qualified} "{name}" already exists', resource=resource, name=name
    )


def conflict(resource: Resource, name: str, why: str = "") -> StatusError:
    why = why or "the object has been modified; read it again, apply your change to the new version and try again"
    return StatusError(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {resource.qualified} "{name}": {why}',
        resource=resource,
        name=name,
    )


def bad_request(message: str) -> StatusError:
    return StatusError(400, "BadRequest", message)


def invalid_patch(why: str) -> StatusError:
    """Returns the 422 error of a patch whose result is no object of the kind."""
    return StatusError(
        422, "Invalid", f' "" is invalid: patch: Invalid value: {why}', causes=[Cause("patch", f"Invalid value: {why}")]
    )


def expired(message: str = "the requested resourceVersion is too old; list again", again: str = "") -> StatusError:
    return StatusError(410, "Expired", message, again=again)


def too_large(wanted: int, present: int) -> StatusError:
    """Returns the error for a resourceVersion of the future, after waiting for it (API concepts: resource versions)."""
    return StatusError(
        504,
        "Timeout",
        f"Timeout: Too large resource version: {wanted}, current: {present}",
        causes=[Cause("", "Too large resource version", "ResourceVersionTooLarge")],
        retry_after=1,
    )


def invalid(resource: Resource, name: str, causes: Sequence[Cause]) -> StatusError:
    """Returns a 422 error. Each cause names a wrong field, the field's path and the expected value."""
    rows = "; ".join(f"{c.field}: {c.message}" for c in causes)
    return StatusError(
        422,
        "Invalid",
        f'{resource.kind} "{name}" is invalid: {rows}',
        resource=resource,
        name=name,
        causes=causes,
        about=(resource.group, resource.kind),  # as upstream: here the kind, not its plural
    )
