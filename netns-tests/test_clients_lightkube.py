"""lightkube, unmodified: objects, patches, server-side apply and a watch, for which it asks without bookmarks."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightkube import ApiError, Client
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import ConfigMap

from podwire_controlplane.testing.servers import Server


def test_lightkube_writes_and_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
        client = Client(namespace="default", field_manager="first")
        labels = {"of": "lightkube"}
        client.create(ConfigMap(metadata=ObjectMeta(name="a", labels=labels), data={"color": "red"}))
        patched = client.patch(ConfigMap, "a", {"data": {"color": "blue"}})
        assert patched.data == {"color": "blue"}
        body = ConfigMap(apiVersion="v1", kind="ConfigMap", metadata=ObjectMeta(name="a"), data={"color": "green"})
        with pytest.raises(ApiError) as refused:
            client.apply(body, field_manager="second")
        assert refused.value.status.code == 409
        assert client.apply(body, field_manager="second", force=True).data == {"color": "green"}
        assert [found.metadata.name for found in client.list(ConfigMap, labels=dict(labels)) if found.metadata] == ["a"]
        seen = []
        for event, _ in client.watch(ConfigMap, labels=dict(labels)):
            seen.append(event)
            if event == "DELETED":
                break
            client.delete(ConfigMap, "a")
        assert seen == ["ADDED", "DELETED"]
