"""CNI errors. A plugin whose call fails prints an error object on stdout and ends with exit status 1 (CNI spec 1.1.0,
section 5, "Error").
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any


class ErrorCode(IntEnum):
    """Error codes. The CNI spec defines the codes below 100; a plugin defines its own from 100 on."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3  # the runtime need not call DEL after this error
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODE_FAILURE = 6
    INVALID_CONFIG = 7
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50  # STATUS: no ADD can succeed
    LIMITED_CONNECTIVITY = 51  # STATUS: no ADD can succeed, and running pods may have lost their connectivity
    BUG = 999  # a bug of podwire; the log has the traceback


class CNIError(Exception):
    """A failed call. `msg` names the field and the problem in one line. `details` describes the remedy."""

    def __init__(self, code: ErrorCode, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code, self.msg, self.details = code, msg, details

    def to_json(self, version: str) -> dict[str, Any]:
        body = {"cniVersion": version, "code": int(self.code), "msg": self.msg}
        return {**body, "details": self.details} if self.details else body
