"""The node agent in place of a kubelet: it registers its Node, renews its Lease, and runs the pods that are bound to
its Node.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import platform
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from podwire_base.kube.client import config as client_config
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.client.informer import Informer
from podwire_base.kube.client.recorder import Recorder
from podwire_base.kube.client.reflector import Event
from podwire_base.kube.errors import ApiError, Refused
from podwire_base.kube.events import event, reference
from podwire_base.kube.meta import Object, key, name, namespace, uid
from podwire_base.kube.nodeconditions import ROLES
from podwire_base.kube.release import git_version
from podwire_base.kube.times import micro_timestamp, timestamp
from podwire_base.role import beat, layout, logs
from podwire_base.role import status as rolestatus
from podwire_base.role.run import main, stop_event, until_stopped

from .cni_runtime import Attachment, CniFailed, CniRuntime
from .cri.daemonconfig import CriConfig
from .environment import Room
from .podspec import NodeDns
from .podstatus import beaten, conditions, new_words, quiet
from .podworker import PodHost, PodWorker
from .runtime import Process, Sandbox, read
from .serving import Serving

if TYPE_CHECKING:
    from .cri.start import CriRuntime

log = logs.get("node")
HEARTBEAT = 10.0
REPORT = 300.0  # seconds after which a Node's status is sent even without news, as a kubelet does
STOP_SECONDS = 5


@dataclass(frozen=True)
class NodeConfig:
    """address, more_addresses: the node's InternalIPs. cni_bin: directory of the plugins. conf_dir: directory of the
    conflist. cri: of the runtime cri; None: netns.
    """

    node_name: str
    kubeconfig: str | None
    run_dir: Path
    address: str
    dns: NodeDns
    cni_bin: Path
    pause_command: tuple[str, ...]
    labels: tuple[tuple[str, str], ...] = ()
    more_addresses: tuple[str, ...] = ()
    cri: CriConfig | None = None

    @property
    def conf_dir(self) -> Path:
        return self.run_dir / "cni" / "net.d"


class Kubelet:
    def __init__(self, api: ApiClient, config: NodeConfig) -> None:
        self.api, self.config = api, config
        self.workers: dict[str, tuple[PodWorker, asyncio.Task[None]]] = {}
        self.recorder = Recorder(api, lambda text: log.debug("event not stored", error=text))
        self.cni = CniRuntime(config.conf_dir, config.cni_bin, config.run_dir / "cni" / "results")
        self.host = PodHost(
            config.run_dir,
            config.address,
            config.dns,
            self.cni,
            list(config.pause_command),
            self._report,
            self._gone,
            self._event,
            api,
            room=Room(os.cpu_count() or 1, memory_bytes()),
            host_files=(config.cri.data if config.cri else config.run_dir) / "host",
        )
        self.runtime: CriRuntime | None = None
        if config.cri:
            from .cri import start

            self.runtime = start.CriRuntime(
                config.cri, api, config.run_dir, config.cni_bin, config.address, memory_bytes()
            )
            self.host = dataclasses.replace(self.host, engine=self.runtime.engine)
        self.informer = Informer(
            api,
            "/api/v1/pods",
            field_selector=f"spec.nodeName={config.node_name}",
            on_event=self._on_pod,
            on_synced=self._forget_strangers,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._sent: list[Object] = []

    def _spawn(self, work: object) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)  # type: ignore[arg-type]  # a coroutine, by its callers
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ---- pods

    def _on_pod(self, event: Event) -> None:
        pod = event.object
        found = self.workers.get(uid(pod))
        if event.type == "DELETED":
            if found:  # a client deleted the object by force: remove the pod's local state
                found[0].update(
                    {
                        **pod,
                        "metadata": {
                            **pod["metadata"],
                            "deletionTimestamp": timestamp(time.time()),
                            "deletionGracePeriodSeconds": 0,
                        },
                    }
                )
        elif found:
            found[0].update(pod)
        elif pod.get("status", {}).get("phase") not in ("Succeeded", "Failed") or pod["metadata"].get(
            "deletionTimestamp"
        ):
            worker = PodWorker(pod, self.host)
            self.workers[uid(pod)] = (worker, self._spawn(self._watched(worker)))

    async def _watched(self, worker: PodWorker) -> None:
        try:
            await worker.run()
        except asyncio.CancelledError:
            raise
        except Exception as err:  # an error of one pod must not stop the other pods
            log.error("pod worker failed, starting it again", pod=key(worker.pod), error=repr(err))
            self._event(worker.pod, "Warning", "InternalError", repr(err))
            await asyncio.sleep(1)
            self.workers.pop(uid(worker.pod), None)
            current = self.informer.objects.get(key(worker.pod))
            if current is not None and uid(current) == uid(worker.pod):
                self._on_pod(Event("ADDED", key(current), current))
            return
        self.workers.pop(uid(worker.pod), None)

    def _forget_strangers(self) -> None:
        """Remove the sandboxes of pods whose objects were deleted while no node agent ran."""
        known = {uid(p) for p in self.informer.objects.values()}
        for directory in (self.config.run_dir / "pods").glob("*"):
            if directory.name not in known:
                self._spawn(self._remove(directory))

    async def _remove(self, directory: Path) -> None:
        facts = read(directory / "pod.json") or {}
        if self.runtime:
            await self.runtime.forget(directory)
            return
        sandbox = Sandbox(directory)
        pause = sandbox.process()
        log.info("removing a pod that is gone", pod=f"{facts.get('namespace')}/{facts.get('name')}")
        netns = f"/proc/{pause.pid}/ns/net" if pause else ""
        try:
            await self.cni.delete(
                Attachment(sandbox.id, netns, facts.get("namespace", ""), facts.get("name", ""), directory.name)
            )
        except CniFailed as err:
            log.warn("pod's network cannot be removed", pod=facts.get("name"), error=str(err))
        await sandbox.stop()
        for state in directory.glob("containers/*/state.json"):
            if (found := read(state)) and found.get("shim"):
                Process(found["shim"], found["shim_started"]).signal(signal.SIGKILL)
        sandbox.remove()

    async def _report(self, pod: Object, status: Object) -> None:
        """Patch the pod's status. Retry until the API server accepts the patch or the pod's object no longer exists."""
        space, own = namespace(pod), name(pod)
        delay = 0.1
        while True:
            try:
                await self.api.patch(
                    f"/api/v1/namespaces/{space}/pods/{own}/status", {"metadata": {"uid": uid(pod)}, "status": status}
                )
                return
            except ApiError as err:
                if isinstance(err, Refused) and err.code in (404, 409, 422):
                    return
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5.0)

    async def _gone(self, pod: Object) -> None:
        """Delete the pod's object after the pod's last process has ended. An object of the same name with another uid
        stays.
        """
        delay = 0.1
        while True:
            try:
                await self.api.delete(
                    f"/api/v1/namespaces/{namespace(pod)}/pods/{name(pod)}",
                    {"gracePeriodSeconds": 0, "preconditions": {"uid": uid(pod)}},
                )
                return
            except ApiError as err:
                if isinstance(err, Refused) and err.code in (404, 409, 403):
                    return
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5.0)

    def _event(self, pod: Object, kind: str, reason: str, message: str, container: str = "") -> None:
        about = reference("Pod", pod)
        if container:
            init = any(c["name"] == container for c in pod["spec"].get("initContainers") or [])
            about["fieldPath"] = f"spec.{'initContainers' if init else 'containers'}{{{container}}}"
        who = {"component": "kubelet", "host": self.config.node_name}
        self.recorder.tell(event(about, reason, message, time.time(), warning=kind == "Warning", **who))

    # ---- the Node object

    def _node_status(self, node: Object) -> Object:
        now = time.time()
        wanted: dict[str, tuple[bool, str, str]] = {}
        stands = rolestatus.standings(self.config.run_dir, ROLES)
        for role, kind in ROLES.items():
            wanted[kind] = (stands[role].ready, stands[role].reason, stands[role].message)
        network = self.cni.conflist() is not None
        wanted["NetworkUnavailable"] = (not network, "" if network else "NoCNIConfig", "")
        served = self.runtime is None or self.runtime.serves
        wanted["Ready"] = (
            network and served,
            "NodeReady" if network and served else "KubeletNotReady" if network else "NetworkNotReady",
            "" if network and served else "container runtime is down" if network else "no CNI configuration yet",
        )
        room = {"cpu": str(os.cpu_count()), "memory": _memory(), "pods": "250"}
        return {
            "addresses": [
                *({"type": "InternalIP", "address": ip} for ip in (self.config.address, *self.config.more_addresses)),
                {"type": "Hostname", "address": self.config.node_name},
            ],
            "conditions": conditions(node, wanted, now),
            "capacity": room,
            "allocatable": room,
            "nodeInfo": {
                "kernelVersion": platform.release(),
                "kubeletVersion": git_version(),
                "containerRuntimeVersion": self.runtime.version if self.runtime else "netns://podwire",
                "operatingSystem": "linux",
                "machineID": "",
                "systemUUID": "",
                "bootID": "",
                "kubeProxyVersion": "",
                "osImage": _os_name(),
                "architecture": _architecture(),
            },
        }

    async def _register(self) -> Object:
        own = self.config.node_name
        try:
            return await self.api.get(f"/api/v1/nodes/{own}")
        except Refused as err:
            if err.code != 404:
                raise
        log.info("registering", node=own)
        return await self.api.create(
            "/api/v1/nodes",
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {
                    "name": own,
                    "labels": {
                        "kubernetes.io/hostname": own,
                        "kubernetes.io/os": "linux",
                        "kubernetes.io/arch": _architecture(),
                        **dict(self.config.labels),
                    },
                },
            },
        )

    async def _heartbeat(self) -> None:
        own = self.config.node_name
        lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        spec = {
            "holderIdentity": own,
            "leaseDurationSeconds": 40,
            "renewTime": micro_timestamp(time.time()),
        }
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": own}, "spec": spec}
        try:
            await self.api.patch(f"{lease}/{own}", {"spec": spec})
        except Refused as err:
            if err.code != 404:
                raise
            await self.api.create(lease, body)

    async def _sync_node(self) -> None:
        """Send heartbeats and the Node's status. Send a change of a role's condition at once. Send changed numbers with
        the next heartbeat.
        """
        sent, reported, last, told = 0.0, -REPORT, None, False
        while True:
            try:
                node = await self._register() if last is None or time.monotonic() - sent > HEARTBEAT else last
                status = self._node_status(node)
                known = node.get("status") or {}
                stored, made = quiet(known.get("conditions") or []), quiet(status["conditions"])
                changed = new_words(stored, made) or time.monotonic() - reported > REPORT
                if time.monotonic() - sent > HEARTBEAT or last is None:
                    await self._heartbeat()
                    sent = time.monotonic()
                    changed = changed or made != stored
                if changed or known.get("addresses") != status["addresses"]:
                    status["conditions"] = beaten(status["conditions"], time.time())
                    node = await self.api.patch(f"/api/v1/nodes/{self.config.node_name}/status", {"status": status})
                    reported = time.monotonic()
                last, told = node, False
                beat.tell(True, "node status sent")
            except ApiError as err:
                if not told:
                    log.warn("node status not sent", error=err.message)
                told, last = True, None
            await asyncio.sleep(0.2 if not self.cni.conflist() else 0.5)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sync_node())
            tasks.create_task(Serving(self.config.run_dir).run())
            if self.runtime:
                tasks.create_task(self.runtime.run())
                await self.runtime.served.wait()  # what it runs is looked at before the pods are
            tasks.create_task(self.informer.run())
            tasks.create_task(self.recorder.run())


def _architecture() -> str:
    """Return the machine's architecture as Go names it."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def _memory() -> str:
    """Return the machine's memory as a quantity: pods of all its nodes share it."""
    return f"{memory_bytes() // 1024}Ki"


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return ""


async def _main(config: NodeConfig) -> None:
    async with ApiClient(client_config.load(config.kubeconfig)) as api:
        # SIGALRM ends the process if a task still blocks it. Pods run on without the node agent.
        if await until_stopped(stop_event(), Kubelet(api, config).run(), lambda: signal.alarm(STOP_SECONDS)):
            log.info("stopped; pods go on")


def run(config: NodeConfig) -> None:
    """Run until SIGTERM. The pods run on without the node agent, and the next node agent takes them over."""
    layout.claim(config.run_dir)
    main("node", _main(config))
