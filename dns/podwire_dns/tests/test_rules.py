"""hosts, template and rewrite of a Corefile, from a client's view."""

from __future__ import annotations

from dataclasses import replace

import dns.message
import dns.rcode
import pytest

from podwire_dns import corefile, names, wire
from podwire_dns.answer import Answerer, Pending
from podwire_dns.cache import Upstreamed
from podwire_dns.config import DnsConfig
from podwire_dns.rules import Rules
from podwire_dns.testing import builders, judge
from podwire_dns.testing.cases import NAMESPACES, SERVICES, SLICES, SVC, ZONE


def answering(inside: str, *, files: str = "") -> Answerer:
    """The conformance cluster with a Corefile; files: the content of every hosts file."""
    config, notes = corefile.apply(f".:53 {{\n{inside}\n}}\nother.example {{\n}}\n", builders.CONFIG)
    assert notes == []
    made = builders.answerer(builders.conformance_zone(), recursion=True)
    made.rules = Rules(_read(config, files).blocks)
    return made


def _read(config: DnsConfig, files: str) -> DnsConfig:
    return replace(
        config,
        blocks=tuple(
            replace(block, hosts=tuple(replace(hosts, text=files) for hosts in block.hosts)) for block in config.blocks
        ),
    )


def ask(answerer: Answerer, name: str, rtype: str = "A", *, edns: bool = False) -> bytes | Pending:
    query = dns.message.make_query(name, rtype, use_edns=0 if edns else -1, payload=1232)
    answer = answerer.handle(query.to_wire(), udp=True)
    assert answer is not None
    return answer


def answered(answerer: Answerer, name: str, rtype: str = "A", *, edns: bool = False) -> bytes:
    data = ask(answerer, name, rtype, edns=edns)
    assert isinstance(data, bytes)
    return data


def told(answerer: Answerer, name: str, rtype: str = "A") -> tuple[str, set[str]]:
    """(rcode, answer records); the response must echo the original question."""
    data = answered(answerer, name, rtype)
    assert dns.message.from_wire(data).question[0].name.to_text() == name
    rcode, (answer, _, _) = judge.read(data)
    return rcode, answer


def test_hosts_inline_and_of_a_file() -> None:
    made = answering(
        "hosts /etc/more {\n 192.0.2.1 a.example b.example\n 2001:db8::1 a.example\n ttl 60\n fallthrough\n}",
        files="192.0.2.9 filed.example # comment\nnonsense\n::1%lo scoped.example\n",
    )
    assert told(made, "a.example.") == ("NOERROR", {"a.example. 60 a 192.0.2.1"})
    assert told(made, "A.Example.") == ("NOERROR", {"a.example. 60 a 192.0.2.1"})
    assert told(made, "a.example.", "AAAA") == ("NOERROR", {"a.example. 60 aaaa 2001:db8::1"})
    assert told(made, "b.example.", "AAAA") == ("NOERROR", set())
    assert told(made, "filed.example.") == ("NOERROR", {"filed.example. 60 a 192.0.2.9"})
    assert told(made, "1.2.0.192.in-addr.arpa.", "PTR") == (
        "NOERROR",
        {"1.2.0.192.in-addr.arpa. 60 ptr a.example.", "1.2.0.192.in-addr.arpa. 60 ptr b.example."},
    )
    for rtype in ("MX", "TXT", "HTTPS", "SOA", "NS", "PTR"):
        assert told(made, "a.example.", rtype) == ("NOERROR", set()), "a name of hosts never leaks upstream"
        assert isinstance(ask(made, "c.example.", rtype), Pending)
    for rtype in ("A", "TXT", "ANY", "SOA"):
        leaked = ask(made, "1.2.0.192.in-addr.arpa.", rtype)
        assert isinstance(leaked, bytes), "nor does the reverse name of an address of hosts"
        assert dns.message.from_wire(leaked).rcode() == (dns.rcode.REFUSED if rtype == "ANY" else dns.rcode.NOERROR)
    assert isinstance(ask(made, "c.example."), Pending)
    assert isinstance(ask(made, "9.2.0.198.in-addr.arpa.", "PTR"), Pending)
    assert told(made, f"svc1.{SVC}") == ("NOERROR", {f"svc1.{SVC} 5 a 10.96.0.1"})


