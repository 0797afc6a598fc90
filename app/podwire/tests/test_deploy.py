"""deploy/: every kustomization builds, Kubernetes' schemas and podwire's API server accept the objects, and images,
flags and rights agree with the code."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from podwire import agent, settings
from podwire.deploy import image
from podwire.main import cli
from podwire_base.kube import loadbalancer
from podwire_base.kube.meta import Object
from podwire_base.kube.registry import RESOURCES
from podwire_base.role import beat
from podwire_base.role.watchdog import SECONDS
from podwire_controlplane.testing.servers import Server
from podwire_dns import corefile
from podwire_dns.config import DnsConfig
from podwire_proxy.config import ProxyConfig
from podwire_proxy.ebpf.backend import Ebpf

from . import kustomize

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
VERSION = "1.37"  # of the schemas
FOLDERS = sorted(p.parent for p in DEPLOY.rglob("kustomization.yaml") if "kind: Kustomization" in p.read_text())
NAMES = [str(f.relative_to(ROOT)) for f in FOLDERS]


def named(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = [o for o in objects if o["kind"] == kind and o["metadata"]["name"].startswith(name)]
    return found


def test_all_of_them_are_looked_at() -> None:
    assert {
        "deploy",
        "deploy/cleanup",
        "deploy/overlays/migrating",
        "deploy/overlays/without-proxy",
        "deploy/overlays/without-dns",
        "deploy/overlays/load-balancer",
        "deploy/overlays/load-balancer-only",
        "deploy/overlays/ebpf",
        "deploy/overlays/policy-only",
    } <= set(NAMES)


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_kubernetes_schemas_take_every_object(folder: Path) -> None:
    """Strictly: a field that the schema does not have is an error."""
    objects = kustomize.build(folder)
    for obj in objects:
        kubernetes_validate.validate(obj, VERSION, strict=True)
    bad = json.loads(json.dumps(named(objects, "DaemonSet", "podwire")))
    bad["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(bad, VERSION, strict=True)


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_our_own_api_server_takes_what_it_knows(folder: Path) -> None:
    taken, known = 0, {resource.kind: resource for resource in RESOURCES}
    with Server() as server:
        for obj in kustomize.build(folder):
            if (resource := known.get(obj["kind"])) is None:
                continue
            made = server.good("POST", resource.path(obj["metadata"].get("namespace", "")), obj)
            taken += 1
            assert obj["kind"] != "Service" or made["spec"]["clusterIP"] == obj["spec"]["clusterIP"]
    assert taken or folder.name == "cleanup"


def _sorted(value: Any) -> Any:
    """Lists of named items in one order: patches of kustomize put new items first."""
    if isinstance(value, dict):
        return {key: _sorted(item) for key, item in value.items()}
    if isinstance(value, list):
        items = [_sorted(item) for item in value]
        return (
            sorted(items, key=lambda i: json.dumps(i, sort_keys=True))
            if items and isinstance(items[0], dict)
            else items
        )
    return value


def _kustomize() -> list[str] | None:
    """kubectl has it built in; the client of a cloud SDK may be a stub that cannot start."""
    if not shutil.which("kubectl"):
        return None
    done = subprocess.run(["kubectl", "kustomize", "--help"], capture_output=True, check=False)
    return ["kubectl", "kustomize"] if done.returncode == 0 else None


@pytest.mark.skipif(_kustomize() is None, reason="kubectl is not installed; the objects are checked without it")
@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_kubectl_builds_the_same(folder: Path) -> None:
    done = subprocess.run([*(_kustomize() or []), str(folder)], capture_output=True, text=True, check=True)
    theirs = _sorted([obj for obj in yaml.safe_load_all(done.stdout) if obj])
    assert _sorted(kustomize.build(folder)) == theirs, "names of ConfigMaps carry the hash of their content"


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_images_and_commands_are_this_versions(folder: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for obj in kustomize.build(folder):
        if obj["kind"] not in ("DaemonSet", "Deployment"):
            continue
        spec = obj["spec"]["template"]["spec"]
        for container in spec["containers"] + spec.get("initContainers", []):
            assert (
                container["image"] == f"podwire.io/podwire:{version}" and container["imagePullPolicy"] == "IfNotPresent"
            )
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            if "args" in container:
                words = [word for word in container["args"][:2] if not word.startswith("--")]
                shown = CliRunner().invoke(cli, [*words, "--help"])
                assert shown.exit_code == 0
                for flag in (word.partition("=")[0] for word in container["args"] if word.startswith("--")):
                    assert flag in shown.output
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert mounted <= {volume["name"] for volume in spec.get("volumes", [])}
        if obj["kind"] == "DaemonSet":
            assert spec["hostNetwork"] and spec["tolerations"] == [{"operator": "Exists"}]


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_every_setting_is_a_flag(folder: Path) -> None:
    """A variable that no code reads would be a setting without effect."""
    flags = "".join(CliRunner().invoke(cli, [command, "--help"]).output for command in ("agent", "install"))
    flags = flags.replace("\n", "").replace(" ", "")
    for obj in kustomize.build(folder):
        if obj["kind"] == "ConfigMap" and "settings" in obj["metadata"]["name"]:
            assert all(f"[{name}]" in flags for name in obj["data"])
            roles = settings.chosen(obj["data"]["PODWIRE_ROLE"].split())
            objects = kustomize.build(folder)
            granted = {
                o["roleRef"]["name"].removeprefix("podwire-")
                for o in objects
                if o["kind"] == "ClusterRoleBinding" and o["subjects"][0]["name"] == "podwire"
            }
            assert set(roles) == granted, "a role that does not run gets no rights"


def test_addresses_agree_in_all_places() -> None:
    objects = kustomize.build(DEPLOY)
    data = named(objects, "ConfigMap", "podwire-settings")["data"]
    service = named(objects, "Service", "kube-dns")
    assert service["spec"]["clusterIP"] == data["PODWIRE_DNS_ADDRESS"] == settings_default("dns_address")
    assert "selector" not in service["spec"]
    assert (data["PODWIRE_CLUSTER_CIDR"],) == settings_default("cluster_cidrs")
    text = named(objects, "ConfigMap", "podwire-dns")["data"]["Corefile"]
    served, notes = corefile.apply(text, DnsConfig("n", None, Path("/run/podwire")))
    assert notes == [] and served.cluster_domain == data["PODWIRE_CLUSTER_DOMAIN"]


def settings_default(name: str) -> Any:
    return agent.AgentConfig.__dataclass_fields__[name].default


def _proxy(objects: list[Object]) -> ProxyConfig:
    from podwire_proxy import backends, kubeproxyfile

    fields, notes = kubeproxyfile.read(
        yaml.safe_load(named(objects, "ConfigMap", "podwire-proxy")["data"]["config.conf"]), backends.names()
    )
    assert [note for note in notes if "mode" not in note] == []
    return ProxyConfig(**{"node_name": "n", "kubeconfig": None, "run_dir": Path("/run/podwire"), **fields})


def test_bindings_lead_to_the_account_that_runs() -> None:
    objects = kustomize.build(DEPLOY)
    account = named(objects, "ServiceAccount", "podwire")["metadata"]
    pod = named(objects, "DaemonSet", "podwire")["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == account["name"] == "podwire" and account["namespace"] == "kube-system"
    roles = {o["metadata"]["name"]: o for o in objects if o["kind"] == "ClusterRole"}
    for binding in (o for o in objects if o["kind"] == "ClusterRoleBinding"):
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "podwire", "namespace": "kube-system"}]
        roles.pop(binding["roleRef"]["name"])
    assert not roles, "every role is bound"


def test_the_dns_deployment_is_reached_by_its_service() -> None:
    objects = kustomize.build(DEPLOY / "overlays/dns-deployment")
    service, deployment = named(objects, "Service", "kube-dns"), named(objects, "Deployment", "podwire-dns")
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert "service.kubernetes.io/service-proxy-name" not in service["metadata"]["labels"], "proxies serve it"
    pod = deployment["spec"]["template"]["spec"]
    (binding,) = [o for o in objects if o["kind"] == "ClusterRoleBinding" and o["roleRef"]["name"] == "podwire-dns"]
    assert (
        binding["subjects"][0]["name"]
        == pod["serviceAccountName"]
        == named(objects, "ServiceAccount", "podwire-dns")["metadata"]["name"]
    )
    (container,) = pod["containers"]
    data = named(objects, "ConfigMap", "podwire-settings")["data"]
    for word in container["args"]:
        if "$(" in word:
            assert word.partition("$(")[2].rstrip(")") in data, "the kubelet adds these"
    served, notes = corefile.apply(
        named(objects, "ConfigMap", "podwire-dns")["data"]["Corefile"], DnsConfig("n", None, Path("/run/podwire"))
    )
    assert notes == []
    assert served.ready_address.rpartition(":")[2] == str(container["readinessProbe"]["httpGet"]["port"])
    security = pod["securityContext"]
    assert security["runAsNonRoot"] and security["runAsUser"] == security["fsGroup"] == served.user
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert security["sysctls"] == [{"name": "net.ipv4.ip_unprivileged_port_start", "value": str(served.port)}]


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_every_container_that_stays_has_probes_that_read_its_beat(folder: Path) -> None:
    objects = kustomize.build(folder)
    for obj in objects:
        if obj["kind"] not in ("DaemonSet", "Deployment") or obj["metadata"]["name"].endswith("cleanup"):
            continue
        for container in obj["spec"]["template"]["spec"]["containers"]:
            _reads_its_beat(objects, container)


def _reads_its_beat(objects: list[Object], container: Object) -> None:
    verb = container["args"][0]
    program, kind, file, seconds = container["livenessProbe"]["exec"]["command"]
    assert (program, kind) == ("/usr/local/bin/podwire-beat", "live")
    assert float(seconds) > 3 * SECONDS / 2, "the supervisor comes first"
    role = {"agent": "agent", "controllers": "controllers", "dns": "serve"}[verb]
    run_dir = "/run/podwire"
    if verb == "agent":
        run_dir = _variables(objects, container)["PODWIRE_RUN_DIR"]
    else:
        assert f"--run-dir={run_dir}" in container["args"]
    assert file == str(beat.path_of(Path(run_dir), role))
    assert run_dir in [mount["mountPath"] for mount in container["volumeMounts"]]
    ready = container["readinessProbe"]
    assert "httpGet" in ready or ready["exec"]["command"] == [program, "ready", file, seconds]
    for probe in ("livenessProbe", "readinessProbe"):
        assert len({"exec", "httpGet", "tcpSocket", "grpc"} & set(container[probe])) == 1


def _variables(objects: list[Object], container: Object) -> dict[str, str]:
    """The variables of an agent's container, as the kubelet merges them."""
    given = dict(named(objects, "ConfigMap", "podwire-settings")["data"])
    return {**given, **{row["name"]: row["value"] for row in container["env"] if "value" in row}}


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_what_need_not_be_privileged_is_not(folder: Path) -> None:
    """Each role runs in one container of the DaemonSet. That of DNS has a few capabilities, and sees neither the
    plugin's socket nor pods' namespaces nor the runtimes' sockets.
    """
    objects = kustomize.build(folder)
    if folder.name == "cleanup":
        return
    spec = named(objects, "DaemonSet", "podwire")["spec"]["template"]["spec"]
    ran = list[str]()
    for container in spec["containers"]:
        words = _variables(objects, container)
        left = words.get("PODWIRE_LEAVE_ROLE", "").split()
        mine = [role for role in settings.chosen(words["PODWIRE_ROLE"].split()) if role not in left]
        ran += mine
        security = container["securityContext"]
        if {"wiring", "proxy"} & set(mine):
            assert security["privileged"], "pods' namespaces and /proc/sys"
            assert "dns" not in mine
            continue
        assert not security.get("privileged") and security["allowPrivilegeEscalation"] is False
        assert security["capabilities"]["drop"] == ["ALL"] and security["readOnlyRootFilesystem"] is True
        assert not {"SYS_ADMIN", "SYS_PTRACE", "SYS_MODULE", "DAC_OVERRIDE"} & set(security["capabilities"]["add"])
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        hosts = {v["hostPath"]["path"] for m in container["volumeMounts"] if "hostPath" in (v := volumes[m["name"]])}
        assert hosts <= {"/run/podwire/services"}
    wanted = settings.chosen(named(objects, "ConfigMap", "podwire-settings")["data"]["PODWIRE_ROLE"].split())
    assert sorted(ran) == sorted(wanted)


