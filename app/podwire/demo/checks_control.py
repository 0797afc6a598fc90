"""Demo, parts 7 and 8: a client (kubectl or podwire) uses the API, and traffic continues during restarts."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from podwire_base.patience import patient

from .lab import DemoLab, NotYet, wait_for
from .rows import Row

KINDS = ("Pod", "Service", "Endpoints", "EndpointSlice", "Deployment", "ReplicaSet", "Node")


def objects(lab: DemoLab) -> Iterator[Row]:
    """kubectl (without it, podwire) gets, applies, watches and deletes objects."""
    words = ("get", "nodes,pods,services,endpointslices", "-o", "wide")
    text = lab.run_tool(*words)
    wanted = [
        *lab.config.node_names(),
        "my-service",
        *(p.address for p in lab.pods("MyApp")),
        lab.cluster_ip("my-service"),
    ]
    missing = [w for w in wanted if w not in text]
    yield Row(
        "7",
        f"{lab.tool_name} {' '.join(words)}",
        "the machine",
        f"{len(text.splitlines())} lines",
        not missing,
        f"missing: {missing}",
    )
    manifest = (
        "apiVersion: v1\nkind: Service\nmetadata: {name: demo-watched}\n"
        "spec: {selector: {app: MyApp}, ports: [{port: 81}]}\n"
    )
    watch = subprocess.Popen(
        [*lab.tool, "get", "services", "--watch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**lab.environment, "PYTHONUNBUFFERED": "1"},
    )
    try:
        time.sleep(patient(1.0))
        applied = lab.run_tool("apply", "-f", "-", stdin=manifest)
        changed = lab.run_tool("apply", "-f", "-", stdin=manifest.replace("port: 81", "port: 82"))
        again = lab.run_tool("apply", "-f", "-", stdin=manifest.replace("port: 81", "port: 82"))
        gone = lab.run_tool("delete", "service", "demo-watched")
        time.sleep(patient(0.5))
    finally:
        watch.kill()
    seen = [line for line in (watch.communicate()[0] or "").splitlines() if line.startswith("demo-watched")]
    yield Row(
        "7",
        f"{lab.tool_name} apply, apply changed, apply again, delete",
        "the machine",
        "created, configured, unchanged, deleted",
        "created" in applied and "configured" in changed and "unchanged" in again and "deleted" in gone,
        " / ".join(t.strip() for t in (applied, changed, again, gone)),
    )
    yield Row(
        "7",
        f"{lab.tool_name} get services --watch",
        "the machine",
        f"{len(seen)} lines about demo-watched",
        len(seen) >= 3 and "81/TCP" in seen[0] and any("82/TCP" in s for s in seen),
        "; ".join(seen),
    )


def refusals(lab: DemoLab) -> Iterator[Row]:
    """The API server refuses invalid manifests with the cause, and changes nothing."""
    service = (
        "apiVersion: v1\nkind: Service\nmetadata: {name: demo-bad}\nspec: {type: NodePort, ports: [{port: 80, %s}]}\n"
    )
    cases = (
        ("an unknown field", service % "targetPrt: 1", "targetPrt"),
        ("the NodePort of another Service", service % "nodePort: 30080", "my-nodeport"),
        ("a NodePort outside the range", service % "nodePort: 99", "30000-32767"),
        (
            "a ClusterIP outside the range",
            (service % "protocol: TCP").replace("spec: {", "spec: {clusterIP: 10.1.2.3, "),
            "spec.clusterIP",
        ),
        ("malformed YAML", "kind: [", "YAML"),
    )
    refused, wrong = True, []
    for label, text, must in cases:
        code, said = lab.try_tool("apply", "-f", "-", stdin=text)
        if code == 0 or must.lower() not in said.lower():
            refused = False
            wrong.append(f"{label}: exit {code}: {said.strip()[-160:]}")
    created = "demo-bad" in lab.run_tool("get", "services")
    yield Row(
        "7",
        f"{len(cases)} invalid manifests",
        "the machine",
        "each refused with the cause, nothing changed",
        refused and not created,
        "; ".join(wrong) or f"demo-bad exists: {created}",
    )


def restart_proxies(lab: DemoLab) -> Iterator[Row]:
    """Connections through a Service and through a NodePort succeed while every node's proxy restarts."""
    client, address = lab.pods("client")[0], lab.cluster_ip("my-service")
    with (
        lab.hammer(client.netns, address, 80) as inner,
        lab.hammer(lab.outside("client"), lab.config.node_address("node1"), 30080) as outer,
    ):
        time.sleep(0.3)
        for node in lab.config.node_names():
            lab.restart(node, "proxy", signal.SIGTERM)
            lab.restart(node, "proxy", signal.SIGKILL)
        wait_for(lambda: all(_ready(n, "PodwireProxy") for n in lab.items("Node")), 20)
        time.sleep(0.3)
    sent, failed = inner["sent"] + outer["sent"], inner["failed"] + outer["failed"]
    yield Row(
        "8",
        "restart every proxy, with SIGTERM and SIGKILL",
        "client pod, outside client",
        f"{sent} connections during the restarts, {len(failed)} failed",
        not failed and sent > 50,
        "; ".join(sorted(set(failed))),
    )


