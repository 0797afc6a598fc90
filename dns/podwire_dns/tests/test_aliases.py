"""Aliases whose target is a question for any rule, zone or upstream, and names that a rule moves to another block."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from podwire_base.patience import patient
from podwire_base.testing.ports import free_port
from podwire_dns import corefile, names
from podwire_dns.answer import Answerer, Pending
from podwire_dns.cache import Upstreamed
from podwire_dns.rules import Rules
from podwire_dns.server import Server
from podwire_dns.testing import builders, judge
from podwire_dns.testing.cases import NAMESPACES, SERVICES, SLICES, SVC, service
from podwire_dns.tests.fake_upstream import answer, upstream
from podwire_dns.tests.test_server import ask as ask_server
from podwire_dns.zone import ZoneData

# Each *.alias.test is an alias of what the name says.
ALIASES = f"""
    hosts {{
        192.0.2.1 owned.test www.example.com
        fallthrough
    }}
    rewrite name renamed.test svc1.{SVC}
    rewrite name renamed-alias.test service.alias.test
    template IN A made.test {{
        answer "{{{{ .Name }}}} 60 IN A 192.0.2.2"
    }}
    template ANY ANY alias.test {{
        match ^service\\.
        answer "{{{{ .Name }}}} 60 IN CNAME svc1.{SVC}"
        fallthrough
    }}
    template ANY ANY alias.test {{
        match ^(?P<target>[a-z0-9-]+)\\.alias\\.test\\.$
        answer "{{{{ .Name }}}} 60 IN CNAME {{{{ .Group.target }}}}.test."
    }}
    template ANY ANY ring.test {{
        match ^a\\.
        answer "{{{{ .Name }}}} 60 IN CNAME b.ring.test."
        fallthrough
    }}
    template ANY ANY ring.test {{
        answer "{{{{ .Name }}}} 60 IN CNAME a.ring.test."
    }}
    template ANY ANY ever.test {{
        answer "{{{{ .Name }}}} 60 IN CNAME x{{{{ .Name }}}}"
    }}
    template IN A whole.test {{
        answer "{{{{ .Name }}}} 60 IN CNAME svc1.{SVC}"
        answer "svc1.{SVC} 60 IN A 192.0.2.3"
    }}
    template ANY ANY gone.test {{
        rcode NXDOMAIN
    }}
    template ANY ANY broken.test {{
        rcode SERVFAIL
    }}
