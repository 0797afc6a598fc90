"""What is refused of the kinds that extend a cluster, and of pods in less usual forms."""

from __future__ import annotations

from typing import Any

import pytest

from podwire_base.kube.registry import of
from podwire_base.testing.builders import minimal, pod

from ..strategies.table import strategy_of
from .test_validation import at, causes, filled

CONTAINER = "spec.containers.0"


@pytest.mark.parametrize(
    ("kind", "path", "value", "field", "reason"),
    [
        ("CSIDriver", "metadata.name", "a_b", "metadata.name", "Invalid"),
        ("CSIDriver", "spec.volumeLifecycleModes", ["Later"], "spec.volumeLifecycleModes[0]", "NotSupported"),
        ("CSIDriver", "spec.fsGroupPolicy", "Some", "spec.fsGroupPolicy", "NotSupported"),
        ("CSIDriver", "spec.tokenRequests", [{"audience": "a"}, {"audience": "a"}], "spec.tokenRequests[1].audience",
         "Duplicate"),
        ("CSINode", "spec.drivers", [{"name": "a", "nodeID": ""}], "spec.drivers[0].nodeID", "Required"),
        ("CSINode", "spec.drivers", [{"name": "a", "nodeID": "n", "topologyKeys": ["a b"]}],
         "spec.drivers[0].topologyKeys", "Invalid"),
        ("CSINode", "spec.drivers", [{"name": "a", "nodeID": "n"}] * 2, "spec.drivers[1].name", "Duplicate"),
        ("CSIStorageCapacity", "storageClassName", "", "storageClassName", "Required"),
        ("CSIStorageCapacity", "capacity", "-1", "capacity", "Invalid"),
        ("VolumeAttachment", "spec.attacher", "", "spec.attacher", "Required"),
        ("VolumeAttachment", "spec.nodeName", "", "spec.nodeName", "Required"),
        ("VolumeAttachment", "spec.source", {}, "spec.source", "Required"),
        ("VolumeAttributesClass", "driverName", "", "driverName", "Required"),
        ("VolumeAttributesClass", "parameters", {}, "parameters", "Required"),
        ("APIService", "metadata.name", "x", "metadata.name", "Invalid"),
        ("APIService", "spec.versionPriority", 1001, "spec.versionPriority", "Invalid"),
        ("APIService", "spec.groupPriorityMinimum", 0, "spec.groupPriorityMinimum", "Invalid"),
        ("FlowSchema", "spec.matchingPrecedence", 10001, "spec.matchingPrecedence", "Invalid"),
        ("FlowSchema", "spec.priorityLevelConfiguration.name", "", "spec.priorityLevelConfiguration.name", "Required"),
        ("FlowSchema", "spec.rules", [{"subjects": []}], "spec.rules[0].subjects", "Required"),
        ("PriorityLevelConfiguration", "spec.type", "Free", "spec.type", "NotSupported"),
        ("ValidatingAdmissionPolicy", "spec.matchConstraints", None, "spec.matchConstraints", "Required"),
        ("ValidatingAdmissionPolicy", "spec.validations", [{"expression": " "}], "spec.validations[0].expression",
         "Required"),
        ("ValidatingAdmissionPolicy", "spec.failurePolicy", "Shrug", "spec.failurePolicy", "NotSupported"),
        ("ValidatingAdmissionPolicyBinding", "spec.policyName", "", "spec.policyName", "Required"),
        ("ValidatingAdmissionPolicyBinding", "spec.validationActions", ["Deny", "Warn"], "spec.validationActions",
         "Invalid"),
        ("MutatingAdmissionPolicyBinding", "spec.policyName", "A_", "spec.policyName", "Invalid"),
        ("ResourceSlice", "spec.driver", "", "spec.driver", "Required"),
        ("ResourceSlice", "spec.pool.resourceSliceCount", 0, "spec.pool.resourceSliceCount", "Invalid"),
        ("ResourceSlice", "spec.devices", [{"name": "a"}, {"name": "a"}], "spec.devices[1].name", "Duplicate"),
    ],
)  # fmt: skip
def test_refusals_name_the_field(kind: str, path: str, value: Any, field: str, reason: str) -> None:
    resource = of(kind)
    assert causes(minimal(resource), resource) == {}
    assert causes(at(minimal(resource), path, value), resource).get(field) == f"FieldValue{reason}"


@pytest.mark.parametrize(
    ("kind", "path", "value", "field"),
    [
        ("CSIDriver", "spec.attachRequired", False, "spec.attachRequired"),
        ("CSIStorageCapacity", "storageClassName", "other", "storageClassName"),
        ("VolumeAttachment", "spec.nodeName", "other", "spec"),
        ("VolumeAttributesClass", "driverName", "other.example.com", "driverName"),
        ("VolumeAttributesClass", "parameters", {"other": "x"}, "parameters"),
        ("ResourceSlice", "spec.driver", "other.example.com", "spec.driver"),
    ],
)
def test_what_cannot_change(kind: str, path: str, value: Any, field: str) -> None:
    resource = of(kind)
    before = filled(minimal(resource), resource)
    after = filled(at(minimal(resource), path, value), resource, before)
    assert field in {c.field for c in strategy_of(resource).validate_update(after, before)}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"spec.hostNetwork": True, CONTAINER + ".ports": [{"containerPort": 80, "hostPort": 81}]},
         "spec.containers[0].ports[0].containerPort"),
        ({CONTAINER + ".securityContext": {"procMount": "Unmasked"}}, "spec.containers[0].securityContext.procMount"),
        ({CONTAINER + ".lifecycle": {"preStop": {"sleep": {"seconds": 31}}}},
         "spec.containers[0].lifecycle.preStop.sleep"),
        ({"spec.os": {"name": "windows"}, "spec.securityContext": {"runAsUser": 1}}, "spec.securityContext.runAsUser"),
        ({"spec.os": {"name": "windows"}, CONTAINER + ".securityContext": {"privileged": False}},
         "spec.containers[0].securityContext.privileged"),
        ({"spec.os": {"name": "linux"}, "spec.securityContext": {"windowsOptions": {"runAsUserName": "a"}}},
         "spec.securityContext.windowsOptions"),
    ],
)  # fmt: skip
def test_pods_in_less_usual_forms(changes: dict[str, Any], field: str) -> None:
    made = pod("web")
    for path, value in changes.items():
        made = at(made, path, value)
    assert field in causes(made)


def test_the_name_of_a_pod_is_better_a_label() -> None:
    strategy = strategy_of(of("Pod"))
    found = [strategy.warnings(filled(pod(own)), None) for own in ("web", "web.b")]
    assert found[0] == [] and len(found[1]) == 1 and "hostname" in found[1][0]
