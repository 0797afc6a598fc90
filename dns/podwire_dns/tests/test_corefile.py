"""An existing Corefile carries over, and every unsupported line is named."""

from __future__ import annotations

from dataclasses import replace

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
    (note,) = notes
    assert note.startswith("Corefile line 14: 'max_concurrent 1000' has no effect here: ")
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
    assert (config.serve_stale, config.cache_capacity) == (7200, 7500), "one cache has both kinds"
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
    assert lines(notes) == [9]
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
            "line 2: 'https://192.0.2.1': an upstream is IP, IP:port or [IPv6]:port, with tls:// for TLS",
        ),
        (". {\n forward . 192.0.2.1 {\n  tls a b c d\n }\n}\n", "line 3: tls takes at most"),
        (". {\n forward . 192.0.2.1\n forward . 192.0.2.2\n}\n", "'.' is forwarded twice"),
        (". {\n health {\n lameduck soon\n }\n}\n", "line 3: 'soon' is not a duration"),
        (". {\n health here\n}\n", "line 2: 'here' is not an address"),
        (". {\n kubernetes {\n ttl long\n }\n}\n", "line 3: 'long' is not a number"),
        (". { errors }\n", "line 1: a brace must end its line"),
        (". {\n rewrite name a.example\n}\n", "line 2: rewrite name needs a name and its replacement"),
        (". {\n rewrite name regex ( b\n}\n", "line 2: '(' is not a regular expression"),
        (". {\n rewrite name a b answer maybe\n}\n", "line 2: 'answer maybe' is not understood"),
        (". {\n template IN A {\n  match (\n }\n}\n", "line 3: '(' is not a regular expression"),
        (
            '. {\n template IN A {\n  answer "{{ .Name }} 60 IN A x"\n }\n}\n',
            "line 3: 'a.example. 60 IN A x' is not a record",
        ),
        (
            '. {\n template IN A {\n  answer "{{ .Remote }} 60 IN A 192.0.2.1"\n }\n}\n',
            "line 3: {{ .Remote }} is not supported",
        ),
        (". {\n template IN A {\n  rcode MAYBE\n }\n}\n", "line 3: 'MAYBE' is not a response code"),
        (". {\n template IN NONSENSE\n}\n", "line 2: 'NONSENSE' is not a record type"),
        (". {\n hosts x bad!zone\n}\n", "line 2: 'bad!zone' is not a DNS name"),
    ],
)
def test_errors_name_the_line(text: str, said: str) -> None:
    with pytest.raises(BadConfig) as caught:
        read(text)
    assert said in str(caught.value)


def test_a_mistake_is_told_apart_from_what_is_not_supported() -> None:
    for text, said in (
        (". {\n forwrd . 192.0.2.1\n}\n", "line 2: 'forwrd' is not a directive in CoreDNS; is forward meant?"),
        (". {\n Forward . 192.0.2.1\n}\n", "line 2: 'Forward' is not a directive in CoreDNS; is forward meant?"),
        (". {\n zzz\n}\n", "line 2: 'zzz' is not a directive in CoreDNS"),
        (
            ". {\n cache {\n  succes 10\n }\n}\n",
            "line 3: 'succes' is not an option of cache in CoreDNS; is success meant?",
        ),
        (". {\n hosts {\n  192.0.2 a.test\n }\n}\n", "line 3: '192.0.2' is not an option of hosts"),
        (". {\n kubernetes {\n  pod insecure\n }\n}\n", "line 3: 'pod' is not an option of kubernetes"),
        (". {\n health {\n  lameduck\n }\n}\n", "line 3: lameduck needs a value"),
        (". {\n rewrite nane a b\n}\n", "line 2: rewrite needs one of name, type"),
        (". {\n rewrite\n}\n", "line 2: rewrite needs one of name, type"),
        (". {\n log {\n  class eror\n }\n}\n", "line 3: class takes all, success"),
        (". {\n kubernetes {\n  pods insecur\n }\n}\n", "line 3: pods must be disabled, insecure or"),
        (". {\n cache 0\n}\n", "line 2: the TTL must be above 0"),
        (". {\n cache {\n  denial 100 0\n }\n}\n", "line 3: the TTL must be above 0"),
        (". {\n cache {\n  disable denials\n }\n}\n", "line 3: disable takes success or denial"),
    ):
        with pytest.raises(BadConfig) as caught:
            read(text)
        assert said in str(caught.value)
    config, notes = read(". {\n dnssec\n any\n forward . 192.0.2.1 {\n  failover SERVFAIL\n }\n}\n")
    assert lines(notes) == [2, 3, 5]
    assert config.routes()[b"\0"].addresses == ("192.0.2.1#53",)


def test_settings_that_all_blocks_share_and_contradict_are_named() -> None:
    config, notes = read(
        "a.test {\n prometheus :9253\n reload 5s\n log\n}\nb.test {\n prometheus :9153\n reload 5s\n log {\n"
        "  class error\n }\n cache {\n  prefetch\n }\n}\nc.test {\n cache\n}\n"
    )
    assert lines(notes) == [7, 9]
    assert "in place of that at Corefile line 2" in notes[0]
    assert (config.metrics_address, config.log_names, config.prefetch) == (":9153", ("a.test", "b.test"), True)


def test_a_reload_of_0_is_none_and_a_short_one_is_the_least() -> None:
    assert [read(f". {{\n reload {text}\n}}\n")[0].reload for text in ("0", "0s", "1s", "7s")] == [0, 0, 2, 7]


