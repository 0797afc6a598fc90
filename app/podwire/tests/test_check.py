"""The table of `podwire check`, its results and objects, and commands over WebSocket."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from aiohttp import web
from click.testing import CliRunner

from podwire.check import objects, probe, table, world
from podwire.check.rows import Finding, Result, junit, result_of
from podwire.demo import checks_control, checks_dns, checks_pods, checks_services
from podwire.main import cli
from podwire_base.kube.client import config as client_config
from podwire_base.kube.client import execute
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import ApiError, Refused
from podwire_base.kube.times import timestamp


def test_one_table_has_every_check_of_the_demo_once() -> None:
    names = [check.name for check in table.TABLE]
    assert len(names) == len(set(names))
    assert all((check.probes is None) != (check.lab is None) and check.says for check in table.TABLE)
    demo = {f for module in (checks_pods, checks_services, checks_dns, checks_control) for f in module.CHECKS}
    assert {check.lab for check in table.IN_THE_DEMO} == demo
    assert set(table.TABLE) == set(table.IN_THE_DEMO) | set(table.ON_ANY_CLUSTER)


def test_results() -> None:
    good, bad = Finding("a", "TCP b", "b", True), Finding("a", "TCP c", "timeout", False)
    assert result_of("n", "s", [good], 1, ()) == Result("n", "s", "ok", "b", "", 1)
    failed = result_of("n", "s", [good, *[bad] * 5], 1, ("why",))
    assert (failed.state, failed.back) == ("failed", "1 of 6") and failed.reasons == ("why",)
    assert failed.detail == "; ".join(["a: TCP c: timeout"] * 3) + "; and 2 more"
    assert result_of("n", "s", [], 1, ()).state == "failed"  # a check that tried nothing did not hold


def test_junit() -> None:
    rows = [
        Result("a", "", "ok"),
        Result("b", "", "failed", "", "x<\0>", 0.5, ("why",)),
        Result("c", "", "left out", "", "no"),
    ]
    suite = ElementTree.fromstring(junit(rows))
    assert [suite.get(k) for k in ("tests", "failures", "skipped")] == ["3", "1", "1"]
    assert suite[1][0].get("message") == "x<?>" and suite[1][0].text == "why" and suite[2][0].get("message") == "no"


def test_whose_namespaces_are_abandoned() -> None:
    space = objects.namespace("podwire-check-1", "host/5", 1000.0)
    assert not objects.is_abandoned(space, 1000 + objects.LIFE - 2, ())
    assert objects.is_abandoned(space, 1000 + objects.LIFE + 2, ())
    assert not objects.is_abandoned(space, 1e9, ("host/5",))
    assert not objects.is_abandoned(
        {"metadata": {"name": "podwire-check-mine"}}, 1e9, ()
    )  # without the label: not ours
    assert objects.is_abandoned({"metadata": {"labels": {objects.LABEL: "true"}}}, 0, ())
    assert timestamp(1060.0) == space["metadata"]["annotations"][objects.EXPIRES]


def test_probe_pods_pass_the_strictest_admission() -> None:
    pod = objects.probe("p", "n1", "i", "python3", "src", plain=False)
    (container,) = pod["spec"]["containers"]
    assert container["securityContext"] == objects.RESTRICTED
    assert not pod["spec"].get("hostNetwork") and not any(p.get("hostPort") for p in container["ports"])


def test_the_probes_source_needs_the_standard_library_alone() -> None:
    source = inspect.getsource(probe)
    made = compile(source, "probe", "exec")
    assert {name for name in made.co_names if name.startswith("podwire")} == set()
    assert "$(" not in source  # the kubelet would replace it in an environment variable


def test_requests_are_cut_into_calls_that_fit_a_url() -> None:
    requests = [{"do": "tcp", "to": "10.0.0.1", "port": n} for n in range(300)]
    parts = world._parts(requests)
    assert [r for part in parts for r in part] == requests and len(parts) > 1
    assert all(len(json.dumps(part)) <= world.REQUESTS for part in parts)
    assert world._parts([]) == []


def test_unknown_tests_and_bad_words_are_refused() -> None:
    for words, text in (
        (["--test", "nope"], "the tests are same-node, other-node"),
        (["--outside", "host"], "expected HOST:PORT"),
    ):
        done = CliRunner().invoke(cli, ["check", *words, "--kubeconfig", "/none"])
        assert done.exit_code == 1 and text in " ".join(done.output.split())
    done = CliRunner().invoke(cli, ["check", "--list", "-o", "json"])
    assert {row["name"] for row in json.loads(done.output)} == {check.name for check in table.TABLE}


# ---- commands over WebSocket


def ran(serve: Callable[[web.WebSocketResponse], object], folder: Path, protocols: tuple[str, ...]) -> execute.Done:
    """Run `x y&z` through a server that answers with the frames of `serve`."""
    asked: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.extend(request.query.getall("command"))
        stream = web.WebSocketResponse(protocols=protocols)
        await stream.prepare(request)
        await serve(stream)  # type: ignore[misc]  # a coroutine
        await stream.close()
        return stream

    async def body() -> execute.Done:
        app = web.Application()
        app.router.add_get("/pod/exec", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        text = {"clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{runner.addresses[0][1]}"}}]}
        text |= {
            "users": [{"name": "c", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        }
        (folder / "config").write_text(json.dumps({**text, "current-context": "c"}))
        try:
            async with ApiClient(client_config.load(str(folder / "config"))) as api:
                return await execute.run(api, "/pod", "c", ["x", "y&z"], 5)
        finally:
            await runner.cleanup()

    done = asyncio.run(body())
    assert asked == ["x", "y&z"]
    return done


@pytest.mark.parametrize("protocol", execute.PROTOCOLS)
def test_output_comes_in_pieces_and_with_an_exit_status(tmp_path: Path, protocol: str) -> None:
    async def serve(stream: web.WebSocketResponse) -> None:
        for frame in (b"\1one ", b"\2bad", b"\1two", b"", b"\1"):
            await stream.send_bytes(frame)
        causes = {"causes": [{"reason": "ExitCode", "message": "7"}]}
        await stream.send_bytes(b"\3" + json.dumps({"status": "Failure", "details": causes}).encode())

    assert ran(serve, tmp_path, (protocol,)) == execute.Done(7, b"one two", b"bad")


@pytest.mark.parametrize(
    ("status", "error"),
    [(b'{"status":"Failure","code":500,"message":"no such container"}', Refused), (b"{", ApiError), (b"", Refused)],
)
def test_what_did_not_run_is_an_error(tmp_path: Path, status: bytes, error: type[Exception]) -> None:
    async def serve(stream: web.WebSocketResponse) -> None:
        await stream.send_bytes(b"\3" + status)

    with pytest.raises(error):
        ran(serve, tmp_path, execute.PROTOCOLS)
