"""Objects of another shape are told by field and cost nobody else a record; a bug of the converter is told as ours."""

from __future__ import annotations

from typing import Any

import pytest

from podwire_base.testing.garbage import spoiled
from podwire_dns import schema
from podwire_dns.build import Builder
from podwire_dns.testing.builders import CONFIG

GARBAGE: tuple[Any, ...] = (None, 0, -1, 1.5, True, "abc", "", [], [None], ["x"], [[]], [{}], {}, {"a": 1})
META = {"name": "bad", "namespace": "testns"}
SERVICE: dict[str, Any] = {
    "metadata": META,
    "spec": {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ports": [{"name": "http", "port": 80}]},
}
HEADLESS = {"metadata": META, "spec": {"clusterIP": "None", "clusterIPs": ["None"], "ports": []}}
SLICE = {
    "metadata": {**META, "name": "bad-1", "labels": {schema.SERVICE_NAME_LABEL: "bad"}},
    "addressType": "IPv4",
    "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    "endpoints": [{"addresses": ["10.244.1.2"], "hostname": "a", "conditions": {"ready": True}}],
}
POD = {"metadata": META, "status": {"phase": "Running", "podIP": "10.244.0.3", "podIPs": [{"ip": "10.244.0.3"}]}}
GOOD: dict[str, Any] = {
    "metadata": {"name": "good", "namespace": "testns"},
    "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}]},
}


@pytest.mark.parametrize("kind", ["service", "slice", "pod"])
def test_a_spoiled_object_is_no_bug_and_costs_nobody_else_anything(kind: str) -> None:
    good = Builder(CONFIG.schema())
    good.service(GOOD)
    good.flush(1)
    wanted = {key for key in good.answers if b"good" in key}
    assert wanted
    for where, bad in spoiled({"service": SERVICE, "slice": SLICE, "pod": POD}[kind], GARBAGE):
        builder = Builder(CONFIG.schema())
        builder.service(GOOD)
        if kind == "slice":
            builder.service(HEADLESS)
        getattr(builder, kind)(bad)
        builder.flush(1)
        assert not builder.bugs, where
        assert wanted <= builder.answers.keys(), where


def test_what_is_misshapen_is_named_and_a_slice_stays_as_it_was() -> None:
    builder = Builder(CONFIG.schema())
    builder.service(HEADLESS)
    builder.slice(SLICE)
    builder.service({**GOOD, "spec": {**GOOD["spec"], "ports": [None]}})
    builder.flush(1)
    before = dict(builder.answers)
    builder.slice({**SLICE, "endpoints": 5})
    builder.flush(2)
    assert dict(builder.answers) == before
    said = {problem.kind: problem.error for problem in builder.problems}
    assert said == {
        "Service": "spec.ports[0]: should be a map, is null",
        "EndpointSlice": "endpoints: should be a list, is 5",
    }


def test_a_bug_of_the_converter_is_ours_and_the_others_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    convert = schema.service_records

    def broken(zone: str, pack: Any, service: Any, slices: Any) -> schema.Records:
        if service["metadata"]["name"] == "bad":
            raise AttributeError("planted")
        return convert(zone, pack, service, slices)

    monkeypatch.setattr(schema, "service_records", broken)
    builder = Builder(CONFIG.schema())
    builder.service(SERVICE)
    builder.service(GOOD)
    builder.flush(1)
    assert builder.problems == []
    ((key, err),) = builder.bugs
    assert (key, str(err)) == ("testns/bad", "planted")
    assert [name for name in builder.answers if b"good" in name]
