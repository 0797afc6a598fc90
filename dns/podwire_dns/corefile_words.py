"""The words of a Corefile: words of CoreDNS, words that restrict access, and options without effect in podwire."""

from __future__ import annotations

from difflib import get_close_matches

from .config import BadConfig
from .corefile_text import Directive, bad
from .rules import host_lines


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# These directives restrict the clients. A start without them would give access that the file denies.
ACCESS = frozenset({"acl", "firewall", "opa", "themis", "tsig", "view"})
# The directives of CoreDNS and of well-known external plugins.
DIRECTIVES = ACCESS | _words(
    """
    any auto autopath azure bind bufsize cache cancel chaos clouddns debug dns64 dnssec dnstap erratic errors etcd file
    forward geoip grpc grpc_server header health hosts https https3 import k8s_external kubernetes loadbalance local log
    loop metadata minimal multisocket nomad nsid on pprof prometheus proxyproto quic ready reload rewrite root route53
    secondary sign template timeouts tls trace transfer whoami

    ads alias alternate amazondns blocklist demo dnsredir docker example fanout federation filter finalize git gslb
    k8s_crd k8s_event k8s_gateway kubeapi kubenodes lighthouse mdns multicluster mysql netbox ocp_dnsnameresolver pdsql
    proxy recursor records redis rrl split tailscale unbound wgsd
    """
)
# The options that CoreDNS accepts in the blocks of the supported directives.
OPTIONS: dict[str, frozenset[str]] = {
    name: _words(words)
    for name, words in {
        "autopath": "",
        "bind": "except",
        "bufsize": "",
        "cache": "success denial prefetch serve_stale servfail disable keepttl",
        "errors": "consolidate stacktrace",
        "forward": "except force_tcp prefer_udp expire max_fails max_age max_idle_conns tls tls_servername policy"
        " health_check max_concurrent max_connect_attempts next failover failfast_all_unhealthy_upstreams",
        "health": "lameduck",
        "hosts": "ttl no_reverse fallthrough reload",
        "kubernetes": "endpoint tls kubeconfig apiserver_qps apiserver_burst apiserver_max_inflight namespaces labels"
        " namespace_labels pods endpoint_pod_names ttl noendpoints fallthrough ignore multicluster startup_timeout"
        " resyncperiod transfer upstream",
        "loadbalance": "prefer reload",
        "log": "class",
        "loop": "",
        "prometheus": "",
        "ready": "monitor",
        "reload": "",
        "template": "match answer additional authority rcode ederror fallthrough upstream",
    }.items()
}
# Options that need a value.
VALUES = _words(
    "answer additional authority class denial except expire kubeconfig lameduck match max_fails pods policy rcode"
    " servfail success tls_servername ttl"
)
# Directives that answer the names of zones from a source that podwire does not read -> the form of their arguments.
# These names must not go to an upstream, which has other answers for them, or learns of them.
ZONES_OF_ARGS, ZONES_AFTER_FILE, ZONES_BEFORE_COLON, ZONES_AFTER_COLON = range(4)
SOURCES = {
    **dict.fromkeys(("auto", "etcd", "k8s_external", "k8s_gateway", "nomad", "secondary"), ZONES_OF_ARGS),
    "file": ZONES_AFTER_FILE,
    **dict.fromkeys(("clouddns", "route53"), ZONES_BEFORE_COLON),
    "azure": ZONES_AFTER_COLON,
}
IDLE_DIRECTIVES = {  # directive without effect in podwire -> reason
    "any": "queries of type ANY are always refused",
    "minimal": "answers have additional records only for SRV, and drop them first when they are too large",
}
IDLE = {  # option without effect in podwire -> reason
    "consolidate": "a failure is logged when it begins and when it ends",
    "stacktrace": "the log has the stack of each unexpected error",
    "max_concurrent": "a bound of its own holds for all queries to upstreams",
    "health_check": "the queries themselves show whether an upstream answers",
    "max_connect_attempts": "each upstream is asked at most twice for a query",
    "max_idle_conns": "there is one connection for each TCP or TLS upstream",
    "failfast_all_unhealthy_upstreams": "upstreams that are down are still asked, last",
}


def source_zones(item: Directive) -> list[str]:
    """Returns the zones that a directive of SOURCES answers; empty: those of its server block."""
    match SOURCES[item.name]:
        case form if form == ZONES_AFTER_FILE:
            return item.args[1:]
        case form if form == ZONES_BEFORE_COLON:
            return [word.partition(":")[0] for word in item.args]
        case form if form == ZONES_AFTER_COLON:
            return [word.partition(":")[2] or word for word in item.args]
    return item.args


def check(item: Directive) -> None:
    """Raises BadConfig for a directive or an option that CoreDNS does not know either."""
    if item.name not in DIRECTIVES:
        raise _unknown(item, "a directive", DIRECTIVES)
    known = OPTIONS.get(item.name)
    for option in item.block if known is not None else ():
        line = item.name == "hosts" and list(host_lines(" ".join(option.words)))
        if option.name not in (known or ()) and not line:
            raise _unknown(option, f"an option of {item.name}", known or frozenset())
        if option.name in VALUES and not option.args:
            raise bad(option, f"{option.name} needs a value")


def _unknown(item: Directive, what: str, known: frozenset[str]) -> BadConfig:
    close = get_close_matches(item.name, sorted(known), 1)
    hint = f"; is {close[0]} meant?" if close else ""
    return bad(item, f"{item.name!r} is not {what} in CoreDNS{hint}")
