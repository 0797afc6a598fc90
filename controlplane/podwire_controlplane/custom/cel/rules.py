"""x-kubernetes-validations: checks the rules of a definition, and evaluates them on objects (apiextensions-apiserver,
pkg/apiserver/schema/cel). A rule that does not compile refuses the definition, and one that has no value the object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from podwire_base.kube.errors import Cause

from ...rules.fields import forbidden, invalid, not_supported, required
from ..check import UNKNOWN, equal, old_field, old_item
from ..lists import below
from ..values import INT_OR_STRING, Schema, field_schema
from . import ast, types
from .engine import OLD, Failed, Program, program
from .types import BadExpression, Checker

Causes = Iterator[Cause]
RULES = "x-kubernetes-validations"
_REASONS = ("FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired")
_PREFIX = {"FieldValueInvalid": "Invalid value", "FieldValueForbidden": "Forbidden",
           "FieldValueRequired": "Required value", "FieldValueDuplicate": "Duplicate value"}  # fmt: skip
BUDGET, MOST = 10_000_000, 10_000  # steps of all rules of an object; of one rule, at which the engine ends it
_LONG_MESSAGE = 5 * 1024


# ---- definitions


def check_form(schema: Schema, path: str) -> Causes:
    """Yield what is wrong with the rules of one part of a schema, apart from their expressions."""
    for n, rule in enumerate(schema.get(RULES) or []):
        where, text, message = f"{path}.{RULES}[{n}]", rule.get("rule") or "", rule.get("message") or ""
        if not text.strip():
            yield required(f"{where}.rule", "rule is not specified")
        elif message and not message.strip():
            yield invalid(f"{where}.message", message, "must be non-empty if specified")
        elif "\n" in message.strip():
            yield invalid(f"{where}.message", message, "must not contain line breaks")
        elif "\n" in text.strip() and not message.strip():
            yield required(f"{where}.message", "message must be specified if rule contains line breaks")
        if rule.get("messageExpression") and not rule["messageExpression"].strip():
            yield required(f"{where}.messageExpression", "messageExpression must be non-empty if specified")
        if rule.get("reason") is not None and rule["reason"] not in _REASONS:
            yield not_supported(f"{where}.reason", rule["reason"], _REASONS)
        if told := rule.get("fieldPath"):
            if not told.strip():
                yield invalid(f"{where}.fieldPath", told, "must be non-empty if specified")
            elif "\n" in told:
                yield invalid(f"{where}.fieldPath", told, "must not contain line breaks")
            elif not _field_exists(schema, told):
                yield invalid(f"{where}.fieldPath", told, "must be a valid path")


def _field_exists(schema: Schema | None, path: str) -> bool:
    from ..definition import field_names

    for name in field_names(path) or [""]:
        schema = field_schema(schema, name) if name else None
    return schema is not None


def check_expressions(schema: Schema, path: str, uncorrelated: Mapping[str, str]) -> Causes:
    """Yield every rule of a whole schema that does not compile or costs too much. uncorrelated: path of a part whose
    values have no old ones -> path of the list or map that is to blame.
    """
    for where, part, cost in types.parts(schema, path):
        for n, rule in enumerate(part.get(RULES) or []):
            own = f"{where}.{RULES}[{n}]"
            yield from _check_rule(rule, part, own, cost, uncorrelated.get(where, ""), root=part is schema)


def _check_rule(rule: Mapping[str, Any], part: Schema, where: str, cost: int, lost: str, *, root: bool) -> Causes:
    optional = bool(rule.get("optionalOldSelf"))
    sources = {"rule": (rule["rule"], "BOOL", "bool")}
    if rule.get("messageExpression"):
        sources["messageExpression"] = (rule["messageExpression"], "STRING", "string")
    old = False
    for label, (source, want, name) in sources.items():
        try:
            made = program(source, optional)
            checker = Checker({"self": part, OLD: None if optional else part}, cost, root=root)
            found = types.kind(checker.check(made.tree))
            if made.result not in (want, "DYN") or found not in ("", name):
                raise BadExpression(f"must evaluate to a {name}")
        except BadExpression as err:
            yield invalid(f"{where}.{label}", source, f"compilation failed: {err}")
            continue
        old = old or (label == "rule" and made.old)
        if checker.worst > types.MAX_COST:
            yield forbidden(f"{where}.{label}", _expensive(checker.worst))
    if old and lost:
        why = f"oldSelf cannot be used on the uncorrelatable portion of the schema within {lost}"
        yield invalid(f"{where}.rule", rule["rule"], why)
    if not old and rule.get("optionalOldSelf") is not None:
        yield invalid(f"{where}.optionalOldSelf", optional, "may not be set if oldSelf is not used in rule")


def _expensive(cost: int) -> str:
    return (
        f"estimated rule cost exceeds budget by factor of {cost / types.MAX_COST:.1f}x (try simplifying the rule, or "
        "adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )


# ---- objects


@dataclass(slots=True)
class _Run:
    left: int = BUDGET
    causes: list[Cause] = field(default_factory=list)


def evaluate(obj: Any, schema: Schema, before: Any = UNKNOWN) -> list[Cause]:
    """Return the causes of the rules that do not hold for an object. before: the object that it replaces."""
    run = _Run()
    _evaluate(obj, schema, before, "", run, root=True)
    return run.causes


def _evaluate(value: Any, schema: Schema | None, old: Any, path: str, run: _Run, *, root: bool = False) -> None:
    if schema is None or value is None or run.left < 0:
        return
    if schema.get(RULES):
        _own_rules(value, schema, old, path, run, root=root)
    if isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(inner, dict | list) or field_schema(schema, name):
                _evaluate(
                    inner, field_schema(schema, name), old_field(schema, name, old), below(path, name, schema), run
                )
    elif isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        for n, one in enumerate(value):
            _evaluate(one, schema["items"], old_item(schema, one, old), f"{path}[{n}]", run)


def _own_rules(value: Any, schema: Schema, old: Any, path: str, run: _Run, *, root: bool) -> None:
    known = old is not UNKNOWN and old is not None
    same = known and equal(value, old)
    variables = {"self": convert(value, schema, root=root)}
    if known:
        variables[OLD] = convert(old, schema, root=root)
    variables["__old"] = [variables[OLD]] if known else []
    for rule in schema[RULES]:
        try:
            made = program(rule["rule"], bool(rule.get("optionalOldSelf")))
        except BadExpression as err:  # a definition of a machine that had CEL
            run.causes.append(invalid(path or "<nil>", _shown(value), f"rule evaluation error: {rule['rule']}: {err}"))
            continue
        if (made.old and not known and not rule.get("optionalOldSelf")) or (same and not made.old):
            continue
        run.left -= min(MOST, steps(made.tree, value))
        if run.left < 0:
            why = "validation failed due to running out of cost budget, no further validation rules will be run"
            run.causes.append(invalid(path or "<nil>", "", why))
            return
        if (cause := _apply(rule, made, variables, value, path)) is not None:
            run.causes.append(cause)


def steps(tree: ast.Expr, value: Any) -> int:
    """Return at most how many steps an expression takes: the size of the value for each loop in a loop."""
    return int(_size(value) ** depth(tree))


def depth(tree: ast.Expr) -> int:
    return max((depth(part) for part in tree.parts), default=0) + (tree.kind == "loop")


def _size(value: Any) -> int:
    if isinstance(value, dict | list):
        return 1 + sum(map(_size, value.values() if isinstance(value, dict) else value))
    return 1


def _apply(rule: Mapping[str, Any], made: Program, variables: Mapping[str, Any], value: Any, path: str) -> Cause | None:
    try:
        if (result := made.run(variables)) is True:
            return None
        if result is not False:
            return invalid(path or "<nil>", _shown(value), f"rule evaluation error: {rule['rule']}: no boolean")
    except Failed as err:
        return invalid(path or "<nil>", _shown(value), f"rule evaluation error: {rule['rule']}: {err}")
    reason = rule.get("reason") or "FieldValueInvalid"
    shown = f": {_shown(value)}" if reason in ("FieldValueInvalid", "FieldValueDuplicate") else ""
    where = path + (rule.get("fieldPath") or "")
    return Cause(where.removeprefix(".") or "<nil>", f"{_PREFIX[reason]}{shown}: {_message(rule, variables)}", reason)


def _shown(value: Any) -> str:
    return "object" if isinstance(value, dict) else "array" if isinstance(value, list) else str(value)


def _message(rule: Mapping[str, Any], variables: Mapping[str, Any]) -> str:
    usual = (rule.get("message") or "").strip() or f"failed rule: {rule['rule'].strip()}"
    if not rule.get("messageExpression"):
        return usual
    try:
        made = program(rule["messageExpression"], bool(rule.get("optionalOldSelf"))).run(variables)
    except (Failed, BadExpression):
        return usual
    good = isinstance(made, str) and made.strip() and "\n" not in made and len(made) <= _LONG_MESSAGE
    return made.strip() if good else usual


# ---- values


def convert(value: Any, schema: Schema | None, *, root: bool = False) -> Any:
    """Return a JSON value as CEL sees it: by the types of the schema, with its fields under their names in CEL."""
    if isinstance(value, dict):
        return _convert_fields(value, schema or {}, root=root)
    if isinstance(value, list):
        items = (schema or {}).get("items")
        return [convert(one, items) for one in value]
    if schema and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if schema.get("type") == "number" and not schema.get(INT_OR_STRING) else value
    return value


def _convert_fields(value: dict[str, Any], schema: Schema, *, root: bool) -> dict[str, Any]:
    if not schema.get("properties") and not root:
        return {name: convert(inner, field_schema(schema, name)) for name, inner in value.items()}
    properties = schema.get("properties") or {}
    found = {}
    for name, inner in value.items():
        if name not in properties:
            continue
        if (spelled := types.escaped(name)) is not None:
            found[spelled] = convert(inner, properties[name])
    if root or schema.get("x-kubernetes-embedded-resource"):
        meta = value.get("metadata") or {}
        found |= {name: value[name] for name in ("apiVersion", "kind") if name in value}
        found["metadata"] = {name: meta[name] for name in ("name", "generateName") if name in meta}
    return found
