"""Runs one call: takes environment and stdin, returns exit status and text. So a test of a complete call needs no
process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from .call import as_asked, check_version, parse_env
from .conf import parse_conf, rest_of, version_of
from .errors import CNIError, ErrorCode
from .types import VERSIONS, Call, NetConf

if TYPE_CHECKING:
    from .commands import Plugin, Sandbox


@dataclass(frozen=True, slots=True)
class Reply:
    """The plugin binary's output and exit status. The other fields are for the log. ignored: what was wrong with the
    input of a DEL.
    """

    status: int
    text: bytes
    call: Call | None = None
    error: CNIError | None = None
    ignored: CNIError | None = None


Verb: TypeAlias = "Callable[[Plugin, Call, NetConf, Sandbox], bytes | None]"

VERBS: dict[str, Verb] = {
    "ADD": lambda plugin, call, conf, sandbox: plugin.add(call, conf, sandbox),
    "DEL": lambda plugin, call, conf, sandbox: plugin.delete(call),
    "CHECK": lambda plugin, call, conf, sandbox: plugin.check(call, conf, sandbox),
    "GC": lambda plugin, call, conf, sandbox: plugin.collect(conf),
    "STATUS": lambda plugin, call, conf, sandbox: plugin.status(conf),
}


def version_reply(version: str) -> Reply:
    body = {"cniVersion": version, "supportedVersions": list(VERSIONS)}
    return Reply(0, _text(body))


def failure(err: CNIError, version: str, call: Call | None = None) -> Reply:
    return Reply(1, _text(err.to_json(version)), call, err)


def run(env: Mapping[str, str], stdin: bytes, sandbox: Sandbox, plugin: Callable[[NetConf], Plugin]) -> Reply:
    """Run one call with any input. Every failure becomes a CNI error object; the function raises no exception.

    `plugin` is called only if the variables and the configuration are valid.
    """
    call: Call | None = None
    try:
        call = parse_env(env)
        if call.command == "VERSION":
            return version_reply(version_of(stdin))
        conf, ignored = _conf(call, stdin)
        return Reply(0, VERBS[call.command](plugin(conf), call, conf, sandbox) or b"", call, ignored=ignored)
    except CNIError as err:
        return failure(err, version_of(stdin), call)
    except Exception as err:  # a runtime understands only an error object
        wrapped = told(err)
        wrapped.__cause__ = err  # the log of the call reads the traceback from here
        return failure(wrapped, version_of(stdin), call)


def _conf(call: Call, stdin: bytes) -> tuple[NetConf, CNIError | None]:
    """Returns the configuration of the call, and for a DEL what is wrong with it. Raises CNIError for other verbs.

    DEL "should generally complete without error" (CNI spec 1.1.0, section 2). It needs the container and the interface
    alone, so a configuration that somebody edited after the ADD must not keep a pod from its end.
    """
    try:
        conf = as_asked(parse_conf(stdin), call)
        check_version(call, conf)
    except CNIError as err:
        if call.command != "DEL":
            raise
        return rest_of(stdin), err
    return conf, None


def told(err: Exception) -> CNIError:
    """Returns the CNIError for an exception. An error from the kernel or a file system becomes an I/O failure. Any
    other exception becomes a bug of podwire.
    """
    where = "see the log of the node's wiring agent"
    if isinstance(err, OSError) or type(err).__module__.startswith("pyroute2."):  # its NetlinkError is not an OSError
        return CNIError(ErrorCode.IO_FAILURE, f"{type(err).__name__}: {err}", where)
    return CNIError(ErrorCode.BUG, f"bug of podwire: {type(err).__name__}: {err}", f"the traceback is there: {where}")


def _text(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode() + b"\n"
