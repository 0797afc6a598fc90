"""Validation of roles, webhooks and definitions (pkg/apis/rbac, admissionregistration, apiextensions, certificates)."""

from __future__ import annotations

from urllib.parse import urlsplit

from podwire_base.kube.meta import Object

from . import fields, meta
from .fields import Causes, all_invalid, invalid, not_supported, one_of, required

_RBAC = "rbac.authorization.k8s.io"
_OPERATIONS = ("*", "CONNECT", "CREATE", "DELETE", "UPDATE")


# ---- roles


def _rules(obj: Object, namespaced: bool) -> Causes:
    for n, rule in enumerate(obj.get("rules") or []):
        where = f"rules[{n}]"
        if not rule.get("verbs"):
            yield required(f"{where}.verbs", "verbs must contain at least one value")
        if rule.get("nonResourceURLs"):
            if namespaced:
                yield invalid(
                    f"{where}.nonResourceURLs",
                    rule["nonResourceURLs"],
                    "namespaced rules cannot apply to non-resource URLs",
                )
            if rule.get("apiGroups") or rule.get("resources") or rule.get("resourceNames"):
                yield invalid(f"{where}.nonResourceURLs", rule["nonResourceURLs"],
                              "rules cannot apply to both regular resources and non-resource URLs")  # fmt: skip
            continue
        for name in ("apiGroups", "resources"):
            if not rule.get(name):
                yield required(f"{where}.{name}", f"resource rules must supply at least one of {name}")


def role(obj: Object) -> Causes:
    yield from _rules(obj, namespaced=True)


def cluster_role(obj: Object) -> Causes:
    yield from _rules(obj, namespaced=False)
    for n, selector in enumerate((obj.get("aggregationRule") or {}).get("clusterRoleSelectors") or []):
        yield from meta.label_selector(f"aggregationRule.clusterRoleSelectors[{n}]", selector)
    if obj.get("aggregationRule") is not None and not obj["aggregationRule"].get("clusterRoleSelectors"):
        yield required(
            "aggregationRule.clusterRoleSelectors",
            "at least one clusterRoleSelector required if aggregationRule is non-nil",
        )


def _binding(obj: Object, kinds: tuple[str, ...], namespaced: bool) -> Causes:
    ref = obj.get("roleRef") or {}
    if ref.get("apiGroup") != _RBAC:
        yield not_supported("roleRef.apiGroup", ref.get("apiGroup"), (_RBAC,))
    if ref.get("kind") not in kinds:
        yield not_supported("roleRef.kind", ref.get("kind"), kinds)
    if not ref.get("name"):
        yield required("roleRef.name")
    else:
        yield from all_invalid("roleRef.name", ref["name"], fields.path_segment(ref["name"]))
    for n, subject in enumerate(obj.get("subjects") or []):
        yield from _subject(f"subjects[{n}]", subject, namespaced)


def _subject(path: str, subject: Object, namespaced: bool) -> Causes:
    kind, group = subject.get("kind"), subject.get("apiGroup") or ""
    if not subject.get("name"):
        yield required(f"{path}.name")
    if kind == "ServiceAccount":
        if subject.get("name"):
            yield from all_invalid(f"{path}.name", subject["name"], fields.subdomain(subject["name"]))
        if group:
            yield not_supported(f"{path}.apiGroup", group, ("",))
        if not namespaced and not subject.get("namespace"):
            yield required(f"{path}.namespace")
    elif kind in ("User", "Group"):
        if group != _RBAC:
            yield not_supported(f"{path}.apiGroup", group, (_RBAC,))
    else:
        yield not_supported(f"{path}.kind", kind, ("Group", "ServiceAccount", "User"))


def role_binding(obj: Object) -> Causes:
    yield from _binding(obj, ("ClusterRole", "Role"), namespaced=True)


def cluster_role_binding(obj: Object) -> Causes:
    yield from _binding(obj, ("ClusterRole",), namespaced=False)


def binding_update(obj: Object, before: Object) -> Causes:
    if obj.get("roleRef") != before.get("roleRef"):
        yield invalid("roleRef", obj.get("roleRef"), "cannot change roleRef")


# ---- webhooks and policies