@pytest.mark.parametrize("folder", ["load-balancer", "load-balancer-only"])
def test_load_balancers_on_a_stock_cluster(folder: str) -> None:
    objects = kustomize.build(DEPLOY / "overlays" / folder)
    assert "lb" in named(objects, "ConfigMap", "podwire-settings")["data"]["PODWIRE_ROLE"].split()
    config = named(objects, "ConfigMap", loadbalancer.CONFIG_NAME)
    assert loadbalancer.is_config(config), "found by its name, which carries no hash"
    assert loadbalancer.parse(config) == (loadbalancer.Pools(), []), (
        "no address is allocated before a pool is configured"
    )
    deployment = named(objects, "Deployment", "podwire-load-balancer")["spec"]
    assert (deployment["replicas"], deployment["strategy"]["type"]) == (1, "Recreate"), (
        "two controllers would allocate the same addresses"
    )
    pod, (controller,) = deployment["template"]["spec"], deployment["template"]["spec"]["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and controller["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    responder = named(objects, "DaemonSet", "podwire")["spec"]["template"]["spec"]["containers"][-1]
    security = responder["securityContext"]
    assert security.get("privileged") or "NET_RAW" in security["capabilities"]["add"]
    bound = {(o["kind"], o["roleRef"]["name"], o["subjects"][0]["name"]) for o in objects if "roleRef" in o}
    account = pod["serviceAccountName"]
    assert bound >= {
        (kind, own, who)
        for kind in ("RoleBinding", "ClusterRoleBinding")
        for own, who in (("podwire-lb", "podwire"), ("podwire-load-balancer", account))
    }
    assert named(objects, "ServiceAccount", "podwire-load-balancer")["metadata"]["name"] == account
    for role in (o for o in objects if o["kind"] == "ClusterRole"):
        assert not any("configmaps" in rule["resources"] for rule in role["rules"]), "no role can read all ConfigMaps"


def _mounts(objects: list[Object]) -> dict[str, tuple[str, bool]]:
    """Path in the first container with host folders -> (path of the host, whether it is read-only)."""
    spec = named(objects, "DaemonSet", "podwire")["spec"]["template"]["spec"]
    hosts = {volume["name"]: volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume}
    containers = [*spec["containers"], *spec["initContainers"]]
    first = next(one for one in containers if one.get("volumeMounts"))
    mounts = [mount for mount in first["volumeMounts"] if mount["name"] in hosts]
    return {mount["mountPath"]: (hosts[mount["name"]], mount.get("readOnly", False)) for mount in mounts}


def test_backend_ebpf_sees_the_hosts_pins_and_cgroups_and_nothing_more() -> None:
    plain, ebpf = kustomize.build(DEPLOY), kustomize.build(DEPLOY / "overlays" / "ebpf")
    added = {"/sys/fs/bpf": ("/sys/fs/bpf", False), "/host/cgroup": ("/sys/fs/cgroup", True)}
    assert _mounts(ebpf) == {**_mounts(plain), **added}
    given = named(ebpf, "ConfigMap", "podwire-settings")["data"]["PODWIRE_SET"].split()
    values = {name: value for role, name, value in settings.assignments(given) if role == "proxy"}
    assert set(values) <= {field.name for field in fields(ProxyConfig)}
    assert values["backend"] == Ebpf.name and Ebpf().having(values).cgroup in added
    assert _mounts(kustomize.build(DEPLOY / "cleanup"))["/sys/fs/bpf"] == added["/sys/fs/bpf"]


def test_the_migration_page_names_what_there_is() -> None:
    text = (ROOT / "docs" / "migration.md").read_text()
    for line in text.splitlines():
        words = shlex.split(line.split("#")[0]) if line.startswith("    kubectl") and line.count("'") % 2 == 0 else []
        for word in words:
            if word.startswith("deploy/"):
                assert (ROOT / word / "kustomization.yaml").exists(), line
    assert "failCgroupV1: false" in text and "cgroupDriver: cgroupfs" in text
    for folder in NAMES:
        assert folder in text, f"{folder} is not explained"


# ---- what deploy/README.md promises


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_the_readme_names_every_right(folder: Path) -> None:
    """Every resource of every role stands in the table, and nothing that it says nobody has is granted."""
    table = (DEPLOY / "README.md").read_text().partition("## Rights")[2].partition("## Memory")[0]
    for role in (o for o in kustomize.build(folder) if o["kind"] in ("Role", "ClusterRole")):
        for rule in role["rules"]:
            for resource in rule["resources"]:
                words = {"configmaps": "ConfigMap", "namespaces": "amespace"}.get(resource, resource)
                assert words in table, f"{role['metadata']['name']}: {resource}"
                assert resource != "secrets" and "*" not in (resource, *rule["verbs"])
                writes = set(rule["verbs"]) & {"create", "update", "patch", "delete"}
                assert not writes or resource in ("events", "leases", "services/status")


@pytest.mark.parametrize("folder", [f for f in FOLDERS if f.name not in ("base", "cleanup")])
def test_a_prune_finds_every_object(folder: Path) -> None:
    objects = kustomize.build(folder)
    assert objects and all(o["metadata"]["labels"]["app.kubernetes.io/part-of"] == "podwire" for o in objects)
    allowed = (DEPLOY / "README.md").read_text()
    for obj in objects:
        version = obj["apiVersion"] if "/" in obj["apiVersion"] else f"core/{obj['apiVersion']}"
        assert f"--prune-allowlist={version}/{obj['kind']}" in allowed


def test_memory_follows_the_formula() -> None:
    (container, *_) = named(kustomize.build(DEPLOY), "DaemonSet", "podwire")["spec"]["template"]["spec"]["containers"]
    text = (DEPLOY / "README.md").read_text()
    found = re.search(r"\*\*(\d+) MiB, and (\d+) KiB for each Service", text)
    assert found is not None
    base, each = int(found[1]), int(found[2])
    request, limit = (container["resources"][which]["memory"] for which in ("requests", "limits"))
    assert base + 1000 * each / 1024 <= int(request.removesuffix("Mi")) < base + 3000 * each / 1024
    assert int(limit.removesuffix("Gi")) * 1024 >= 2 * (base + 10_000 * each / 1024)
    assert 0.9 <= (base + 10_000 * each / 1024) / (375e6 / 2**20) <= 1.1, "what was measured at 10,000 Services"


def test_mode_iptables_finds_its_programs_and_the_lock_of_the_host() -> None:
    assert "iptables" in image.PACKAGES
    for folder in (DEPLOY, DEPLOY / "cleanup"):
        daemon = next(o for o in kustomize.build(folder) if o["kind"] == "DaemonSet")["spec"]["template"]["spec"]
        mounts = [m for c in (*daemon["initContainers"], *daemon["containers"]) for m in c.get("volumeMounts", [])]
        (name,) = {m["name"] for m in mounts if m["mountPath"] == "/run/xtables.lock"}
        (volume,) = [v for v in daemon["volumes"] if v["name"] == name]
        assert volume["hostPath"] == {"path": "/run/xtables.lock", "type": "FileOrCreate"}