def test_hosts_stand_before_the_cluster_and_hold_for_their_zones() -> None:
    made = answering(
        f"hosts x cluster.local {{\n 192.0.2.1 svc1.{SVC}\n 192.0.2.2 a.example\n no_reverse\n"
        " fallthrough svc.cluster.local\n}"
    )
    assert told(made, f"svc1.{SVC}") == ("NOERROR", {f"svc1.{SVC} 3600 a 192.0.2.1"})
    assert told(made, f"svc6.{SVC}", "AAAA")[0] == "NOERROR", "fallthrough for this zone"
    for rtype in ("A", "MX", "HTTPS"):
        assert told(made, f"x.{ZONE}", rtype) == ("SERVFAIL", set()), "no fallthrough for this one"
    assert told(made, f"svc1.{SVC}", "SRV") == ("NOERROR", set()), "hosts owns the name"
    assert isinstance(ask(made, "a.example."), Pending), "not in the zones of this hosts"
    assert isinstance(ask(made, "1.2.0.192.in-addr.arpa.", "PTR"), Pending), "no_reverse"


def test_rules_hold_for_the_block_they_stand_in() -> None:
    made = answering("hosts x {\n 192.0.2.1 a.example a.other.example\n fallthrough\n}")
    assert told(made, "a.example.")[0] == "NOERROR"
    assert isinstance(ask(made, "a.other.example."), Pending), "another block's zone fits better"


@pytest.mark.parametrize(
    ("rule", "asked"),
    [
        (f"rewrite name old.example svc1.{SVC}", "old.example."),
        (f"rewrite name exact old.example svc1.{SVC}", "OLD.example."),
        (f"rewrite stop name suffix .mesh.example .{SVC} answer auto", "svc1.mesh.example."),
        ("rewrite name prefix alias- svc", f"alias-1.{SVC}"),
        ("rewrite name substring .middle. .testns.", f"svc1.middle.svc.{ZONE}"),
        (r"rewrite name regex (.*)\.(test.*)\.example {1}.{2}.svc.cluster.local", "svc1.testns.example."),
        (f"rewrite continue name a.example b.example\n rewrite name b.example svc1.{SVC}", "a.example."),
    ],
)
def test_a_rewritten_question_is_answered_as_it_was_asked(rule: str, asked: str) -> None:
    made = answering(rule)
    assert told(made, asked) == ("NOERROR", {f"{asked.lower()} 5 a 10.96.0.1"})
    assert told(made, asked, "AAAA") == ("NOERROR", set())
    assert told(made, f"svc0.{SVC}")[0] == "NXDOMAIN", "other names are handled as usual"


def test_names_in_the_data_go_back_where_the_rule_says() -> None:
    data = answering(f"rewrite name old.example svc1.{SVC}")
    assert told(data, "old.example.", "SRV")[1] == {"old.example. 5 srv 0 100 80 old.example."}
    plain = answering(f"rewrite name suffix .mesh.example .{SVC}")
    assert told(plain, "svc1.mesh.example.", "SRV")[1] == {f"svc1.mesh.example. 5 srv 0 100 80 svc1.{SVC}"}
    valued = answering(
        "rewrite {\n name regex (.*)\\.mesh\\.example {1}.testns.svc.cluster.local\n"
        " answer value (.*)\\.testns\\.svc\\.cluster\\.local {1}.mesh.example\n"
        " answer name (.*)\\.testns\\.svc\\.cluster\\.local {1}.mesh.example\n}"
    )
    rcode, (answer, _, extra) = judge.read(answered(valued, "hdls.mesh.example.", "SRV", edns=True))
    assert rcode == "NOERROR"
    assert len(answer) == 4
    assert all(record.endswith(".hdls.mesh.example.") for record in answer)
    assert {record.split()[0] for record in extra} == {record.split()[-1] for record in answer}


def test_a_rewritten_question_goes_upstream_and_its_answer_comes_back() -> None:
    made = answering("rewrite name new.example www.example.com answer auto")
    pending = ask(made, "New.example.")
    assert isinstance(pending, Pending)
    assert pending.ask == names.to_wire("www.example.com.") + b"\0\1\0\1"
    record = b"\0\1\0\0\0\0\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc6\x33\x64\x07"
    data = made.finish(pending, Upstreamed(0, record))
    assert judge.read(data) == ("NOERROR", [{"new.example. 60 a 198.51.100.7"}, set(), set()])
    assert b"New" in data
    assert judge.read(made.finish(pending, None))[0] == "SERVFAIL"
    again = ask(made, "new.example.", edns=True)
    assert isinstance(again, Pending)
    assert dns.message.from_wire(made.finish(again, Upstreamed(0, record))).payload == wire.UDP_SIZE