def _url(path: str, url: str) -> Causes:
    try:
        parts = urlsplit(url)
    except ValueError as err:
        yield required(path, f"url must be a valid URL: {err}")
        return
    if parts.scheme != "https":
        yield invalid(path, url, "'https' is the only allowed URL scheme")
    if not parts.netloc:
        yield invalid(path, url, "host must be specified")
    whole = ((parts.username, "user information"), (parts.fragment, "fragments"), (parts.query, "query parameters"))
    for bad, what in whole:
        if bad:
            yield invalid(path, url, f"{what} are not permitted in the URL")


def _client(path: str, config: Object) -> Causes:
    url, service = config.get("url"), config.get("service")
    if (url is None) == (service is None):
        yield required(path, "exactly one of url or service is required")
    elif service is None:
        yield from _url(f"{path}.url", str(url))
    else:
        for name in ("name", "namespace"):
            if not service.get(name):
                yield required(f"{path}.service.{name}", f"service {name} is required")
        port = service.get("port")
        if port is not None and not 1 <= port <= 65535:
            yield invalid(f"{path}.service.port", port, "port is not valid: must be between 1 and 65535, inclusive")


def _match_rules(path: str, rules: list[Object]) -> Causes:
    for n, rule in enumerate(rules):
        where = f"{path}[{n}]"
        for name in ("apiGroups", "apiVersions", "resources"):
            if not rule.get(name):
                yield required(f"{where}.{name}")
            elif len(rule[name]) > 1 and "*" in rule[name]:
                yield invalid(f"{where}.{name}", rule[name], "if '*' is present, must not specify other values")
        if rule.get("scope") is not None and rule["scope"] not in ("*", "Cluster", "Namespaced"):
            yield not_supported(f"{where}.scope", rule["scope"], ("*", "Cluster", "Namespaced"))
        if not rule.get("operations"):
            yield required(f"{where}.operations")
        elif len(rule["operations"]) > 1 and "*" in rule["operations"]:
            yield invalid(
                f"{where}.operations", rule["operations"], "if '*' is present, must not specify other operations"
            )
        for m, operation in enumerate(rule.get("operations") or []):
            yield from one_of(f"{where}.operations[{m}]", operation, _OPERATIONS)


def _hook(path: str, hook: Object, mutating: bool) -> Causes:
    own = hook.get("name") or ""
    if len(own.split(".")) < 3:
        yield invalid(f"{path}.name", own, "should be a domain with at least three segments separated by dots")
    else:
        yield from all_invalid(f"{path}.name", own, fields.subdomain(own))
    versions = hook.get("admissionReviewVersions") or []
    if not versions:
        yield required(f"{path}.admissionReviewVersions", "must specify one of v1, v1beta1")
    elif not {"v1", "v1beta1"} & set(versions):
        yield invalid(f"{path}.admissionReviewVersions", versions, "must include at least one of v1, v1beta1")
    yield from _match_rules(f"{path}.rules", hook.get("rules") or [])
    for name, allowed in (("failurePolicy", ("Fail", "Ignore")), ("matchPolicy", ("Equivalent", "Exact"))):
        if hook.get(name) is not None:
            yield from one_of(f"{path}.{name}", hook[name], allowed)
    effects = hook.get("sideEffects")
    if effects is None:
        yield required(f"{path}.sideEffects", "must specify one of None, NoneOnDryRun")
    else:
        yield from one_of(f"{path}.sideEffects", effects, ("None", "NoneOnDryRun"))
    seconds = hook.get("timeoutSeconds")
    if seconds is not None and not 1 <= seconds <= 30:
        yield invalid(f"{path}.timeoutSeconds", seconds, "the timeout value must be between 1 and 30 seconds")
    for name in ("namespaceSelector", "objectSelector"):
        yield from meta.label_selector(f"{path}.{name}", hook.get(name))
    yield from _client(f"{path}.clientConfig", hook.get("clientConfig") or {})
    if mutating and hook.get("reinvocationPolicy") is not None:
        yield from one_of(f"{path}.reinvocationPolicy", hook["reinvocationPolicy"], ("IfNeeded", "Never"))


def _hooks(obj: Object, mutating: bool) -> Causes:
    names: set[str] = set()
    for n, hook in enumerate(obj.get("webhooks") or []):
        yield from _hook(f"webhooks[{n}]", hook, mutating)
        own = hook.get("name") or ""
        if own in names:
            yield fields.duplicate(f"webhooks[{n}].name", own)
        names.add(own)


def validating_webhooks(obj: Object) -> Causes:
    yield from _hooks(obj, mutating=False)


def mutating_webhooks(obj: Object) -> Causes:
    yield from _hooks(obj, mutating=True)
