"""An ordinary cluster in which podwire's DaemonSet runs.

The API server uses TLS and grants the agents exactly the rights of their ClusterRoles. The pods have service account
volumes. The pods of deploy/'s manifests run as processes on the nodes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aiohttp import web

from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object
from podwire_base.kube.registry import of
from podwire_base.role.native import beat_program
from podwire_controlplane.allocators import ServiceAllocator
from podwire_controlplane.server import auth, pki
from podwire_controlplane.server.app import make_app
from podwire_controlplane.server.handlers import USER
from podwire_controlplane.server.main import _listener
from podwire_controlplane.server.objects import Objects
from podwire_controlplane.server.writes import Scope, WriteOptions
from podwire_controlplane.store.memory import MemoryStore
from podwire_controlplane.testing.inthread import InThread, tls
from podwire_dns.rights import readable_by_others

from . import evidence
from .netns import NetNS
from .patience import patient

ACCOUNTS = "system:serviceaccount:kube-system:"
AGENT = f"{ACCOUNTS}podwire"
SERVICE_CIDRS = "/apis/networking.k8s.io/v1/servicecidrs"
OPEN = (
    "/healthz",
    "/livez",
    "/readyz",
    "/version",
)  # to all clients, by Kubernetes' ClusterRole system:public-info-viewer
# What `podwire status` asks for too, and does without; the role has no need of them.
STATUS_ALSO = {("list", "", "pods"), ("list", "", "events"), ("list", "networking.k8s.io", "networkpolicies")}
Right = tuple[str, str, str]  # verb, API group, resource and " in NAMESPACE", " in NAMESPACE/NAME", " named NAME" or ""


def rights(roles: Iterable[Object]) -> set[Right]:
    """Return the rights that ClusterRoles and Roles grant."""
    found = set()
    for role in roles:
        space = f" in {role['metadata']['namespace']}" if role["kind"] == "Role" else ""
        for rule in role["rules"]:
            places = [f"{space}/{own}" if space else f" named {own}" for own in rule.get("resourceNames", [])] or [
                space
            ]
            found |= {
                (verb, group, resource + place)
                for verb in rule["verbs"]
                for group in rule["apiGroups"]
                for resource in rule["resources"]
                for place in places
            }
    return found


def rights_of(account: str, objects: list[Object]) -> set[Right]:
    """Return the rights that the bindings in `objects` grant to a service account of kube-system."""
    roles = {(o["kind"], o["metadata"]["name"]): o for o in objects if o["kind"] in ("Role", "ClusterRole")}
    subject = {"kind": "ServiceAccount", "name": account, "namespace": "kube-system"}
    return rights(
        roles[o["roleRef"]["kind"], o["roleRef"]["name"]]
        for o in objects
        if o["kind"] in ("RoleBinding", "ClusterRoleBinding") and subject in o["subjects"]
    )


def needs(method: str, path: str, query: Any) -> list[Right]:
    """Return the rights that permit a request, the widest last. One of them is enough (Kubernetes' request
    attributes).
    """
    parts = path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    space = rest[1] if rest[0] == "namespaces" and len(rest) > 1 else ""  # a Namespace is in the namespace of its name
    if space and len(rest) > 2:
        rest = rest[2:]
    resource = "/".join([rest[0], *rest[2:]])
    read = "watch" if query.get("watch") == "true" else "list" if len(rest) == 1 else "get"
    verb = {"GET": read, "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[method]
    name = rest[1] if len(rest) > 1 else query.get("fieldSelector", "").removeprefix("metadata.name=")
    return [
        (verb, group, resource + place)
        for place in (
            *([f" in {space}/{name}"] if space and name else []),
            *([f" in {space}"] if space else []),
            *([f" named {name}"] if name else []),
            "",
        )
    ]


async def _service_cidrs(request: web.Request) -> web.StreamResponse:
    """Serve ServiceCIDR objects. Newer clusters have them (KEP-1880); podwire's own API server does not."""
    one = {"metadata": {"name": "kubernetes", "resourceVersion": "7"}, "spec": {"cidrs": ["10.96.0.0/16"]}}
    if request.query.get("watch") != "true":
        return web.json_response({"kind": "ServiceCIDRList", "metadata": {"resourceVersion": "7"}, "items": [one]})
    answer = web.StreamResponse(headers={"Content-Type": "application/json"})
    await answer.prepare(request)
    if "sendInitialEvents" in request.query:
        end = {"metadata": {"resourceVersion": "7", "annotations": {"k8s.io/initial-events-end": "true"}}}
        for kind, obj in (("ADDED", one), ("BOOKMARK", end)):
            await answer.write(json.dumps({"type": kind, "object": obj}).encode() + b"\n")
    await asyncio.sleep(300)
    return answer