def _ready(node: dict[str, object], kind: str) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or []  # type: ignore[attr-defined]  # node is JSON
    return any(c["type"] == kind and c["status"] == "True" for c in conditions)


def kill_api_server(lab: DemoLab) -> Iterator[Row]:
    """After SIGKILL and a restart, the API server has its objects, and a new Service works. Traffic continues
    meanwhile.
    """
    client, address = lab.pods("client")[0], lab.cluster_ip("my-service")

    def state() -> set[tuple[str, str, str]]:
        return {(k, o["metadata"]["name"], o["metadata"]["uid"]) for k in KINDS for o in lab.items(k, "")}

    before = state()
    with lab.hammer(client.netns, address, 80) as seen:
        lab.restart(None, "apiserver", signal.SIGKILL)

        def answers() -> bool:
            """the API server lists all nodes"""
            try:
                return len(lab.items("Node")) == lab.config.nodes
            except NotYet:
                return False

        wait_for(answers, 20)
        after = state()
        time.sleep(0.3)
    lost = {f"{k} {n}" for k, n, _ in before - after}
    yield Row(
        "8",
        "kill -9 the API server",
        "the machine",
        f"{len(after & before)} of {len(before)} objects still exist",
        not lost,
        f"lost: {sorted(lost)}",
    )
    yield Row(
        "8",
        "connections through my-service during the restart",
        client.name,
        f"{seen['sent']} connections, {len(seen['failed'])} failed",
        not seen["failed"] and seen["sent"] > 50,
        "; ".join(sorted(set(seen["failed"]))),
    )
    lab.run_tool(
        "apply",
        "-f",
        "-",
        stdin="apiVersion: v1\nkind: Service\nmetadata: {name: demo-after}\n"
        "spec: {selector: {app: MyApp}, ports: [{port: 80, targetPort: 9376}]}\n",
    )
    fresh = lab.cluster_ip("demo-after")

    def reached() -> bool:
        """the new Service answers"""
        return lab.tcp(client.netns, fresh, 80, 0.5).ok

    works = wait_for(reached, 15)
    lab.run_tool("delete", "service", "demo-after")
    yield Row("8", "a Service created after the restart", client.name, f"{fresh}:80 answers", works)


def status(lab: DemoLab) -> Iterator[Row]:
    """`podwire status` shows nodes, pods, Services and the state of each role."""
    done = subprocess.run(
        [sys.executable, "-m", "podwire.main", "status", f"--wait={patient(20):.0f}"],
        capture_output=True,
        text=True,
        timeout=patient(40),
        env=lab.environment,
        check=False,
    )
    wanted = [*lab.config.node_names(), "wiring", "proxy", "dns", "default/my-service", lab.pods("MyApp")[0].name]
    missing = [w for w in wanted if w not in done.stdout]
    yield Row(
        "7",
        "podwire status",
        "the machine",
        "nodes, pods, Services, roles",
        done.returncode == 0 and not missing,
        f"missing {missing}: {done.stderr[-200:]}",
    )


CHECKS = (objects, status, refusals, restart_proxies, kill_api_server)
