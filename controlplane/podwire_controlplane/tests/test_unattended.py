"""The Events that say that nothing acts for a kind."""

from __future__ import annotations

from typing import Any

import pytest

from podwire_base.kube.meta import Object
from podwire_base.kube.registry import BUILTIN, of
from podwire_base.kube.unattended import MISSING
from podwire_base.testing.builders import NOW, meta, minimal, stored
from podwire_controlplane.controllers import endpointslices, nodes, unattended, workloads

from ..testing.builders import snapshot

SPACE = stored({"kind": "Namespace", "metadata": meta("default", "")})


def made(kind: str, **more: Any) -> Object:
    return stored(minimal(of(kind)), uid="0123456789", **more)


@pytest.mark.parametrize("kind", sorted(MISSING))
def test_each_object_is_told_once(kind: str) -> None:
    obj = made(kind)
    key = f"{kind}:default/{obj['metadata']['name']}"
    (controller,) = unattended.CONTROLLERS
    assert list(controller.watches[kind](obj, snapshot())) == [key]
    (change,) = controller.reconcile(key, snapshot(SPACE, obj), NOW)
    told = change.obj
    assert (change.verb, told["reason"], told["type"]) == ("create", "NoController", "Warning")
    assert told["involvedObject"]["uid"] == "0123456789" and MISSING[kind] in told["message"]
    assert controller.reconcile(key, snapshot(SPACE, obj, told), NOW) == []


def test_nothing_is_told_of_what_goes() -> None:
    key, gone = "Job:default/x", dict[str, Any](deletionTimestamp="2027-01-15T08:00:00Z")
    assert unattended.reconcile(key, snapshot(SPACE), NOW) == []
    assert unattended.reconcile(key, snapshot(SPACE, made("Job", **gone)), NOW) == []
    leaving = stored({"kind": "Namespace", "metadata": meta("default", "", **gone)})
    assert unattended.reconcile(key, snapshot(leaving, made("Job")), NOW) == []


def test_only_kinds_without_a_controller_are_told() -> None:
    acting = {
        kind for rows in (workloads.CONTROLLERS, endpointslices.CONTROLLERS) for row in rows for kind in row.watches
    }
    assert not acting & MISSING.keys() and nodes is not None
    assert all(of(kind) in BUILTIN.stored and of(kind).namespaced for kind in MISSING)