def test_words_behind_an_option_that_have_no_effect_are_named() -> None:
    config, notes = read(". {\n cache {\n  serve_stale 1h immediate\n  prefetch 10 1m 10%\n }\n reload 5s 2s\n}\n")
    assert lines(notes) == [3, 4, 6]
    assert (config.serve_stale, config.prefetch, config.reload) == (3600, True, 5)
    assert read(". {\n cache {\n  serve_stale 1h verify\n }\n}\n")[1] == []


def test_what_has_no_effect_here_is_named() -> None:
    config, notes = read(
        ". {\n forward . 192.0.2.1 {\n  tls_servername a.test\n  tls /ca.pem\n }\n minimal\n any\n errors /var/log/x\n"
        " loadbalance\n}\na.test {\n kubernetes\n loadbalance\n errors stdout\n bufsize 1232\n}\n"
    )
    assert sorted(lines(notes)) == [3, 4, 6, 7, 8, 9]
    assert config.shuffle


def test_rules_that_lead_to_the_cluster_from_a_block_without_it_are_named() -> None:
    config, notes = read(
        ". {\n kubernetes cluster.test\n rewrite name a.example b.ns.svc.cluster.test\n}\na.test {\n"
        " rewrite name suffix .a.test .svc.cluster.test\n rewrite name x.a.test y.a.test\n"
        " rewrite name regex (.*)\\.a\\.test\\. {1}.svc.Cluster.Test.\n rewrite name z.a.test xcluster.test\n}\n"
    )
    assert lines(notes) == [6, 8]
    assert len(config.blocks[1].rewrites) == 4


def test_every_word_of_a_template_counts() -> None:
    config, notes = read(
        '. {\n template IN A a.test {\n  answer "{{ .Name }} A 192.0.2.1" "{{ .Name }} A 192.0.2.2"\n'
        '  additional "b.test. A 192.0.2.3" "c.test. A 192.0.2.4"\n }\n}\n'
    )
    (made,) = config.blocks[0].templates
    assert notes == []
    assert (len(made.answers), len(made.additional)) == (2, 2)


def test_blocks_that_listen_on_different_addresses_are_refused() -> None:
    text = "a.test {\n bind 127.0.0.1\n}\n. {\n bind 10.0.0.53\n}\n"
    with pytest.raises(BadConfig, match="line 5: bind has other addresses than that at Corefile line 2"):
        read(text)
    config, notes = corefile.apply(text, replace(builders.CONFIG, ignore_access=True))
    assert (config.listen, lines(notes)) == (("10.0.0.53",), [5])
    config, notes = read(". {\n bind 10.0.0.53 fd00::53 10.0.0.54 {\n  except 10.0.0.54\n }\n}\n")
    assert (config.listen, notes) == (("10.0.0.53", "fd00::53"), [])
    with pytest.raises(BadConfig, match="line 2: bind names no address"):
        read(". {\n bind 10.0.0.53 {\n  except 10.0.0.53\n }\n}\n")


def test_cache_bounds_the_ttls_of_local_answers() -> None:
    inside = "kubernetes cluster.local {\n  ttl 120\n }\n hosts {\n  192.0.2.1 a.test\n }\n template IN A b.test {\n"
    inside += '  answer "{{ .Name }} 600 in a 192.0.2.2"\n }\n'
    config, _ = read(f". {{\n {inside} cache 30\n}}\n")
    (block,) = config.blocks
    assert (config.ttl, block.hosts[0].ttl, block.templates[0].most_ttl) == (30, 30, 30)
    config, _ = read(f". {{\n cache 30 {{\n  disable success cluster.local\n }}\n {inside}}}\n")
    assert (config.ttl, config.blocks[0].hosts[0].ttl) == (120, 30)
    config, _ = read(f". {{\n cache {{\n  success 100 60\n  denial 100 7\n }}\n {inside}}}\n")
    assert (config.ttl, config.blocks[0].hosts[0].ttl) == (60, 60)
    assert (config.denial_ttl, config.schema().denial_ttl) == (7, 7), "denials of the cluster have a bound of their own"
    config, _ = read(f". {{\n cache {{\n  denial 100 7\n  disable denial cluster.local\n }}\n {inside}}}\n")
    assert config.schema().denial_ttl == 120
    config, _ = read(f". {{\n cache 30 {{\n  disable success\n }}\n forward . 192.0.2.1\n {inside}}}\n")
    assert (config.ttl, config.schema().denial_ttl, config.blocks[0].hosts[0].ttl) == (120, 30, 3600)
    assert (config.routes()[b"\0"].positive_cap, config.routes()[b"\0"].negative_cap) == (0, 30)
    config, _ = read(f". {{\n {inside}}}\n")
    assert (config.ttl, config.blocks[0].hosts[0].ttl) == (120, 3600), "without `cache` nothing is bounded"
    absent = "template ANY ANY c.test {\n  rcode NXDOMAIN\n }\n"
    config, _ = read(f". {{\n cache {{\n  denial 100 7\n }}\n {absent}}}\n")
    assert config.blocks[0].templates[0].most_ttl == 7


def test_nameservers_of_a_resolv_conf() -> None:
    text = "search a b\nnameserver 192.0.2.1\n#nameserver 192.0.2.2\nnameserver fe80::1%eth0\nnameserver\n"
    assert corefile.resolv_conf(text) == ("192.0.2.1", "fe80::1%eth0")


def test_durations() -> None:
    assert [
        corefile_text.seconds(text, corefile_text.Directive(1, [""])) for text in ("5s", "1m30s", "250ms", "2h", "7")
    ] == [5, 90, 0.25, 7200, 7]
