"""An existing Corefile carries over, and what does not is named with its line."""

from __future__ import annotations

import pytest

from podwire_dns import corefile
from podwire_dns.config import BadConfig
from podwire_dns.testing import builders

USUAL = """.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.test in-addr.arpa ip6.arpa {
       pods insecure   # as kubeadm writes it
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.test
       disable denial cluster.test
    }
    loop
    reload
    loadbalance
}
corp.example:53 {
    errors
    cache 30
    forward . 192.0.2.7 192.0.2.8:5353 [2001:db8::1]:53
}
"""


def test_what_kubeadm_writes_is_understood_whole() -> None:
    config, notes = corefile.apply(USUAL, builders.CONFIG, ("192.0.2.53",))
    assert notes == []
    assert (config.cluster_domain, config.ttl, config.pods, config.port) == ("cluster.test", 30, True, 53)
    assert (config.health_address, config.ready_address, config.metrics_address) == (":8080", ":8181", ":9153")
    assert (config.lame_duck, config.upstreams, config.policy) == (5.0, ("192.0.2.53",), "random")
    assert (config.cache_positive, config.cache_negative) == (30, 30)
    assert config.stubs == ("corp.example=192.0.2.7,192.0.2.8#5353,2001:db8::1#53",)
    assert not config.log_queries
    assert len(config.routes()) == 2


def test_every_line_that_is_left_out_is_named() -> None:
    config, notes = corefile.apply(""".:1053 {
    log . "{remote} {name}"
    kubernetes cluster.local other.local {
        pods verified
        namespaces a b
    }
    hosts {
        192.0.2.1 a.example
        fallthrough
    }
    rewrite name a.example b.example
    template IN A example {
        answer "{{ .Name }} 60 IN A 192.0.2.1"
    }
    autopath @kubernetes
    forward . tls://192.0.2.9 192.0.2.53 {
        policy round_robin
        force_tcp
    }
    cache {
        success 5000 1h
        denial 2500 10
        serve_stale 2h
        keepttl
    }
}
tls://other.example {
    forward . 192.0.2.1
}
""", builders.CONFIG)
    assert [int(note.split(":")[0].removeprefix("Corefile line ")) for note in notes] == [2, 3, 5, 7, 11, 12, 16, 18, 24, 27]
    assert (config.port, config.log_queries, config.autopath, config.verify_pods) == (1053, True, True, True)
    assert (config.upstreams, config.policy, config.serve_stale) == (("192.0.2.53",), "round_robin", 7200.0)
    assert (config.cache_positive, config.cache_negative) == (3600.0, 10.0)


@pytest.mark.parametrize(("text", "said"), [
    (".:53 {\n errors\n", "line 1: the { is not closed"),
    ("}\n", "line 1: a } without a {"),
    (". {\n forward .\n}\n", "line 2: forward needs a domain"),
    (". {\n health {\n lameduck soon\n }\n}\n", "line 3: 'soon' is no duration"),
    (". {\n kubernetes {\n ttl long\n }\n}\n", "line 3: 'long' is no number"),
    (". { errors }\n", "line 1: a brace must end its line"),
])
def test_errors_name_the_line(text: str, said: str) -> None:
    with pytest.raises(BadConfig) as caught:
        corefile.apply(text, builders.CONFIG)
    assert said in str(caught.value)


def test_nameservers_of_a_resolv_conf() -> None:
    text = "search a b\nnameserver 192.0.2.1\n#nameserver 192.0.2.2\nnameserver fe80::1%eth0\nnameserver\n"
    assert corefile.resolv_conf(text) == ("192.0.2.1", "fe80::1")


def test_durations() -> None:
    assert [corefile.seconds(text, 1) for text in ("5s", "1m30s", "250ms", "2h", "7")] == [5, 90, 0.25, 7200, 7]