def _bare(answer: web.Response) -> web.Response:
    """Return the answer without kind and apiVersion in the items of a list, as a Kubernetes API server answers."""
    body = json.loads(answer.body) if isinstance(answer.body, bytes) else None
    if not isinstance(body, dict) or not isinstance(body.get("items"), list):
        return answer
    items = [
        {field: value for field, value in item.items() if field not in ("kind", "apiVersion")} for item in body["items"]
    ]
    return web.json_response({**body, "items": items}, status=answer.status)


class GuardedApi(InThread):
    """Use as `with GuardedApi(ns, ["172.30.9.1"], {AGENT: {...}}) as api:`.

    granted: service account -> its rights. asked: service account -> the rights that its requests needed, granted or
    refused. without_watchlist: the clients for which the server has no WatchList.
    """

    def __init__(
        self, ns: NetNS, addresses: list[str], granted: dict[str, set[Right]], without_watchlist: Iterable[str] = ()
    ) -> None:
        super().__init__()
        self.without_watchlist = frozenset(without_watchlist)
        self.ns, self.addresses, self.granted = ns, addresses, granted
        self.asked: defaultdict[str, set[Right]] = defaultdict(set)
        self.authority = pki.Authority()
        self.tokens: dict[str, auth.User] = {}

    async def _start(self) -> None:
        self.store = MemoryStore()
        self.objects = Objects(self.store, ServiceAllocator(ipaddress.ip_network("10.96.0.0/16")))
        await self.objects.start()
        app = make_app(self.objects, self.tokens)
        app.middlewares.append(self._guard)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        context = tls(self.authority, ["kubernetes"], self.addresses)
        for address in self.addresses:
            await web.SockSite(self._runner, _listener(address, 6443, self.ns.path), ssl_context=context).start()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        user = request[USER].name if request.get(USER) is not None else ""
        if user and request.path not in OPEN:
            wanted, granted = needs(request.method, request.path, request.query), self.granted.get(user, set())
            need = next((one for one in wanted if one in granted), wanted[-1])
            self.asked[user].add(need)
            if need not in granted:
                raise StatusError(403, "Forbidden", f"{need} is not granted to {user}")
        if "sendInitialEvents" in request.query and request.remote in self.without_watchlist:
            raise StatusError(422, "Invalid", "sendInitialEvents is forbidden: the WatchList feature gate is off")
        answer: web.StreamResponse = await (_service_cidrs if request.path == SERVICE_CIDRS else handler)(request)
        if request.method == "GET" and isinstance(answer, web.Response) and answer.content_type == "application/json":
            return _bare(answer)
        return answer

    # ---- the cluster's admin

    def create(self, kind: str, obj: Object, namespace: str = "") -> Object:
        status = obj.get("status")
        written = self.do(self.objects.create(Scope(of(kind), namespace), obj, WriteOptions()))
        if status:
            self.do(
                self.objects.patch(
                    Scope(of(kind), namespace, obj["metadata"]["name"], "status"),
                    "application/merge-patch+json",
                    {"status": status},
                    WriteOptions(),
                )
            )
        made: Object = json.loads(written.raw)
        return made

    def patch(self, kind: str, name: str, namespace: str, body: Object) -> None:
        self.do(
            self.objects.patch(Scope(of(kind), namespace, name), "application/merge-patch+json", body, WriteOptions())
        )

    def get(self, kind: str, name: str, namespace: str) -> Object:
        found: Object = self.do(self.objects.get(Scope(of(kind), namespace, name)))
        return found

    def replace_token(self, token: str, account: str = AGENT) -> None:
        """Replace all tokens of the account by this token."""
        for old in [own for own, user in self.tokens.items() if user.name == account]:
            del self.tokens[old]
        self.tokens[token] = auth.User(account, frozenset({auth.ADMINS}))


