"""The API's objects that `podwire explain` reads, with look-ups by name and by address. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from podwire_base.kube.conditions import condition
from podwire_base.kube.meta import Object, controller_of, deleting, key, labels, name, namespace, seniority
from podwire_base.kube.nodeaddresses import usable

# What users write before the slash -> the kind
KINDS = {
    word: kind
    for kind, words in {
        "Pod": "pod pods po",
        "Service": "svc service services",
        "Node": "node nodes no",
        "Deployment": "deploy deployment deployments deployment.apps",
        "StatefulSet": "sts statefulset statefulsets statefulset.apps",
        "DaemonSet": "ds daemonset daemonsets daemonset.apps",
        "ReplicaSet": "rs replicaset replicasets replicaset.apps",
        "Job": "job jobs job.batch",
    }.items()
    for word in words.split()
}
# kind -> the path of its list; explain works without a list that the server does not serve or may not be read
PATHS = {
    "Service": "/api/v1/services",
    "EndpointSlice": "/apis/discovery.k8s.io/v1/endpointslices",
    "Pod": "/api/v1/pods",
    "Node": "/api/v1/nodes",
    "Event": "/api/v1/events",
}
NEEDED = ("Service", "EndpointSlice")


@dataclass(frozen=True, slots=True)
class Catalogue:
    """objects: kind -> objects. domain: the cluster domain, without a final dot. missing: kind -> why it is missing."""

    objects: Mapping[str, tuple[Object, ...]] = field(default_factory=dict)
    domain: str = "cluster.local"
    missing: Mapping[str, str] = field(default_factory=dict)

    def of(self, kind: str) -> tuple[Object, ...]:
        return self.objects.get(kind, ())

    def find(self, kind: str, space: str, own: str) -> Object | None:
        wanted = own if kind == "Node" else f"{space}/{own}"
        return next((obj for obj in self.of(kind) if key(obj) == wanted), None)

    def slices(self, service: str) -> list[Object]:
        """Returns the EndpointSlices of a Service, by "namespace/name"."""
        space, _, own = service.partition("/")
        return [
            one
            for one in self.of("EndpointSlice")
            if namespace(one) == space and labels(one).get("kubernetes.io/service-name") == own
        ]

    def pods_of(self, kind: str, space: str, own: str) -> list[Object]:
        """Returns the pods of a workload, those that are ready first. A Deployment owns its pods by ReplicaSets, whose
        names begin with its own.
        """
        found = []
        for pod in self.of("Pod"):
            owner = controller_of(pod) or {}
            whose, what = str(owner.get("name") or ""), owner.get("kind")
            direct = (what, whose) == (kind, own)
            by_set = kind == "Deployment" and what == "ReplicaSet" and whose.rpartition("-")[0] == own
            if namespace(pod) == space and (direct or by_set) and not ended(pod):
                found.append(pod)
        return sorted(found, key=lambda pod: (not is_ready(pod), name(pod)))

    def pod_at(self, ip: str) -> Object | None:
        """Returns the pod that has the address. Pods with the node's own network are no pods here."""
        return next(
            (
                pod
                for pod in self.of("Pod")
                if ip in pod_ips(pod) and not pod["spec"].get("hostNetwork") and not ended(pod)
            ),
            None,
        )

    def node_at(self, ip: str) -> str:
        return next((name(node) for node in self.of("Node") if ip in node_ips(node)), "")

    def at(self, ip: str, protocol: str, port: int) -> Object | None:
        """Returns the Service that has the address and port; the elder one if several claim them."""
        found = [
            service
            for service in self.of("Service")
            for address, proto, number in places(service, self)
            if (address, proto, number) == (ip, protocol, port)
        ]
        return min(found, key=seniority, default=None)

    def events_about(self, obj: Object) -> list[Object]:
        """Returns the Events about an object, the newest first."""
        mine = [
            event
            for event in self.of("Event")
            if (about := event.get("involvedObject") or {}).get("name") == name(obj)
            and about.get("namespace", "") in ("", namespace(obj))
            and about.get("kind") == obj.get("kind", about.get("kind"))
        ]
        return sorted(
            mine, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""), reverse=True
        )


def ended(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def is_ready(pod: Object) -> bool:
    return condition(pod, "Ready").get("status") == "True" and not deleting(pod)


def pod_ips(pod: Object) -> list[str]:
    status = pod.get("status") or {}
    listed = [str(one.get("ip")) for one in status.get("podIPs") or [] if one.get("ip")]
    return listed or [str(status["podIP"])] * bool(status.get("podIP"))


def node_ips(node: Object) -> list[str]:
    return [str(ip) for ip in usable(node)]


def cluster_ips(service: Object) -> list[str]:
    spec = service.get("spec") or {}
    found = spec.get("clusterIPs") or [spec.get("clusterIP")]
    return [str(ip) for ip in found if ip and ip != "None"]


def headless(service: Object) -> bool:
    return (service.get("spec") or {}).get("clusterIP") == "None"


def external_name(service: Object) -> str:
    spec = service.get("spec") or {}
    return str(spec.get("externalName") or "") if spec.get("type") == "ExternalName" else ""


def balancer_ips(service: Object) -> list[str]:
    ingress = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
    return [str(one["ip"]) for one in ingress if one.get("ip")]


def places(service: Object, catalogue: Catalogue) -> Iterator[tuple[str, str, int]]:
    """Yields (address, protocol, port) of every place at which a Service answers: ClusterIPs, externalIPs, addresses of
    load balancers, and its NodePorts on the nodes. A Service has no address of another family.
    """
    spec = service.get("spec") or {}
    if external_name(service) or headless(service):
        return
    families = {":" in ip for ip in cluster_ips(service)}
    shared = [*cluster_ips(service), *(spec.get("externalIPs") or []), *balancer_ips(service)]
    on_nodes = [ip for node in catalogue.of("Node") for ip in node_ips(node)]
    for port in spec.get("ports") or []:
        protocol = str(port.get("protocol") or "TCP")
        for ip in shared:
            if (":" in ip) in families:
                yield ip, protocol, int(port.get("port") or 0)
        for ip in on_nodes if port.get("nodePort") else ():
            if (":" in ip) in families:
                yield ip, protocol, int(port["nodePort"])


def endpoints(slices: Iterable[Object]) -> Iterator[tuple[Object, Object, str]]:
    """Yields (slice, endpoint, address) of each endpoint. Of several addresses the first counts, as for the proxy."""
    for one in slices:
        for endpoint in one.get("endpoints") or []:
            for address in (endpoint.get("addresses") or [])[:1]:
                yield one, endpoint, str(address)


def counts(slices: Iterable[Object]) -> tuple[int, int]:
    """Returns (endpoints, those that are ready)."""
    ready = [(e.get("conditions") or {}).get("ready") is not False for _, e, _ in endpoints(slices)]
    return len(ready), sum(ready)
