"""x-kubernetes-validations: which rules a definition may have, and what they say about objects."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from podwire_base.kube.meta import Object

from ..custom.cel import engine, rules
from ..custom.check import UNKNOWN
from ..custom.schemas import check_schema
from ..testing.widgets import schema, widget

pytestmark = pytest.mark.skipif(not engine.available(), reason="cel-expr-python has no wheel for this platform")
RULE = "spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0]"


def with_rule(rule: str, *, at: tuple[str, ...] = ("properties", "spec"), **more: Any) -> Object:
    whole: Object = copy.deepcopy(schema()["openAPIV3Schema"])
    whole["properties"]["spec"].pop("x-kubernetes-validations")
    whole["properties"]["spec"]["properties"] |= {
        "since": {"type": "string", "format": "date-time"},
        "every": {"type": "string", "format": "duration"},
        "ratio": {"type": "number"},
        "in": {"type": "string"},
        "a-b": {"type": "integer"},
        "few": {"type": "array", "maxItems": 10, "items": {"type": "integer"}},
    }
    part = whole
    for step in at:
        part = part[step]
    part["x-kubernetes-validations"] = [{"rule": rule, **more}]
    return whole


def problems(rule: str, **more: Any) -> list[tuple[str, str]]:
    found = check_schema(with_rule(rule, **more), "spec.validation.openAPIV3Schema", status=True)
    return [(cause.field.removeprefix(RULE + "."), cause.reason) for cause in found]


def judged(rule: str, obj: Object, before: Any = UNKNOWN, **more: Any) -> list[tuple[str, str, str]]:
    found = rules.evaluate(obj, with_rule(rule, **more), before)
    return [(cause.field, cause.reason, cause.message) for cause in found]


@pytest.mark.parametrize(
    "rule",
    [
        "self.nothing > 1",
        "self.size == 'x'",
        "self.size + 'x' == 'x'",
        "self.parts.all(p, p.nothing == 1)",
        "self.parts[0].nothing == 1",
        "self.?nothing.hasValue()",
        "self.size",
        "'text'",
        "self.size && true",
        "self.size.x == 1",
        "unknown(self.size)",
        "1 +",
        "self.in == 'x'",
        "self.few.all(i, v, v == 'x')",
        "self.limits.all(k, v, v.length == 1)",
        "self.few.all(v, v, v == 1)",
        "self.few.__pairs().size() == 1",
    ],
)
def test_a_rule_that_does_not_fit_the_schema_refuses_the_definition(rule: str) -> None:
    assert problems(rule) == [("rule", "FieldValueInvalid")]


@pytest.mark.parametrize(
    ("rule", "more", "want"),
    [
        (" ", {}, ("rule", "FieldValueRequired")),
        ("true", {"message": " "}, ("message", "FieldValueInvalid")),
        ("true", {"message": "a\nb"}, ("message", "FieldValueInvalid")),
        ("true ||\nfalse", {}, ("message", "FieldValueRequired")),
        ("true", {"reason": "Wrong"}, ("reason", "FieldValueNotSupported")),
        ("true", {"fieldPath": ".nothing"}, ("fieldPath", "FieldValueInvalid")),
        ("true", {"messageExpression": "self.size"}, ("messageExpression", "FieldValueInvalid")),
        ("true", {"optionalOldSelf": True}, ("optionalOldSelf", "FieldValueInvalid")),
        (
            "self.tags.all(a, self.tags.all(b, self.tags.all(c, a == b || b == c)))",
            {},
            ("rule", "FieldValueForbidden"),
        ),
        (
            "self.tags.all(i, a, self.tags.all(j, b, self.tags.all(k, c, a == b || b == c)))",
            {},
            ("rule", "FieldValueForbidden"),
        ),
    ],
)
def test_the_form_and_the_cost_of_rules(rule: str, more: Object, want: Any) -> None:
    assert problems(rule, **more) == [want]


def test_bounded_loops_are_cheap_enough() -> None:
    assert problems("self.few.all(a, self.few.all(b, self.few.all(c, a == b || b == c || a == c)))") == []


def test_old_values_exist_only_where_parts_can_be_told_apart() -> None:
    inside = ("properties", "spec", "properties", "tags", "items")
    wrong = check_schema(with_rule("self == oldSelf", at=inside), "s", status=True)
    assert [c.field for c in wrong] == ["s.properties[spec].properties[tags].items.x-kubernetes-validations[0].rule"]
    inside = ("properties", "spec", "properties", "parts", "items")
    assert check_schema(with_rule("self.count >= oldSelf.count", at=inside), "s", status=True) == []
    before, after = (widget("a", parts=[{"name": "x", "count": n}]) for n in (2, 1))
    assert judged("self.count >= oldSelf.count", after, before, at=inside)[0][0] == "spec.parts[0]"


@pytest.mark.parametrize(
    "rule",
    [
        "self.tags.isSorted() && self.tags.indexOf('b') == 1 && self.few.sum() == 6 && self.few.max() == 3",
        "sets.contains(self.tags, ['a']) && sets.equivalent(['b', 'a'], self.tags)",
        "!sets.intersects(['x'], self.tags) && sets.intersects(['x', 'a'], self.tags)",
        "quantity('1Ki').isGreaterThan(quantity('1k')) && quantity('1').add(quantity('500m')) == quantity('1500m')",
        "quantity('100m').compareTo(quantity('0.1')) == 0 && isQuantity('5Gi') && !isQuantity('5 Gi')",
        "ip('fe80::1').isLinkLocalUnicast() && ip('127.0.0.1').isLoopback()",
        "!isIP('1.2.3.400') && ip.isCanonical('::1') && ip('10.0.0.1').family() == 4",
        "cidr('10.0.0.0/8').containsIP('10.9.9.9') && cidr('10.0.0.0/8').containsCIDR(cidr('10.1.0.0/16'))",
        "cidr('10.1.2.3/8').masked().ip() == ip('10.0.0.0') && cidr('10.0.0.0/8').prefixLength() == 8",
        "url('https://a.example:8443/x?q=1').getHostname() == 'a.example' && url('https://a:1/').getPort() == '1'",
        "'abc 123'.find('[0-9]+') == '123' && 'a1b2'.findAll('[0-9]') == ['1', '2'] && 'aa'.matches('^a+$')",
        "semver('1.2.3').isLessThan(semver('1.10.0')) && semver('1.0.0-rc.1').isLessThan(semver('1.0.0'))",
        "!format.dns1123Label().validate('ok').hasValue() && format.dns1123Label().validate('-x').hasValue()",
        "self.since < timestamp('2025-01-01T00:00:00Z') && self.every > duration('1m')",
        "timestamp(self.since).getFullYear() == 2020 && duration(self.every) < duration('1h')",
        "self.ratio / 2.0 == 0.5 && self.__in__ == 'x' && self.a__dash__b == 1",
        "self.?note.orValue('none') == 'none' && has(self.size) && !has(self.min)",
        "'a-b'.split('-').join('+').upperAscii() == 'A+B' && math.greatest(1, self.size) == 1",
        "self.few.all(i, v, v == i + 1) && !self.few.exists(i, v, v == i) && self.few.existsOne(i, v, i + v == 3)",
        "self.limits.all(k, v, k != v && self.limits[k] == v) && self.limits.exists(k, v, k == 'cpu' && v == '2')",
        "self.few.transformList(i, v, i > 0, v * 10) == [20, 30] && self.few.transformList(i, v, i + v) == [1, 3, 5]",
        "self.limits.transformMap(k, v, k == 'cpu', v + k) == {'cpu': '2cpu'}",
        "self.limits.transformMap(k, v, v)['memory'] == '1Gi' && self.few.transformMap(i, v, v)[1] == 2",
        "self.limits.transformMapEntry(k, v, {v: k}) == {'2': 'cpu', '1Gi': 'memory'}",
        "self.few.all(i, v, self.few.all(j, w, i == j ? v == w : v != w))",
        "self.parts.all(i, part, part.name != '' && part.?name.hasValue() && {'i': i}['i'] < 2)",
        "self.few.all(name, v, self.parts.all(part, part.name != string(name)))",
    ],
)
def test_kubernetes_functions(rule: str) -> None:
    obj = widget("a", tags=["a", "b"], few=[1, 2, 3], since="2020-01-01T00:00:00Z", every="1m5s", ratio=1)
    obj["spec"] |= {"in": "x", "a-b": 1, "limits": {"cpu": "2", "memory": "1Gi"}, "parts": [{"name": "x"}]}
    assert problems(rule) == []
    assert judged(rule, obj) == []


def test_messages_reasons_and_field_paths() -> None:
    more = {
        "messageExpression": "'size is ' + string(self.size)",
        "reason": "FieldValueForbidden",
        "fieldPath": ".size",
    }
    assert judged("self.size > 5", widget("a"), **more) == [
        ("spec.size", "FieldValueForbidden", "Forbidden: size is 1")
    ]
    assert "failed rule: self.size > 5" in judged("self.size > 5", widget("a"))[0][2]


def test_transition_rules_judge_changes_only() -> None:
    rule = "self.size >= oldSelf.size"
    assert judged(rule, widget("a")) == []
    assert judged(rule, widget("a"), widget("a", size=3))[0][0] == "spec"
    first = "oldSelf.hasValue() || self.size == 1"
    assert judged(first, widget("a", size=2), optionalOldSelf=True)[0][0] == "spec"
    assert judged(first, widget("a", size=2), widget("a"), optionalOldSelf=True) == []


def test_what_did_not_change_is_not_judged_again() -> None:
    assert judged("self.size > 5", widget("a"), widget("a")) == []
    assert judged("self.size > 5", widget("a", note="x"), widget("a"))[0][0] == "spec"


def test_a_rule_without_a_value_refuses_the_object() -> None:
    assert "rule evaluation error" in judged("self.min > 1", widget("a"))[0][2]
    many = widget("a", few=list(range(300)))
    assert "Iteration budget exceeded" in judged("self.few.all(a, self.few.all(b, a < 1000))", many)[0][2]
    two = "self.few.all(i, a, self.few.all(j, b, a < 1000))"
    assert "Iteration budget exceeded" in judged(two, many)[0][2]
    twice = "self.few.transformMapEntry(i, v, {'same': v}).size() > 0"
    assert "already exists" in judged(twice, widget("a", few=[1, 2]))[0][2]


def test_all_rules_of_an_object_share_a_budget() -> None:
    inside = ("properties", "spec", "properties", "parts", "items")
    many = widget("a", parts=[{"name": str(n)} for n in range(3000)])
    rule = "true"
    for _ in range(13):
        rule = f"[1].all(a, {rule})"
    assert "out of cost budget" in judged(rule, many, at=inside)[-1][2]


def test_without_the_engine_a_definition_with_rules_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_modules", lambda: None)
    engine._env.cache_clear()
    engine.program.cache_clear()
    try:
        found = check_schema(with_rule("true"), "s", status=True)
    finally:
        engine._env.cache_clear()
    assert "cel-expr-python" in found[0].message
