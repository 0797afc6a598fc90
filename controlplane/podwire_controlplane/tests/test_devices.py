"""Validation of ResourceClaims, ResourceClaimTemplates and DeviceClasses."""

from __future__ import annotations

from typing import Any

import pytest

from podwire_base.kube.meta import Object

from ..rules import devices

EXACT = {"deviceClassName": "gpu.example.com", "allocationMode": "ExactCount", "count": 1}
CONFIG = {"opaque": {"driver": "gpu.example.com", "parameters": {"kind": "X"}}}


def claim(**more: Any) -> Object:
    made = {"requests": [{"name": "gpu", "exactly": EXACT}], **more}
    return {"metadata": {"name": "c", "namespace": "default"}, "spec": {"devices": made}}


def exact(**more: Any) -> list[Object]:
    return [{"name": "gpu", "exactly": {**EXACT, **more}}]


def test_what_is_right_passes() -> None:
    first = {"name": "any", "firstAvailable": [{"name": "big", **EXACT}, {"name": "small", **EXACT}]}
    constraint = {"requests": ["gpu", "any/big"], "matchAttribute": "gpu.example.com/driverVersion"}
    config = [{"requests": ["any"], **CONFIG}]
    made = claim(requests=[*exact(), first], constraints=[constraint], config=config)
    assert list(devices.claim(made)) == []
    template = {"metadata": {"name": "t"}, "spec": {"spec": made["spec"]}}
    assert list(devices.template(template)) == []
    selectors = [{"cel": {"expression": "device.driver == 'x'"}}]
    spec = {"selectors": selectors, "config": [CONFIG], "extendedResourceName": "example.com/gpu"}
    assert list(devices.device_class({"metadata": {"name": "c"}, "spec": spec})) == []


REQUEST = "spec.devices.requests[0]"


@pytest.mark.parametrize(
    ("made", "field", "reason"),
    [
        (claim(requests=[{"name": "gpu"}]), REQUEST, "FieldValueRequired"),
        (claim(requests=[{"name": "Gpu", "exactly": EXACT}]), f"{REQUEST}.name", "FieldValueInvalid"),
        (claim(requests=exact(deviceClassName="")), f"{REQUEST}.exactly.deviceClassName", "FieldValueRequired"),
        (claim(requests=exact(count=0)), f"{REQUEST}.exactly.count", "FieldValueInvalid"),
        (claim(requests=exact(allocationMode="All")), f"{REQUEST}.exactly.count", "FieldValueInvalid"),
        (claim(requests=exact(allocationMode="Some")), f"{REQUEST}.exactly.allocationMode", "FieldValueNotSupported"),
        (claim(requests=exact(selectors=[{}])), f"{REQUEST}.exactly.selectors[0].cel", "FieldValueRequired"),
        (claim(requests=exact() * 2), "spec.devices.requests[1]", "FieldValueDuplicate"),
        (
            claim(requests=[{"name": f"r{n}", "exactly": EXACT} for n in range(33)]),
            "spec.devices.requests",
            "FieldValueTooMany",
        ),
        (
            claim(requests=exact(tolerations=[{"key": "a", "operator": "Exists", "value": "b"}])),
            f"{REQUEST}.exactly.tolerations[0].value",
            "FieldValueInvalid",
        ),
        (
            claim(constraints=[{"requests": ["none"], "matchAttribute": "a.b/c"}]),
            "spec.devices.constraints[0].requests[0]",
            "FieldValueInvalid",
        ),
        (claim(constraints=[{"requests": ["gpu"]}]), "spec.devices.constraints[0]", "FieldValueRequired"),
        (
            claim(constraints=[{"matchAttribute": "version"}]),
            "spec.devices.constraints[0].matchAttribute",
            "FieldValueInvalid",
        ),
        (claim(config=[{}]), "spec.devices.config[0].opaque", "FieldValueRequired"),
        (
            claim(config=[{"opaque": {"driver": "x_y", "parameters": {}}}]),
            "spec.devices.config[0].opaque.driver",
            "FieldValueInvalid",
        ),
    ],
    ids=range(15),
)
def test_what_is_refused(made: Object, field: str, reason: str) -> None:
    (cause,) = list(devices.claim(made))
    assert (cause.field, cause.reason) == (field, reason)


def test_a_claim_does_not_change() -> None:
    (cause,) = list(devices.claim_update(claim(requests=exact(count=2)), claim()))
    assert cause.field == "spec" and "immutable" in cause.message


def test_the_status_of_a_claim() -> None:
    row = {"request": "gpu", "driver": "gpu.example.com", "pool": "n1/a", "device": "d0"}
    allocation = {"devices": {"results": [row]}}
    user = {"resource": "pods", "name": "p", "uid": "u"}
    before, good = claim(), {**claim(), "status": {"allocation": allocation, "reservedFor": [user]}}
    assert list(devices.claim_status(good, before)) == []
    free = {**claim(), "status": {"reservedFor": [user]}}
    assert [c.field for c in devices.claim_status(free, before)] == ["status.reservedFor"]
    for change, field in (({"request": "x"}, "request"), ({"pool": ""}, "pool"), ({"device": "D"}, "device")):
        bad = {**claim(), "status": {"allocation": {"devices": {"results": [{**row, **change}]}}}}
        found = list(devices.claim_status(bad, before))
        assert [c.field for c in found] == [f"status.allocation.devices.results[0].{field}"]
    other = {**good, "status": {"allocation": {"devices": {"results": []}}}}
    assert [c.field for c in devices.claim_status(other, good)] == ["status.allocation"]


@pytest.mark.parametrize("name", ["cpu", "kubernetes.io/x", "example.com/", "requests.example.com/x"])
def test_a_class_stands_for_an_extended_resource_only(name: str) -> None:
    (cause,) = list(devices.device_class({"metadata": {}, "spec": {"extendedResourceName": name}}))
    assert cause.field == "spec.extendedResourceName"