"""
MORE = (
    service("ext-made", type="ExternalName", externalName="made.test"),
    service("ext-alias", type="ExternalName", externalName="service.alias.test"),
    service("ext-renamed", type="ExternalName", externalName="renamed.test"),
)


def answering(inside: str = ALIASES, more: str = "", *, autopath: bool = False) -> Answerer:
    config, notes = corefile.apply(f". {{\n{inside}\n}}\n{more}", builders.CONFIG)
    assert notes == []
    zone = builders.fed(builders.builder((*SERVICES, *MORE), SLICES, NAMESPACES))
    made = builders.answerer(zone, recursion=True)
    made.rules, made.autopath = Rules(config.blocks), autopath
    return made


def handled(answerer: Answerer, name: str, rtype: str = "A", *, recurse: bool = True) -> bytes | Pending:
    query = dns.message.make_query(name, rtype)
    query.flags |= 0x100 if recurse else 0
    found = answerer.handle(query.to_wire(), udp=True)
    assert found is not None
    return found


def told(answerer: Answerer, name: str, rtype: str = "A") -> tuple[str, set[str]]:
    found = handled(answerer, name, rtype)
    assert isinstance(found, bytes)
    assert dns.message.from_wire(found).question[0].name.to_text() == name
    rcode, (records, _, _) = judge.read(found)
    return rcode, records


FOUND = [
    ("service.alias.test.", "A", {f"service.alias.test. 60 cname svc1.{SVC}", f"svc1.{SVC} 5 a 10.96.0.1"}),
    ("service.alias.test.", "AAAA", {f"service.alias.test. 60 cname svc1.{SVC}"}),
    (
        "service.alias.test.",
        "SRV",
        {f"service.alias.test. 60 cname svc1.{SVC}", f"svc1.{SVC} 5 srv 0 100 80 svc1.{SVC}"},
    ),
    ("service.alias.test.", "TXT", {f"service.alias.test. 60 cname svc1.{SVC}"}),
    ("service.alias.test.", "CNAME", {f"service.alias.test. 60 cname svc1.{SVC}"}),
    ("Service.ALIAS.test.", "A", {f"service.alias.test. 60 cname svc1.{SVC}", f"svc1.{SVC} 5 a 10.96.0.1"}),
    ("owned.alias.test.", "A", {"owned.alias.test. 60 cname owned.test.", "owned.test. 3600 a 192.0.2.1"}),
    ("owned.alias.test.", "AAAA", {"owned.alias.test. 60 cname owned.test."}),
    ("renamed.alias.test.", "A", {"renamed.alias.test. 60 cname renamed.test.", "renamed.test. 5 a 10.96.0.1"}),
    ("made.alias.test.", "A", {"made.alias.test. 60 cname made.test.", "made.test. 60 a 192.0.2.2"}),
    ("renamed-alias.test.", "A", {f"renamed-alias.test. 60 cname svc1.{SVC}", f"svc1.{SVC} 5 a 10.96.0.1"}),
    ("a.ring.test.", "A", {"a.ring.test. 60 cname b.ring.test.", "b.ring.test. 60 cname a.ring.test."}),
    ("x.whole.test.", "A", {f"x.whole.test. 60 cname svc1.{SVC}", f"svc1.{SVC} 60 a 192.0.2.3"}),
    ("gone.alias.test.", "A", {"gone.alias.test. 60 cname gone.test."}),
    (f"ext.{SVC}", "A", {f"ext.{SVC} 5 cname www.example.com.", "www.example.com. 3600 a 192.0.2.1"}),
    (f"ext-made.{SVC}", "A", {f"ext-made.{SVC} 5 cname made.test.", "made.test. 60 a 192.0.2.2"}),
    (f"ext-renamed.{SVC}", "A", {f"ext-renamed.{SVC} 5 cname renamed.test.", "renamed.test. 5 a 10.96.0.1"}),
    (
        f"ext-alias.{SVC}",
        "A",
        {
            f"ext-alias.{SVC} 5 cname service.alias.test.",
            f"service.alias.test. 60 cname svc1.{SVC}",
            f"svc1.{SVC} 5 a 10.96.0.1",
        },
    ),
    (f"ext-in.{SVC}", "SRV", {f"ext-in.{SVC} 5 cname svc1.{SVC}", f"svc1.{SVC} 5 srv 0 100 80 svc1.{SVC}"}),
]


@pytest.mark.parametrize(("name", "rtype", "wanted"), FOUND, ids=[f"{name} {rtype}" for name, rtype, _ in FOUND])
def test_an_alias_is_followed_wherever_it_leads(name: str, rtype: str, wanted: set[str]) -> None:
    assert told(answering(), name, rtype) == ("NOERROR", wanted)


def test_aliases_without_end_stop() -> None:
    rcode, records = told(answering(), "a.ever.test.")
    assert (rcode, len(records)) == ("NOERROR", 8)


def test_a_failure_at_the_end_is_a_failure() -> None:
    assert told(answering(), "broken.alias.test.") == ("SERVFAIL", set())
    made = answering()
    made.data = ZoneData(made.data.zones)
    assert told(made, "service.alias.test.") == ("SERVFAIL", set())


def test_an_alias_that_leads_to_an_upstream() -> None:
    made = answering()
    pending = handled(made, "far.alias.test.")
    assert isinstance(pending, Pending)
    assert pending.ask == names.to_wire("far.test.") + b"\0\1\0\1"
    record = b"\0\1\0\0\0\0\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc6\x33\x64\x07"
    alias = "far.alias.test. 60 cname far.test."
    assert judge.read(made.finish(pending, Upstreamed(0, record))) == (
        "NOERROR",
        [{alias, "far.test. 60 a 198.51.100.7"}, set(), set()],
    )
    assert judge.read(made.finish(pending, Upstreamed(3, b"\0" * 6)))[:1] == ("NOERROR",)
    assert judge.read(made.finish(pending, None))[0] == "SERVFAIL"
    alone = dns.message.make_query("far.alias.test.", "A")
    alone.flags = dns.flags.Flag(0)
    found = made.handle(alone.to_wire(), udp=True)
    assert isinstance(found, bytes)
    assert judge.read(found)[1][0] == {alias}, "without RD nobody is asked"


def test_the_rest_of_a_search_path_is_a_question_for_the_rules() -> None:
    made = answering(autopath=True)
    for name, wanted in (
        ("owned.test", "owned.test. 3600 a 192.0.2.1"),
        ("made.test", "made.test. 60 a 192.0.2.2"),
        ("renamed.test", "renamed.test. 5 a 10.96.0.1"),
    ):
        asked = f"{name}.{SVC}"
        assert told(made, asked) == ("NOERROR", {f"{asked} 5 cname {name}.", wanted})
    assert told(made, f"x.gone.test.{SVC}") == ("NXDOMAIN", set())
    assert told(made, f"owned.test.{SVC}", "AAAA") == ("NOERROR", {f"owned.test.{SVC} 5 cname owned.test."})


BLOCKS = """
    rewrite name moved.test x.corp.test
    rewrite name kept.test y.test
    rewrite name hosted.test h.corp.test
    hosts {
        192.0.2.9 h.corp.test
        fallthrough
    }
    forward . 192.0.2.1 {
        except no.corp.test
    }
    rewrite name refused.test a.no.corp.test
