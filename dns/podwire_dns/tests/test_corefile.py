"""An existing Corefile carries over, and every unsupported line is named."""

from __future__ import annotations

import pytest

from podwire_dns import corefile, corefile_text
from podwire_dns.config import BadConfig, DnsConfig
from podwire_dns.forward import Route, Tls
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
    cache 60
    forward . 192.0.2.7 192.0.2.8:5353 [2001:db8::1]:53
}
"""


def read(text: str) -> tuple[DnsConfig, list[str]]:
    return corefile.apply(text, builders.CONFIG)


def lines(notes: list[str]) -> list[int]:
    return [int(note.split(":")[0].removeprefix("Corefile line ")) for note in notes]


def test_what_kubeadm_writes_is_understood_whole() -> None:
    config, notes = read(USUAL)
    assert notes == []
    assert (config.cluster_domain, config.ttl, config.pods, config.port) == ("cluster.test", 30, True, 53)
    assert (config.health_address, config.ready_address, config.metrics_address) == (":8080", ":8181", ":9153")
    assert (config.lame_duck, config.shuffle, config.reload, config.prefetch) == (5.0, True, 30.0, False)
    outside, corp = config.forwards
    assert (outside.domain, outside.upstreams, outside.policy) == (".", ("/etc/resolv.conf",), "random")
    assert (outside.cache_positive, outside.cache_negative) == (30, 30)
    assert (corp.domain, corp.upstreams) == ("corp.example", ("192.0.2.7", "192.0.2.8#5353", "2001:db8::1#53"))
    assert (corp.cache_positive, corp.cache_negative) == (60, 60), "each block has its own rules"
    assert not config.log_queries


def test_every_line_that_is_left_out_is_named() -> None:
    config, notes = read(""".:1053 {
    log . "{remote} {name}"
    kubernetes cluster.local other.local {
        pods verified
        namespaces a b
        fallthrough
    }
    rewrite type ANY HINFO
    template CH TXT example {
        answer "x 60 CH TXT y"
    }
    autopath @kubernetes
    forward . 192.0.2.53 {
        policy round_robin
        failover SERVFAIL
    }
    cache {
        success 5000 1h
        denial 2500 10
        serve_stale 2h
        keepttl
    }
    dnssec
    import other*
    bufsize 512
    loadbalance weighted x
}
tls://other.example {
    forward . 192.0.2.1
}
""")
    assert lines(notes) == [3, 5, 6, 2, 8, 9, 21, 23, 25, 26, 15, 28]
    assert (config.port, config.log_queries, config.autopath, config.verify_pods) == (1053, True, True, True)
    (made,) = config.forwards
    assert (made.upstreams, made.policy) == (("192.0.2.53",), "round_robin")
    assert (config.serve_stale, config.cache_capacity) == (7200, 5000)
    assert (made.cache_positive, made.cache_negative) == (3600.0, 10.0)


def test_dns_over_tls_and_the_other_options_of_forward() -> None:
    config, notes = read(""". {
    forward . tls://9.9.9.9 tls://[2620:fe::fe]:8853 {
        except corp.example
        tls_servername dns.quad9.net
        tls /cert.pem /key.pem /ca.pem
        max_fails 0
        expire 20s
        force_tcp
        health_check 5s
    }
}
""")
    assert notes == []
    routes = config.routes()
    assert routes[b"\0"] == Route(
        ("tls://9.9.9.9#853", "tls://2620:fe::fe#8853"),
        "random",
        Tls("dns.quad9.net", "/ca.pem", "/cert.pem", "/key.pem"),
        True,
        0,
        20.0,
        0.0,
        0.0,
    )
    assert routes[b"\x04corp\x07example\0"].addresses == (), "such names are refused"


def test_what_is_not_there_is_off_as_in_coredns() -> None:
    config, notes = read(". {\n kubernetes cluster.local\n bind 169.254.20.10 10.96.0.10\n}\n")
    assert notes == []
    assert not config.shuffle
    assert not config.reload
    assert config.routes() == {}
    assert config.listen == ("169.254.20.10", "10.96.0.10")


def test_a_snippet_is_put_where_it_is_imported() -> None:
    config, notes = read(
        "(more) {\n cache 7\n log {\n class denial error\n }\n}\n. {\n import more\n forward . 192.0.2.1\n}\n"
    )
    assert notes == []
    assert config.forwards[0].cache_positive == 7
    assert (config.log_queries, config.log_classes) == (True, ("denial", "error"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (".:53 {\n errors\n", "line 1: the { is not closed"),
        ("}\n", "line 1: a } without a {"),
        (". {\n forward .\n}\n", "line 2: forward needs a domain"),
        (
            ". {\n forward . https://192.0.2.1\n}\n",
            "line 2: 'https://192.0.2.1': upstreams can use UDP, TCP or tls://",
        ),
        (". {\n forward . 192.0.2.1 {\n  tls a b c d\n }\n}\n", "line 3: tls takes at most"),
        (". {\n forward . 192.0.2.1\n forward . 192.0.2.2\n}\n", "'.' is forwarded twice"),
        (". {\n health {\n lameduck soon\n }\n}\n", "line 3: 'soon' is no duration"),
        (". {\n health here\n}\n", "line 2: 'here' is no address"),
        (". {\n kubernetes {\n ttl long\n }\n}\n", "line 3: 'long' is no number"),
        (". { errors }\n", "line 1: a brace must end its line"),
        (". {\n rewrite name a.example\n}\n", "line 2: rewrite name needs a name and its replacement"),
        (". {\n rewrite name regex ( b\n}\n", "line 2: '(' is no regular expression"),
        (". {\n rewrite name a b answer maybe\n}\n", "line 2: 'answer maybe' is not understood"),
        (". {\n template IN A {\n  match (\n }\n}\n", "line 3: '(' is no regular expression"),
        (
            '. {\n template IN A {\n  answer "{{ .Name }} 60 IN A x"\n }\n}\n',
            "line 3: 'a.example. 60 IN A x' is no record",
        ),
        (
            '. {\n template IN A {\n  answer "{{ .Remote }} 60 IN A 192.0.2.1"\n }\n}\n',
            "line 3: {{ .Remote }} is not supported",
        ),
        (". {\n template IN A {\n  rcode MAYBE\n }\n}\n", "line 3: 'MAYBE' is no response code"),
        (". {\n template IN NONSENSE\n}\n", "line 2: 'NONSENSE' is no record type"),
        (". {\n hosts x bad!zone\n}\n", "line 2: 'bad!zone' is no DNS name"),
    ],
)
def test_errors_name_the_line(text: str, said: str) -> None:
    with pytest.raises(BadConfig) as caught:
        read(text)
    assert said in str(caught.value)


def test_nameservers_of_a_resolv_conf() -> None:
    text = "search a b\nnameserver 192.0.2.1\n#nameserver 192.0.2.2\nnameserver fe80::1%eth0\nnameserver\n"
    assert corefile.resolv_conf(text) == ("192.0.2.1", "fe80::1%eth0")


def test_durations() -> None:
    assert [
        corefile_text.seconds(text, corefile_text.Directive(1, [""])) for text in ("5s", "1m30s", "250ms", "2h", "7")
    ] == [5, 90, 0.25, 7200, 7]
