"""CEL as Kubernetes has it, over cel-expr-python (Google's C++ engine). The package has no wheels for some platforms:
there no rule compiles, and a CustomResourceDefinition with rules is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any

from . import ast, twovariables
from .library import FUNCTIONS
from .types import BadExpression

MISSING = (
    "x-kubernetes-validations need the Python package cel-expr-python, which is not installed (it has wheels for "
    "CPython 3.11 and later on x86_64 and aarch64)"
)
OLD = "oldSelf"
_OPTIONAL_OLD = "(__old.size() > 0 ? optional.of(__old[0]) : optional.none())"
_TOKEN = re.compile(
    r"""[rRbB]{0,2}(?:'''.*?'''|\"\"\".*?\"\"\"|'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|\boldSelf\b""", re.DOTALL
)


class Failed(Exception):
    """An expression has no value: it uses a field that is absent, or it took too many steps."""


@cache
def _modules() -> tuple[Any, ...] | None:
    try:
        from cel_expr_python import cel
        from cel_expr_python.ext import ext_math, ext_optional, ext_strings
    except ImportError:
        return None
    return cel, ext_strings.ExtStrings(), ext_math.ExtMath(), ext_optional.ExtOptional()


def available() -> bool:
    return _modules() is not None


@cache
def _env() -> Any:
    modules = _modules()
    if modules is None:
        raise BadExpression(MISSING)
    cel, *extensions = modules
    types = {
        "string": cel.Type.STRING,
        "map": cel.Type.Map(cel.Type.STRING, cel.Type.DYN),
        "dyn": cel.Type.DYN,
        "bool": cel.Type.BOOL,
        "int": cel.Type.INT,
        "double": cel.Type.DOUBLE,
        "list": cel.Type.List(cel.Type.DYN),
        "timestamp": cel.Type.TIMESTAMP,
        "duration": cel.Type.DURATION,
    }
    overloads: dict[str, list[Any]] = {}
    for n, (name, parameters, result, member, function) in enumerate(FUNCTIONS):
        one = cel.Overload(
            f"kubernetes_{n}",
            return_type=types[result],
            parameters=[types[p] for p in parameters],
            is_member=member,
            impl=function,
        )
        overloads.setdefault(name, []).append(one)
    rows = [cel.FunctionDecl(name, found) for name, found in overloads.items()]
    variables = dict.fromkeys(("self", OLD, "__old"), cel.Type.DYN)
    return cel.NewEnv(variables=variables, extensions=[*extensions, cel.CelExtension("kubernetes", rows)])


class Program:
    """A compiled expression. tree: its syntax. result: the name of its type. old: it reads oldSelf."""

    def __init__(self, source: str, *, optional_old: bool) -> None:
        self.old = bool(_used_old(source))
        source = twovariables.expand(source)
        if optional_old:
            source = _TOKEN.sub(lambda m: _OPTIONAL_OLD if m[0] == OLD else m[0], source)
        env = _env()
        try:
            self._expression = env.compile(source)
            self.tree = ast.read(self._expression.serialize())
        except RuntimeError as err:
            raise BadExpression(_brief(str(err))) from None
        self.result = str(self._expression.return_type().name())

    def run(self, variables: Mapping[str, Any]) -> Any:
        """Return the value. Raises Failed."""
        try:
            value = self._expression.eval(data=dict(variables))
            if value.type().name() in ("ERROR", "UNKNOWN"):
                raise Failed(_brief(str(value.value())))
            return value.plain_value()
        except (RuntimeError, ValueError, TypeError) as err:
            raise Failed(_brief(str(err))) from None


def _used_old(source: str) -> list[str]:
    return [found for found in _TOKEN.findall(source) if found == OLD]


def _brief(text: str) -> str:
    return text.partition("\n")[0].removeprefix("INVALID_ARGUMENT: ").removeprefix("ERROR: ")[:300]


@lru_cache(maxsize=4096)
def program(source: str, optional_old: bool = False) -> Program:
    """Return a compiled expression. Raises BadExpression."""
    return Program(source, optional_old=optional_old)
