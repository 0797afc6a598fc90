"""Paths, queries and content negotiation as kube-apiserver has them. Pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kube.errors import StatusError
from podwire_base.kube.registry import of
from podwire_controlplane.server import lists, media, paths, query
from podwire_controlplane.server.media import JSON, PROTOBUF, YAML
from podwire_controlplane.server.paths import Target
from podwire_controlplane.server.selection import selection


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/api/v1/pods", Target("/api/v1/pods", "", "v1", "", "pods")),
        ("/api/v1/pods/", Target("/api/v1/pods", "", "v1", "", "pods")),
        ("/api/v1/namespaces", Target("/api/v1/namespaces", "", "v1", "", "namespaces")),
        ("/api/v1/namespaces/a", Target("/api/v1/namespaces/a", "", "v1", "", "namespaces", "a")),
        ("/api/v1/namespaces/a/pods/b", Target("/api/v1/namespaces/a/pods/b", "", "v1", "a", "pods", "b")),
        (
            "/api/v1/namespaces/a/status",
            Target("/api/v1/namespaces/a/status", "", "v1", "", "namespaces", "a", "status"),
        ),
        ("/api/v1/nodes/n/proxy/x", Target("/api/v1/nodes/n/proxy/x", "", "v1", "", "nodes", "n", "proxy", ("x",))),
        ("/apis/g/v1/watch/things/x", Target("/apis/g/v1/watch/things/x", "g", "v1", "", "things", "x", watched=True)),
        ("/apis/g/v1/things/a%20b", Target("/apis/g/v1/things/a b", "g", "v1", "", "things", "a b")),
        ("/apis/g/v1/things/a%2Fb", Target("/apis/g/v1/things/a/b", "g", "v1", "", "things", "a", "b")),
        (
            "/api/v1/namespaces/a%2F..%2Fb/pods",
            Target("/api/v1/namespaces/a/../b/pods", "", "v1", "a", "..", "b", "pods"),
        ),
        ("/apis/apps/v1/", Target("/apis/apps/v1")),
        ("/version/", Target("/version")),
        ("/", Target("/")),
        ("//api/v1/pods", Target("//api/v1/pods")),
    ],
)
def test_targets(path: str, target: Target) -> None:
    assert paths.parse(path) == target


def test_request_targets_of_proxies() -> None:
    assert paths.split("https://host:6443/api/v1?x=1#y") == ("/api/v1", "x=1")
    assert paths.split("*") == ("/*", "")


@given(st.text(alphabet="/%aApis2v1. ?#", max_size=40))
def test_any_path_has_a_target(text: str) -> None:
    assert paths.parse(paths.split(text)[0]).path.startswith("/")


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("1", True),
        ("true", True),
        ("tRue", True),
        ("yes", True),
        ("no", True),
        ("", True),
        ("0", False),
        ("FALSE", False),
    ],
)
def test_booleans_are_true_but_for_two_words(value: str, wanted: bool) -> None:
    assert query.boolean({"watch": value}, "watch") is wanted
    assert query.boolean({}, "watch") is None


@pytest.mark.parametrize(
    ("text", "causes"),
    [
        ("", []),
        ("resourceVersion=0", []),
        ("resourceVersion=5&resourceVersionMatch=Exact", []),
        ("resourceVersionMatch=Exact", ["FieldValueForbidden"]),
        ("resourceVersionMatch=Bogus", ["FieldValueForbidden", "FieldValueNotSupported"]),
        ("resourceVersion=0&resourceVersionMatch=Exact", ["FieldValueForbidden"]),
        ("resourceVersion=5&resourceVersionMatch=Exact&continue=x", ["FieldValueForbidden"]),
        ("sendInitialEvents=false", ["FieldValueForbidden"]),
        ("watch=1", []),
        ("watch=1&continue=x", ["FieldValueForbidden"]),
        ("watch=1&continue=x&resourceVersion=5", []),
        ("watch=1&resourceVersion=0&resourceVersionMatch=NotOlderThan", ["FieldValueForbidden"]),
        ("watch=1&sendInitialEvents=false", ["FieldValueForbidden"]),
        ("watch=1&sendInitialEvents=&resourceVersionMatch=NotOlderThan", []),
        ("watch=1&sendInitialEvents=1&resourceVersionMatch=Exact", ["FieldValueForbidden", "FieldValueNotSupported"]),
    ],
)
def test_rules_of_list_options(text: str, causes: list[str]) -> None:
    try:
        query.list_options(query.parse(text))
        found: list[str] = []
    except StatusError as err:
        assert err.code == 422 and err.about == ("meta.k8s.io", "ListOptions")
        found = [c.reason for c in err.causes]
    assert found == causes


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("", (JSON, "")),
        ("*/*", (JSON, "")),
        ("application/yaml", (YAML, "")),
        ("application/json;q=0.1,application/yaml", (YAML, "")),
        ("application/yaml;q=0.1, application/json;q=0.9", (JSON, "")),
        ("application/vnd.kubernetes.protobuf,application/json", (PROTOBUF, "")),
        ("application/json;as=Table;v=v1;g=meta.k8s.io", (JSON, "Table")),
        ("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json", (JSON, "")),
        ("application/json;as=PartialObjectMetadata;v=v1beta1;g=meta.k8s.io", (JSON, "PartialObjectMetadata")),
        ("application/json; charset=utf-16", (JSON, "")),
        ("application/json;stream=watch", (JSON, "")),
        ("application/json;as=Table;v=v1", None),
        ("application/json;as=Foo;v=v1;g=meta.k8s.io", None),
        ("application/json;stream=other", None),
        ("application/*", None),
        ("text/csv", None),
        ("text/csv, */*;q=0.1", (JSON, "")),
    ],
)
def test_negotiation(header: str, wanted: tuple[str, str] | None) -> None:
    try:
        form = media.negotiate(header)
        assert (form.media, form.kind) == wanted
    except StatusError as err:
        assert err.code == 406 and wanted is None


@given(st.text(alphabet="aplicton/json*;,=q.0158 \t", max_size=60))
def test_any_accept_header_has_an_answer(header: str) -> None:
    for negotiate in (media.negotiate, media.error_form):
        try:
            assert negotiate(header).media in media.ALL
        except StatusError as err:
            assert err.code == 406


def test_continue_tokens() -> None:
    assert lists.read_token(lists.make_token(7, "ns/ü\0")) == (7, "ns/ü\0")
    for token in ("garbage", "e30", lists.make_token(7, "x")[:-3], "W10", "é"):
        with pytest.raises(StatusError) as caught:
            lists.read_token(token)
        assert caught.value.code == 400


@pytest.mark.parametrize(
    ("kind", "fields", "stored", "takes"),
    [
        ("Pod", "spec.hostNetwork=false", b'{"metadata":{"name":"a"},"spec":{}}', True),
        ("Node", "spec.unschedulable=true", b'{"metadata":{"name":"a"},"spec":{}}', False),
        ("Pod", "spec.nodeName=n", b'{"metadata":{"name":"n"},"spec":{"nodeName":"n"}}', True),
        ("Pod", "spec.nodeName=n", b'{"metadata":{"name":"n"},"spec":{"nodeName":"m"}}', False),
        ("Pod", "=", b'{"metadata":{"name":"a"}}', True),
        ("Pod", "metadata.name=a\\,b", b'{"metadata":{"name":"a,b"}}', True),
        ("Event", "source=s", b'{"metadata":{"name":"a"},"source":{"component":"s"}}', True),
    ],
)
def test_fields_that_select(kind: str, fields: str, stored: bytes, takes: bool) -> None:
    assert selection(of(kind), "", fields).takes(stored) is takes


@pytest.mark.parametrize("fields", ["metadata.uid=x", "spec.foo=x", "metadata.name", "a=b\\c", "metadata.name=a=b"])
def test_other_fields_are_refused(fields: str) -> None:
    with pytest.raises(StatusError) as caught:
        selection(of("Pod"), "", fields)
    assert caught.value.code == 400


def test_a_label_is_looked_for_before_an_object_is_decoded() -> None:
    chosen = selection(of("Pod"), "app=web,!gone,tier in (a,b)", "")
    assert chosen.needles == (b'"app":"web"',)
    assert not chosen.takes(b"this is not JSON and is not decoded")
    assert chosen.takes(b'{"metadata":{"labels":{"app":"web","tier":"a"}}}')


def test_selectors_take_linear_time() -> None:
    """A selector of 200 kB is read in a moment; the old expressions took quadratic time for each."""
    import time

    start = time.process_time()
    for text in (
        "a" * 200_000,
        " " * 200_000 + "(",
        "a in (" + "(" * 200_000,
        "!" * 200_000,
        "a=" + " " * 200_000 + "(",
    ):
        with pytest.raises(StatusError):
            selection(of("Pod"), text, "")
    for text in ("\\," * 100_000, "a" * 200_000, "=" * 200_000):
        with pytest.raises(StatusError):
            selection(of("Pod"), "", text)
    assert time.process_time() - start < 2
