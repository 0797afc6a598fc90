"""A Corefile's imports, snippets, environment and braces: what is put together, and which line an error names."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest

from podwire_dns import corefile
from podwire_dns.config import BadConfig, DnsConfig
from podwire_dns.corefile_parse import Place, parse
from podwire_dns.sources import Sources
from podwire_dns.testing import builders


def place(**files: str) -> Place:
    """/etc/coredns with these files; "custom__a_server" is custom/a.server."""
    held = {f"/etc/coredns/{name.replace('__', '/').replace('_', '.')}": text for name, text in files.items()}

    def read(path: str) -> str:
        if path not in held:
            raise FileNotFoundError(2, "No such file or directory")
        return held[path]

    def fitting(pattern: str) -> list[str]:
        return sorted(path for path in held if fnmatch(path, pattern) and path.count("/") == pattern.count("/"))

    return Place("/etc/coredns/Corefile", read, fitting, {"UP": "192.0.2.9", "ZONE": "corp.test", "BRACE": "}"})


def read(text: str, **files: str) -> tuple[DnsConfig, list[str]]:
    return corefile.apply(text, builders.CONFIG, place(**files))


MAIN = ".:53 {\n kubernetes cluster.local\n forward . 192.0.2.1\n}\n"


@pytest.mark.parametrize("line", ["import custom/*.server", "import /etc/coredns/custom/*.server", "import none?/x"])
@pytest.mark.parametrize("where", ["before", "behind", "inside", "plugin"])
def test_a_pattern_that_fits_nothing_is_nothing(line: str, where: str) -> None:
    text = {
        "before": f"{line}\n{MAIN}",
        "behind": f"{MAIN}{line}\n",
        "inside": MAIN.replace(" forward", f" {line}\n forward"),
        "plugin": MAIN.replace("192.0.2.1", f"192.0.2.1 {{\n {line}\n }}"),
    }[where]
    assert read(text) == read(MAIN)


def test_files_stand_where_they_are_imported() -> None:
    config, notes = read(
        "import custom/*.server\n. {\n import custom/*.override\n forward . /etc/resolv.conf {\n  import opts\n }\n}\n",
        custom__b_server="b.test {\n forward . 192.0.2.2\n import ../common\n}\n",
        custom__a_server="a.test {\n forward . 192.0.2.1\n}\n",
        custom__x_override="log\ncache 9",
        common="cache 7\n",
        opts="policy sequential\n",
    )
    assert notes == []
    assert [each.domain for each in config.forwards] == ["a.test", "b.test", "."]
    assert [each.cache_positive for each in config.forwards] == [0, 7, 9]
    assert config.forwards[2].policy == "sequential"
    assert config.log_queries


def test_snippets_with_arguments_in_files_and_in_one_another() -> None:
    config, notes = read(
        "(base) {\n cache {args[0]}\n import opts\n}\nimport snippets\n"
        "a.test {\n import base 11\n import to 192.0.2.1 192.0.2.2\n}\n"
        "b.test {\n import base 22\n import to {$UP} x\n}\n",
        snippets="(to) {\n forward . {args.0} {\n  policy sequential\n }\n}\n",
        opts="errors\n",
    )
    assert notes == []
    assert [(each.domain, each.upstreams, each.cache_positive) for each in config.forwards] == [
        ("a.test", ("192.0.2.1",), 11),
        ("b.test", ("192.0.2.9",), 22),
    ]


@pytest.mark.parametrize("variable", ["{$UP}", "{%UP%}"])
def test_the_environment(variable: str) -> None:
    config, notes = read(
        f"{{$ZONE}}:53 {{\n forward . tls://{variable}:5353 {{\n  tls_servername a{{$NONE}}b\n }}\n}}\n"
    )
    (made,) = config.forwards
    assert (made.domain, made.upstreams, made.tls.servername) == ("corp.test", ("tls://192.0.2.9#5353",), "ab")
    assert notes == ["Corefile line 3: the environment has no NONE; {$NONE} counts as empty"]
    assert read("import {$ZONE}/x*\n" + MAIN) == read(MAIN)
    with pytest.raises(BadConfig, match=r"line 1: .* not closed"):
        read("a.test {\n errors\n{$BRACE}\n")


def test_comments_quotes_and_braces_are_as_in_coredns() -> None:
    blocks, notes = parse(
        '\ufeffa.test,\r\n b.test # here\n{\n template IN TXT { # c\n  answer "{{ .Name }} 1 IN TXT \\"a # b\n c\\""\n'
        '  match "}"\n }\n forward . 192.0.2.1#5353\n}\nc.test {\n}\n'
    )
    assert notes == []
    first, second = blocks
    assert (first.words, second.words) == (["a.test", "b.test"], ["c.test"])
    answer, match = first.block[0].block
    assert answer.words == ["answer", '{{ .Name }} 1 IN TXT "a # b\n c"']
    assert (match.words, match.line) == (["match", "}"], 7), "the quote took two lines"
    assert first.block[1].words == ["forward", ".", "192.0.2.1"], "a # ends its line wherever it stands"


def test_a_single_block_may_do_without_braces() -> None:
    config, notes = read("a.test b.test\nforward . 192.0.2.1 {\n policy sequential\n}\ncache 5\n")
    assert notes == []
    assert [(each.domain, each.cache_positive) for each in config.forwards] == [("a.test", 5), ("b.test", 5)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import none\n" + MAIN, "Corefile line 1: /etc/coredns/none cannot be imported: No such file"),
        (". {\n import custom/none.override\n}\n", "line 2: /etc/coredns/custom/none.override cannot be imported"),
        (". {\n forward . 192.0.2.1 {\n  import none\n }\n}\n", "line 3: /etc/coredns/none cannot"),
        ("import\n", "line 1: import needs a snippet"),
        ('import ""\n', "line 1: import needs a snippet"),
        ("import a {\n}\n", "line 1: import needs a snippet"),
        ("import */*\n", "line 1: '*/*' is not a pattern for import"),
        ("import a[bc]\n", "line 1: 'a[bc]' is not a pattern for import"),
        ("import /etc/coredns/Corefile\n", "line 1: import of /etc/coredns/Corefile comes back to itself"),
        ("import ring\n", "/etc/coredns/ring line 2: import of /etc/coredns/ring comes back to itself"),
        ("import there\n", "/etc/coredns/back line 1: import of /etc/coredns/there comes back"),
        ("(a) {\n import b\n}\n(b) {\n import a\n}\n. {\n import a\n}\n", "line 5: import of (a) comes back to itself"),
        ("(a) {\n}\n(a) {\n}\n", "line 3: the snippet 'a' is declared twice"),
        ("(a) {\n errors\n", "line 1: the { is not closed"),
        ("(a)\nerrors\n", "line 1: a snippet needs a {"),
        (". {\n import late\n}\n(late) {\n}\n", "line 2: /etc/coredns/late cannot"),
        ("(a) {\n cache {args[1]}\n}\n. {\n import a 5\n}\n", "line 5: (a) wants {args[1]}, and the import gives 1"),
        ("import bad\n", "/etc/coredns/bad line 2: 'soon' is not a duration"),
        ("import open\n", "/etc/coredns/open line 1: the { is not closed"),
        ("import deep0\n", "more than 32 deep"),
        ('. {\n template "x\n}\n', "line 2: the quote is not closed"),
        ("a.test,\n", "line 1: a zone must follow the comma"),
        ("a.test, {\n}\n", "line 1: a { without a zone"),
        ("{\n}\n", "line 1: a { without a zone"),
        ("a.test {\n}\nb.test\nerrors\n", "line 3: a { must follow the zones"),
        (". {\n health\n {\n }\n}\n", "line 3: a brace must end its line"),
        (". {\n errors\n} b.test {\n}\n", "line 3: a brace must end its line"),
        (". {\n reload 1" + "0" * 100000 + "s\n}\n", "is not a duration"),
    ],
)
def test_errors_name_file_and_line(text: str, said: str) -> None:
    with pytest.raises(BadConfig) as caught:
        read(
            text,
            ring="\nimport ring\n",
            there="import back\n",
            back="import there\n",
            bad=". {\nreload soon\n}\n",
            open=". {\n",
            **{f"deep{index}": f"import deep{index + 1}\n" for index in range(50)},
        )
    assert said in str(caught.value)


def test_imports_that_multiply_end() -> None:
    doubled = "".join(f"(s{n}) {{\n import s{n - 1}\n import s{n - 1}\n}}\n" for n in range(1, 30))
    with pytest.raises(BadConfig, match="more than 1000 imports"):
        read("(s0) {\n errors\n}\n" + doubled + ". {\n import s29\n}\n")


def test_imported_files_are_followed_also_new_ones(tmp_path: Path) -> None:
    (tmp_path / "custom").mkdir()
    (tmp_path / "custom" / "..data").mkdir()
    main, first = tmp_path / "Corefile", tmp_path / "custom" / "a.server"
    main.write_text(f"import custom/*\n{MAIN}")
    first.write_text("a.test {\n forward . 192.0.2.7\n}\n")
    sources = Sources(replace(builders.CONFIG, run_dir=tmp_path, corefile=str(main)))
    assert [each.domain for each in sources.load().forwards] == ["a.test", "."]
    digest = sources.digest
    assert not sources.changed(corefile=True)
    first.write_text("a.test {\n forward . 192.0.2.77\n}\n")
    assert sources.changed(corefile=True)
    assert not sources.changed(corefile=False)
    sources.load()
    assert sources.digest != digest
    second = tmp_path / "custom" / "b.server"
    second.write_text("b.test {\n forward nowhere\n}\n")
    assert sources.changed(corefile=True), "a new file fits"
    with pytest.raises(BadConfig, match=r"custom/b\.server line 2: forward needs"):
        sources.load()
    assert not sources.changed(corefile=True), "it was said"
    second.unlink()
    assert sources.changed(corefile=True)
    assert [each.domain for each in sources.load().forwards] == ["a.test", "."]
