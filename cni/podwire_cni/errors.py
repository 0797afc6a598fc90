"""CNI errors: what a plugin prints on stdout, with exit status 1, when a call fails (CNI spec 1.1.0, section 5,
"Error")."""

from __future__ import annotations

from enum import IntEnum
from typing import Any


class ErrorCode(IntEnum):
    """The codes that the spec gives a meaning; those from 100 on are the plugin's own."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3  # the runtime need not call DEL
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODE_FAILURE = 6
    INVALID_CONFIG = 7
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50  # STATUS: no ADD can succeed
    LIMITED_CONNECTIVITY = 51  # STATUS: no ADD can succeed, and pods that run may be cut off too
    BUG = 999  # of ours: the log has the traceback


class CNIError(Exception):
    """`msg` names the field and the problem in one line; `details` gives the remedy."""

    def __init__(self, code: ErrorCode, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code, self.msg, self.details = code, msg, details

    def to_json(self, version: str) -> dict[str, Any]:
        body = {"cniVersion": version, "code": int(self.code), "msg": self.msg}
        return {**body, "details": self.details} if self.details else body