def filled(word: str, env: dict[str, str]) -> str:
    """Return an argument with the values of its variables, which the kubelet puts in."""
    return re.sub(r"\$\((\w+)\)", lambda found: env[found[1]], word)


class WorkloadPod:
    """A pod of a DaemonSet or Deployment as processes, with the variables, ConfigMaps and arguments that a kubelet
    would give it.
    """

    def __init__(
        self,
        ns: NetNS,
        node: str,
        address: str,
        objects: list[Object],
        folder: Path,
        api: GuardedApi,
        kind: str = "DaemonSet",
    ) -> None:
        self.ns, self.name, self.folder, self.api = ns, node, folder, api
        evidence.tells(self)
        (daemon,) = [o for o in objects if o["kind"] == kind]
        self.spec = daemon["spec"]["template"]["spec"]
        self.maps = {o["metadata"]["name"]: o["data"] for o in objects if o["kind"] == "ConfigMap"}
        self.fields = {"spec.nodeName": node, "status.hostIP": address, "metadata.name": f"podwire-{node}-x7k2p"}
        self.account = folder / "account"
        self.processes: dict[str, subprocess.Popen[str]] = {}  # by container

    def describe(self) -> str:
        """Return the evidence of a failed test: the log."""
        return self.log()

    def path(self, of_node: str) -> Path:
        """Return the real path of a path on the node. Each node has a separate directory."""
        return self.folder / of_node.lstrip("/")

    def write_account(self, token: str) -> None:
        """Write the service account's volume. For a new token, switch a symbolic link as the kubelet does."""
        data = self.account / f"..{token}"
        data.mkdir(parents=True)
        for own, text in (("token", token), ("ca.crt", self.api.authority.certificate), ("namespace", "kube-system")):
            (data / own).write_text(text)
            if not (self.account / own).is_symlink():
                (self.account / own).symlink_to(f"..data/{own}")
        (self.account / "..new").symlink_to(data.name)
        (self.account / "..new").rename(self.account / "..data")

    def environment(self, container: Object, **more: str) -> dict[str, str]:
        env: dict[str, str] = {"PATH": os.environ["PATH"]}
        for source in container.get("envFrom", []):
            env |= self.maps[source["configMapRef"]["name"]]
        for row in container.get("env", []):
            env[row["name"]] = (
                row["value"] if "value" in row else self.fields[row["valueFrom"]["fieldRef"]["fieldPath"]]
            )
        moved: dict[str, str] = {}
        volumes = {v["name"]: v for v in self.spec.get("volumes", [])}
        for mount in container.get("volumeMounts", []):
            place, volume = self.folder / mount["mountPath"].lstrip("/"), volumes[mount["name"]]
            place.mkdir(parents=True, exist_ok=True)
            for own, text in self.maps[volume["configMap"]["name"]].items() if "configMap" in volume else ():
                (place / own).write_text(text)
            moved |= {
                name: str(place) + value.removeprefix(mount["mountPath"])
                for name, value in env.items()
                if value.startswith(mount["mountPath"])
            }
        return {**env, **moved, **more}

    def run_init(self) -> str:
        said = ""
        for container in self.spec["initContainers"]:
            args = [str(self.folder) if word == "/host" else word for word in container["args"]]
            env = {**self.environment(container), "PODWIRE_CNI_CONF_DIR": "/etc/cni/net.d"}
            said += self.ns.run([f"{sys.prefix}/bin/podwire", *args], env=env).stdout
        return said

    def start(self, **more: str) -> None:
        """Start the containers. One that is not privileged has only the capabilities in the manifest."""
        for row in self.spec.get("securityContext", {}).get("sysctls", []):
            self.ns.run(["sysctl", "-qw", f"{row['name']}={row['value']}"])
        for container in self.spec["containers"]:
            env = self.environment(container, PODWIRE_SERVICE_ACCOUNT_DIR=str(self.account), **more)
            security = container["securityContext"]
            caps = ["-all", *(f"+{own.lower()}" for own in security.get("capabilities", {}).get("add", []))]
            drop = (
                []
                if security.get("privileged")
                else ["setpriv", *self._user(container, caps), "--no-new-privs", f"--bounding-set={','.join(caps)}"]
            )
            args = [filled(word, env) for word in container["args"]]
            args = [word.replace("=/", f"={self.folder}/") for word in args]  # paths in the pod's directory
            with open(self.folder / "agent.log", "a") as log:
                self.processes[container["name"]] = self.ns.popen(
                    [*drop, f"{sys.prefix}/bin/podwire", *args], env=env, stdout=log, stderr=log
                )

    def _user(self, container: Object, caps: list[str]) -> list[str]:
        """Return the words of setpriv for the pod's user, who gets the volumes that the kubelet gives to `fsGroup`.

        Without `runAsUser` it is root, as in the image.
        """
        wanted = self.spec.get("securityContext", {})
        if "runAsUser" not in wanted:
            return ["--inh-caps=-all"]
        assert wanted["runAsNonRoot"] and wanted["runAsUser"] > 0
        memory = {volume["name"] for volume in self.spec["volumes"] if "emptyDir" in volume}
        for mount in container["volumeMounts"]:
            if mount["name"] in memory:
                place = self.path(mount["mountPath"])
                place.chmod(0o777)  # as the kubelet makes it
                if "fsGroup" in wanted:
                    os.chown(place, 0, wanted["fsGroup"])
                    place.chmod(0o2775)
        words = [f"--reuid={wanted['runAsUser']}", f"--regid={wanted['runAsGroup']}", "--clear-groups"]
        if not all(readable_by_others(Path(each)) for each in (sys.prefix, sys.base_prefix, __file__, self.folder)):
            caps.append("+dac_read_search")  # the checkout is root's alone; in an image every user reads podwire
            return [*words, "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
        return [*words, "--inh-caps=-all"]

    def stop(self) -> int:
        """End the containers. Returns the worst exit status; -1 if one had ended before."""
        early = any(process.poll() is not None for process in self.processes.values())
        for process in self.processes.values():
            process.terminate()
        codes = [process.wait(timeout=patient(20)) for process in self.processes.values()]
        self.processes.clear()
        return -1 if early else max(map(abs, codes), default=-1)

    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    def probe(self, which: str) -> bool:
        """Run a probe of each container as the kubelet does, and return whether all succeed."""
        return all(self._probe(container, which) for container in self.spec["containers"])

    def _probe(self, container: Object, which: str) -> bool:
        if "exec" in container[which]:
            program, *words = container[which]["exec"]["command"]
            own = beat_program()
            assert own is not None and Path(program).name == own.name
            moved = [str(self.path(word)) if word.startswith("/") else word for word in words]
            return self.ns.run([str(own), *moved], check=False).returncode == 0
        probe = container[which]["httpGet"]
        done = self.ns.run(
            [
                "curl",
                "-s",
                "-m",
                "2",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                f"http://{probe.get('host', '127.0.0.1')}:{probe['port']}{probe['path']}",
            ],
            check=False,
        )
        return done.stdout.startswith("2")
