"""Settings from files: accepted ones, skipped ones with their notes, and refused ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_dns import corefile
from podwire_dns.config import BadConfig, DnsConfig
from podwire_dns.forward import Tls
from podwire_dns.sources import Sources
from podwire_dns.testing import builders


def config(tmp_path: Path, **more: object) -> DnsConfig:
    # each test names its fields
    return dataclasses.replace(builders.CONFIG, run_dir=tmp_path, **more)  # type: ignore[arg-type]


def test_nameservers_of_a_file_but_never_ourselves(tmp_path: Path) -> None:
    resolv = tmp_path / "resolv.conf"
    resolv.write_text(
        "nameserver 10.96.0.10\nnameserver 127.0.0.1\nnameserver nonsense\nnameserver 192.0.2.53\n"
        "nameserver 192.0.2.53\n"
    )
    sources = Sources(config(tmp_path, upstreams=(str(resolv),)))
    assert sources.load().routes()[b"\0"].addresses == ("127.0.0.1#53", "192.0.2.53#53")
    assert len(sources.notes) == 2
    everywhere = Sources(config(tmp_path, upstreams=(str(resolv),), listen=("0.0.0.0",), dns_addresses=("10.96.0.10",)))
    assert everywhere.load().routes()[b"\0"].addresses == ("192.0.2.53#53",), "127.0.0.1 is this server's address too"


def test_files_that_are_not_there(tmp_path: Path) -> None:
    sources = Sources(config(tmp_path, upstreams=(f"{tmp_path}/none",)))
    assert sources.load().routes()[b"\0"].addresses == ()
    assert "such names are refused" in sources.notes[-1]
    with pytest.raises(BadConfig, match=r"Corefile: No such file"):
        Sources(config(tmp_path, corefile=f"{tmp_path}/Corefile")).load()
    with pytest.raises(BadConfig, match=r"tls: .*must be PEM files"):
        Sources(config(tmp_path, upstreams=("tls://192.0.2.1",), tls=Tls(ca=f"{tmp_path}/none"))).load()
    (tmp_path / "ca").write_text("no certificate")
    with pytest.raises(BadConfig, match=r"tls: .*must be PEM files"):
        Sources(config(tmp_path, upstreams=("tls://192.0.2.1",), tls=Tls(ca=f"{tmp_path}/ca"))).load()


def test_a_change_is_seen_also_after_settings_that_cannot_work(tmp_path: Path) -> None:
    path, resolv = tmp_path / "Corefile", tmp_path / "resolv.conf"
    path.write_text(f". {{\n forward . {resolv}\n}}\n")
    resolv.write_text("nameserver 192.0.2.1\n")
    sources = Sources(config(tmp_path, corefile=str(path)))
    sources.load()
    assert not sources.changed(corefile=True)
    assert not sources.changed(corefile=False)
    path.write_text(". {\n")
    assert sources.changed(corefile=True)
    with pytest.raises(BadConfig):
        sources.load()
    assert not sources.changed(corefile=True), "it was logged; it is read again when it changes"
    resolv.write_text("nameserver 192.0.2.222\n")
    assert sources.changed(corefile=False), "the other files are still followed"
    resolv.unlink()
    assert sources.changed(corefile=False)


WORDS = st.sampled_from(
    [
        ".",
        ".:53",
        "{",
        "}",
        "\n",
        " ",
        "kubernetes",
        "cluster.local",
        "forward",
        "tls://192.0.2.1",
        "cache",
        "success",
        "denial",
        "30",
        "-1",
        "5s",
        "rewrite",
        "name",
        "regex",
        "(",
        "exact",
        "answer",
        "value",
        "template",
        "IN",
        "ANY",
        "match",
        "rcode",
        "hosts",
        "ttl",
        "fallthrough",
        "log",
        "class",
        "#",
        '"',
        "\\",
        "(a)",
        "import",
        "a",
        "tls",
        "expire",
        "bind",
        "health",
        "reload",
        "{{ .Name }}",
        "\0",
        "é",
        "192.0.2.1:x",
        "192.0.2.1",
        "fe80::1%eth0",
        "2001:db8::/32",
        "10.0.0.0/7",
        "a.test:53",
        "a.test,",
        "except",
        "errors",
        "acl",
        "{$NONE}",
        "{args[0]}",
        "import a",
        "\n}\n. {\n",
        "forward .",
    ]
)


@given(st.lists(WORDS, max_size=60))
def test_whatever_a_corefile_says_is_read_or_refused(words: list[str]) -> None:
    for text in (" ".join(words), ". {\n" + " ".join(words) + "\n}\n"):
        try:
            found, notes = corefile.apply(text, builders.CONFIG)
            found.routes()
        except BadConfig as err:
            assert str(err)
        else:
            assert all(note.startswith("Corefile line ") for note in notes)
