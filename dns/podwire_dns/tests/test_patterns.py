"""The regular expressions of a Corefile are Go's, and its templates make every record that a zone file can have."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import dns.message
import dns.name
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from podwire_base.patience import patient
from podwire_dns import corefile, templates
from podwire_dns.config import BadConfig
from podwire_dns.patterns import BadRule, pattern
from podwire_dns.testing import builders
from podwire_dns.tests.test_rules import answered, answering, told
from podwire_dns.zonetext import record


@pytest.mark.parametrize(
    ("text", "name", "groups"),
    [
        (r"^([[:alpha:]]+)-([[:digit:]]+)\.", "web-12.x.", ["web", "12"]),
        (r"^([[:^alnum:]]?\w+)\.", "a_b.x.", ["a_b"]),
        (r"^(\pL+)\.(\p{Latin}+)\z", "abc.def", ["abc", "def"]),
        (r"^(?<a>[a-z]+)\.(?P<b>[a-z]+)\.$", "ab.cd.", ["ab", "cd"]),
        (r"(?U)(a+)(.*)\.", "aaa.b.", ["a", "aa"]),
        (r"^(\Q.*\E)$", ".*", [".*"]),
        (r"(?i)^(AB)\.", "ab.", ["ab"]),
        (r"^(a|ab)(c|bcd)?", "abcd", ["a", "bcd"]),  # the first alternative, not the longest
        (r"^(x)?(a)$", "a", [None, "a"]),
        (r"^([a-z&&b]+)$", "a&b", ["a&b"]),  # Python warns about &&
    ],
)
def test_gos_syntax(text: str, name: str, groups: list[str | None]) -> None:
    made = pattern(text)
    found = made.search(name)
    assert found is not None
    assert [found[index + 1] for index in range(made.groups)] == groups


@pytest.mark.parametrize(
    "text",
    [
        r"(",
        r"(?=a)",
        r"(?<!a)b",
        r"(a)\1",
        r"\Z",
        r"a\C",
        r"(?>a)",
        r"a**",
        r"[[:letters:]]",
        r"\p{Klingon}",
        r"a{1001}",
    ],
)
def test_what_go_refuses_is_refused(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadRule, match="is not a regular expression: "):
        pattern(text)
    with pytest.raises(BadConfig, match=r"Corefile line 2: .* is not a regular expression: "):
        corefile.apply(f". {{\n rewrite name regex {text} b.\n}}\n", builders.CONFIG)
    assert capfd.readouterr() == ("", "")


def test_classes_are_ascii() -> None:
    for text in (r"\d", r"\w", r"[[:alpha:]]"):
        assert pattern(text).search("\u0664\u00e4") is None


def test_no_expression_takes_exponential_time() -> None:
    made = answering(r"rewrite name regex ^(([a-z])+.)+[A-Z]([a-z])+$ b.example")
    began = time.monotonic()
    answering(r"rewrite name regex ^(a+)+$ b.example").handle(
        dns.message.make_query("a" * 60 + ".example.", "A").to_wire(), udp=True
    )
    made.handle(dns.message.make_query("a" * 60 + ".example.", "A").to_wire(), udp=True)
    assert time.monotonic() - began < patient(2)


def test_the_expressions_of_answers_keep_their_classes() -> None:
    made = answering(
        "rewrite stop {\n name regex (.*)\\.mesh\\.example {1}.testns.svc.cluster.local\n"
        " answer value (\\S+?)\\.TESTNS\\.svc\\.cluster\\.local {1}.mesh.example\n}"
    )
    (found,) = told(made, "svc1.mesh.example.", "SRV")[1]
    assert found == "svc1.mesh.example. 5 srv 0 100 80 svc1.mesh.example."


def test_without_google_re2_a_rule_that_needs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "re2", None)
    for line in ("rewrite name regex a b", "rewrite name a b answer name a b", "template IN A {\n  match a\n }"):
        with pytest.raises(BadConfig, match=r"Corefile line [23]: 'a': .* need the Python package google-re2"):
            corefile.apply(f". {{\n {line}\n}}\n", builders.CONFIG)
    corefile.apply(". {\n rewrite name a b\n template IN A\n}\n", builders.CONFIG)


def test_only_a_rule_that_needs_them_imports_re2_and_dnspython() -> None:
    program = (
        "import sys\nfrom podwire_dns import corefile, server\nfrom podwire_dns.testing import builders\n"
        "for rule in ('rewrite name a b', 'template IN AAAA', 'rewrite name regex a b'):\n"
        "    corefile.apply('. {\\n ' + rule + '\\n hosts {\\n  192.0.2.1 a.b\\n }\\n}\\n', builders.CONFIG)\n"
        "    print('re2' in sys.modules, 'dns.rdata' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "False False\nFalse False\nTrue False\n"


RECORDS = [
    ("a.test. 60 IN A 192.0.2.1", "a.test. 60 a 192.0.2.1"),
    ("a.test IN 60 A 192.0.2.1", "a.test. 60 a 192.0.2.1"),
    ("a.test. a 192.0.2.1", "a.test. 3600 a 192.0.2.1"),
    ("a.test. 1h30m in a 192.0.2.1 ; a comment", "a.test. 5400 a 192.0.2.1"),
    (r'a.test. 60 IN TXT "two words; and more" "\034q\034" \065', r'a.test. 60 txt "two words; and more" "\"q\"" "a"'),
    ('a.test. 60 IN TXT ( "a"\n "b" )', 'a.test. 60 txt "a" "b"'),
    (r"a.test. 60 IN TYPE65280 \# 4 0A000001", r"a.test. 60 type65280 \# 4 0a000001"),
    (r"a.test. 60 IN A \# 4 C0000201", "a.test. 60 a 192.0.2.1"),
    (
        'a.test. 60 IN HTTPS 1 . alpn="h2,h3" ipv4hint=192.0.2.1',
        'a.test. 60 https 1 . alpn="h2,h3" ipv4hint="192.0.2.1"',
    ),
    ("a.test. 60 IN SVCB 0 b.test.", "a.test. 60 svcb 0 b.test."),
    ('a.test. 60 IN CAA 0 issue "ca.test"', 'a.test. 60 caa 0 issue "ca.test"'),
    ("a.test. 60 IN SRV 1 2 3 b.test.", "a.test. 60 srv 1 2 3 b.test."),
    ("a.test. 60 IN SOA ns.test. me.test. ( 1 2h 3 4 5 )", "a.test. 60 soa ns.test. me.test. 1 7200 3 4 5"),
    (
        'a.test. 60 IN NAPTR 10 100 "S" "SIP+D2U" "!^.*$!x!" _sip._udp.b.test.',
        'a.test. 60 naptr 10 100 "s" "sip+d2u" "!^.*$!x!" _sip._udp.b.test.',
    ),
    ("a.test. 60 IN MX 10 b", "a.test. 60 mx 10 b."),
    ("a.test. 60 IN TLSA 3 1 1 " + "ab" * 32, "a.test. 60 tlsa 3 1 1 " + "ab" * 32),
    (
        "a.test. 60 IN LOC 52 22 23 N 4 53 32 E -2m 0 10000 10",
        "a.test. 60 loc 52 22 23.000 n 4 53 32.000 e -2.00m 0.00m 10000.00m 10.00m",
    ),
]


def shown(data: bytes) -> list[str]:
    """The answer records as dnspython shows them, without class; dnslib shows some types differently."""
    message = dns.message.from_wire(data)
    assert message.rcode() == 0
    return [text.lower().replace(" in ", " ", 1) for rrset in message.answer for text in rrset.to_text().split("\n")]


@pytest.mark.parametrize(("line", "wanted"), RECORDS, ids=[line for line, _ in RECORDS])
def test_records_of_every_kind(line: str, wanted: str) -> None:
    escaped = line.replace('"', '\\"')
    made = answering(f'template ANY ANY test {{\n answer "{escaped}"\n}}')
    rtype = wanted.split()[2].upper()
    assert shown(answered(made, "a.test.", rtype)) == [wanted]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("a.test. 60 IN A 192.0.2.1 192.0.2.2", "is not a record"),
        ("a.test. 60 IN A 192.0.2.1\nb.test. 60 IN A 192.0.2.1", "is more than one record"),
        ("a.test. 60 CH TXT x", "is not a record of class IN"),
        ("a.test. 60 IN NONE x", "is not a record"),
        ("a.test. 4294967295 IN A 192.0.2.1", "is not a record: |has a TTL above"),
        ("a.test. 60 IN ANY x", "is not a record"),
        ("a.test.", "is not a record"),
        ("", "is not a record"),
        ("$INCLUDE /etc/passwd", "is not a record"),
        ("a..test. 60 IN A 192.0.2.1", "is not a record"),
        (f"{'a' * 64}.test. 60 IN A 192.0.2.1", "is not a record"),
        ("a.test. 60 IN A \ud800", "is not a record"),
    ],
)
def test_text_that_is_not_a_record_is_named(line: str, why: str) -> None:
    with pytest.raises(BadRule, match=why):
        record(line, 3600)


def test_a_template_whose_type_comes_from_the_question() -> None:
    made = answering(
        'template ANY ANY a.test {\n answer "{{ .Name }} 60 IN {{ .Type }} \\"x\\""\n}\n'
        'template IN AAAA b.test {\n answer "{{- .Name }} 60 IN {{ .Type }} 2001:db8::1"\n}\n'
        'template IN TYPE65280 c.test {\n answer "{{ .Name }} 60 IN {{ .Type }} \\# 1 07"\n}'
    )
    assert told(made, "a.test.", "TXT") == ("NOERROR", {'a.test. 60 txt "x"'})
    assert told(made, "a.test.", "A")[0] == "SERVFAIL", '"x" is no address'
    assert told(made, "b.test.", "AAAA") == ("NOERROR", {"b.test. 60 aaaa 2001:db8::1"})
    assert told(made, "c.test.", "TYPE65280") == ("NOERROR", {r"c.test. 60 type65280 \# 1 07"})


@pytest.mark.parametrize(
    "label", ["a;b", "a(b", "a)b", 'a"b', "a b", "a@b", "$a", "a\\b", "a.b", "{{x}}", "\x00", "\xff"]
)
def test_clients_cannot_change_the_text_of_a_record(label: str) -> None:
    """Names may have any byte (RFC 2181 section 11)."""
    made = answering(
        "template IN A test {\n match ^(?P<label>.*)[.]test[.]$\n"
        ' answer "{{ .Name }} 60 IN A 192.0.2.1" "{{ .Group.label }}.other. 60 IN A 192.0.2.2"\n}'
    )
    raw = label.encode("latin-1")
    name = dns.name.Name([raw, b"test", b""])
    found = made.handle(dns.message.make_query(name, "A").to_wire(), udp=True)
    assert isinstance(found, bytes)
    response = dns.message.from_wire(found)
    assert [(rrset.name, rrset[0].address) for rrset in response.answer] == [
        (name, "192.0.2.1"),
        (dns.name.Name([raw, b"other", b""]), "192.0.2.2"),
    ]


def test_groups_by_index() -> None:
    made = answering(
        "template IN A test {\n match ^(?P<a>[0-9]+)-([0-9]+)\\.\n"
        ' answer "{{ .Name }} 60 IN A 10.0.{{ index .Group `a` }}.{{ index .Match 2 }}"\n}'.replace("`", '\\"')
    )
    assert told(made, "3-4.test.") == ("NOERROR", {"3-4.test. 60 a 10.0.3.4"})


def test_a_large_answer_of_a_template_is_cut_and_one_beyond_a_message_fails() -> None:
    line = 'answer "{{ .Name }} 60 IN TXT ' + "x" * 200 + '"\n'
    data = answered(answering("template IN TXT a.test {\n" + line * 20 + "}"), "a.test.", "TXT")
    assert dns.message.from_wire(data).flags & 0x200, "TC"
    made = answering("template IN TXT a.test {\n" + line * 400 + "}")
    assert told(made, "a.test.", "TXT") == ("SERVFAIL", set())


def test_a_rewritten_question_to_a_template_of_any_type() -> None:
    made = answering(
        'rewrite name b.test a.test\ntemplate ANY ANY a.test {\n answer "{{ .Name }} 60 IN HTTPS 1 . alpn=h2"\n}\n'
    )
    assert shown(answered(made, "b.test.", "HTTPS")) == ['b.test. 60 https 1 . alpn="h2"']


PIECE = re.compile(r"(?:\s*\{\{-\s|\{\{)\s*(.*?)\s*(?:\s-\}\}\s*|\}\})", re.S)  # the same, in quadratic time


@given(st.text(alphabet="{}- \tab.", max_size=40))
@example("a {{- .Name -}} b {{.Zone}}c {{-}} {{- -}} {{ - }} }}{{")
def test_expressions_are_found_with_their_spaces(line: str) -> None:
    made = "".join(text + ("" if inner is None else f"<{inner}>") for text, inner in templates.pieces(line))
    wanted = PIECE.sub(lambda found: f"<{found[1]}>", line)
    assert made == wanted


@pytest.mark.parametrize("line", ["a" + " " * 300_000 + "b", "{{ " * 100_000, "{{.Name}} " + "\t" * 300_000 + "{{- x"])
def test_long_blanks_take_linear_time(line: str) -> None:
    """In quadratic time, this takes minutes."""
    assert sum(len(text) + len(inner or "") for text, inner in templates.pieces(line)) > 0