"""
CORP = """
corp.test {
    hosts {
        192.0.2.5 x.corp.test h.corp.test
        fallthrough
    }
    forward . 192.0.2.2
}
"""


def test_a_rewritten_name_stays_in_its_block() -> None:
    made = answering(BLOCKS, CORP)
    assert told(made, "x.corp.test.")[1] == {"x.corp.test. 3600 a 192.0.2.5"}
    assert told(made, "h.corp.test.")[1] == {"h.corp.test. 3600 a 192.0.2.5"}
    assert told(made, "hosted.test.")[1] == {"hosted.test. 3600 a 192.0.2.9"}, "the hosts of the block with the rule"
    moved, kept = handled(made, "moved.test."), handled(made, "kept.test.")
    assert isinstance(moved, Pending)
    assert isinstance(kept, Pending)
    assert moved.cache_key == (names.to_wire("x.corp.test.") + b"\0\1\0\1", False, False, b"\0")
    assert kept.cache_key == (names.to_wire("y.test.") + b"\0\1\0\1", False, False), "shared with those who ask so"


def test_a_rewritten_name_goes_to_the_upstream_of_its_block(tmp_path: Path) -> None:
    async def work() -> None:
        async with (
            asyncio.timeout(patient(30)),
            upstream(lambda query: answer(query, "60 A 198.51.100.1")) as first,
            upstream(lambda query: answer(query, "60 A 198.51.100.2")) as second,
        ):
            text = f". {{\n{BLOCKS}\n}}\ncorp.test {{\n forward . 192.0.2.2\n}}\n"
            for address, port in (("192.0.2.1", first.port), ("192.0.2.2", second.port)):
                text = text.replace(f"forward . {address}", f"forward . 127.0.0.1:{port}")
            base = replace(builders.CONFIG, run_dir=tmp_path, listen=("127.0.0.1",), port=free_port(), notrack=False)
            config, notes = corefile.apply(text, base)
            assert notes == []
            async with Server(config) as server:
                server.answerer.data = builders.conformance_zone()
                for _ in range(2):  # the second time from the cache
                    for name, last in (("moved.test.", 1), ("x.corp.test.", 2), ("kept.test.", 1), ("y.corp.test.", 2)):
                        found = await ask_server(config, name)
                        assert judge.read(found.to_wire())[1][0] == {f"{name} 60 a 198.51.100.{last}"}
                refused = await ask_server(config, "refused.test.")
                assert refused.rcode() == dns.rcode.REFUSED
                fresh, _ = corefile.apply(text.replace(f":{first.port}", f":{second.port}"), base)
                await server.reload(fresh)
                found = await ask_server(config, "moved.test.")
                assert judge.read(found.to_wire())[1][0] == {"moved.test. 60 a 198.51.100.2"}

    asyncio.run(work())


def test_names_that_only_a_rule_makes_use_a_forward() -> None:
    config, notes = corefile.apply(
        "corp.test {\n rewrite name suffix .corp.test .lab.test\n forward lab.test 192.0.2.3\n}\n", builders.CONFIG
    )
    assert notes == []
    assert config.homes()[names.to_wire("corp.test.")][names.to_wire("lab.test.")].addresses == ("192.0.2.3#53",)


@pytest.mark.parametrize("seed", range(60))
def test_random_rules_lead_to_one_chain_that_ends(seed: int) -> None:
    """Each of the names is an alias, an address of hosts, a rewritten name, a Service, or nothing."""
    rand = random.Random(seed)
    every = [f"n{index}.test" for index in range(8)]
    hosts, rules = [], []
    leads: dict[str, tuple[str, str]] = {}
    for name in every:
        kind, target = rand.choice(("alias", "alias", "rewrite", "hosts", "gone")), rand.choice([*every, f"svc1.{SVC}"])
        leads[name] = kind, target
        if kind == "alias":
            rules.append(f'template ANY ANY {name} {{\n answer "{{{{ .Name }}}} 60 IN CNAME {target}"\n}}')
        elif kind == "rewrite":
            rules.append(f"rewrite name {name} {target}")
        elif kind == "hosts":
            hosts.append(f"192.0.2.{every.index(name)} {name}")
        else:
            rules.append(f"template ANY ANY {name} {{\n rcode NXDOMAIN\n}}")
    made = answering("\n".join([*rules, "hosts {", *hosts, "fallthrough\n}"]))
    made.recursion = False
    for name in every:
        rcode, records = told(made, f"{name}.")
        owners = {record.split()[0]: record.split()[-1] for record in records if " cname " in record}
        assert len(owners) <= 8
        at, seen = f"{name}.", set[str]()
        while at in owners and at not in seen:
            seen.add(at)
            at = owners[at]
        assert seen == set(owners), "the aliases are one chain from the asked name"
        addresses = [record for record in records if " a " in record]
        assert all(record.split()[0] == at for record in addresses)
        kind, target = leads[name]
        if kind == "hosts":
            assert addresses == [f"{name}. 3600 a 192.0.2.{every.index(name)}"]
        elif kind == "gone":
            assert (rcode, records) == ("NXDOMAIN", set())
        elif target == f"svc1.{SVC}":
            assert len(addresses) == 1
        elif kind == "alias":
            assert owners[f"{name}."] == f"{target}."
            inner = told(made, f"{target}.")[1]
            assert bool(addresses) == any(" a " in record for record in inner) or len(owners) == 8