def test_a_rule_that_makes_names_too_long_is_servfail() -> None:
    answerer = answering(
        f" rewrite stop {{\n  name exact new.example svc1.{SVC}\n  answer name (.*)\\.$ {'.'.join(['{1}'] * 30)}\n }}\n"
    )
    assert answered(answerer, "new.example.")[3] & 0xF == wire.SERVFAIL


def test_templates() -> None:
    made = answering(r"""template IN A tmpl.example {
        match ^ip-(?P<a>[0-9]+)-(?P<b>[0-9]+)\.tmpl\.example\.$
        answer "{{ .Name }} 60 IN A 10.0.{{ .Group.a }}.{{ index .Match 2 }}"
        additional "more.{{ .Zone }} 60 IN TXT {{ .Type }}"
        fallthrough
    }
    template IN AAAA tmpl.example
    template ANY ANY blocked.example {
        rcode NXDOMAIN
        authority "blocked.example. 60 IN SOA ns.example. me.example. 1 2 3 4 5"
    }
    template IN A strict.example {
        match ^only\.
        answer "{{ .Question.Name }} IN A 192.0.2.1"
    }""")
    data = answered(made, "ip-3-7.tmpl.example.")
    assert judge.read(data) == (
        "NOERROR",
        [{"ip-3-7.tmpl.example. 60 a 10.0.3.7"}, set(), {'more.tmpl.example. 60 txt "a"'}],
    )
    assert isinstance(ask(made, "x.tmpl.example."), Pending)
    assert told(made, "x.tmpl.example.", "AAAA") == ("NOERROR", set())
    rcode, (answer, (soa,), _) = judge.read(answered(made, "ads.blocked.example.", "MX"))
    assert (rcode, answer) == ("NXDOMAIN", set())
    assert soa.startswith("blocked.example. 60 soa")
    assert told(made, "only.strict.example.") == ("NOERROR", {"only.strict.example. 3600 a 192.0.2.1"})
    assert told(made, "other.strict.example.") == ("NXDOMAIN", set()), "no fallthrough"
    assert told(made, "ip-300-1.tmpl.example.")[0] == "SERVFAIL", "10.0.300.1 is not an address"


def test_cache_bounds_what_clients_see() -> None:
    made = answering("""cache 20
    hosts x {
        192.0.2.1 a.example
        fallthrough
    }
    template IN A b.example {
        answer "{{ .Name }} 600 in a 192.0.2.2"
        additional "c.example. 7 IN A 192.0.2.3"
    }""")
    assert told(made, "a.example.") == ("NOERROR", {"a.example. 20 a 192.0.2.1"})
    assert judge.read(answered(made, "b.example.")) == (
        "NOERROR",
        [{"b.example. 20 a 192.0.2.2"}, set(), {"c.example. 7 a 192.0.2.3"}],
    )


def test_negative_answers_of_the_cluster_have_a_bound_of_their_own() -> None:
    config, _ = corefile.apply(
        ". {\n kubernetes {\n  ttl 30\n }\n cache 60 {\n  denial 9984 7\n }\n}\n", builders.CONFIG
    )
    made = builders.answerer(builders.fed(builders.builder(SERVICES, SLICES, NAMESPACES, config)), recursion=True)
    assert told(made, f"svc1.{SVC}") == ("NOERROR", {f"svc1.{SVC} 30 a 10.96.0.1"})
    for name, rtype, rcode in ((f"svc1.{SVC}", "AAAA", "NOERROR"), (f"none.{SVC}", "A", "NXDOMAIN")):
        found, (_, (soa,), _) = judge.read(answered(made, name, rtype))
        assert (found, soa.split()[1], soa.split()[-1]) == (rcode, "7", "7")


def test_addresses_keep_their_order_without_loadbalance() -> None:
    made = builders.answerer(builders.conformance_zone(), rand=lambda n: 1)
    query = dns.message.make_query(f"hdls.{SVC}", "A").to_wire()
    turned = made.handle(query, udp=True)
    made.shuffle = False
    straight = made.handle(query, udp=True)
    assert turned != straight
    assert straight == builders.answerer(builders.conformance_zone()).handle(query, udp=True)
