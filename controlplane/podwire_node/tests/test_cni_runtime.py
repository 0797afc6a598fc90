"""The runtime's side of CNI, with shell scripts as plugins that record their calls."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from podwire_base.testing.builders import run
from podwire_node.cni_runtime import Attachment, CniFailed, CniRuntime, addresses

POD = Attachment("cid", "/proc/1/ns/net", "default", "p1", "uid-1")
RESULT = {"cniVersion": "1.1.0", "ips": [{"address": "10.244.0.2/32"}, {"address": "fd00::2/128"}]}


class Setup:
    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, root / "calls"
        for folder in ("conf", "bin"):
            (root / folder).mkdir()
        self.runtime = CniRuntime(root / "conf", root / "bin", root / "cache")

    def plugin(self, own: str, body: str) -> None:
        """Write a plugin script. `body` has the configuration in $conf."""
        path = self.root / "bin" / own
        note = f'printf "%s|%s|%s|%s|%s\\n" {own} "$CNI_COMMAND" "$CNI_ARGS" "$CNI_NETNS" "$conf" >> {self.calls}'
        path.write_text(f"#!/bin/sh\nconf=$(cat)\n{note}\n{body}\n")
        path.chmod(0o755)

    def conflist(self, *types: str, **more: Any) -> None:
        (self.root / "conf" / "10-x.conflist").write_text(
            json.dumps(
                {"cniVersion": "1.1.0", "name": "net", "plugins": [{"type": t, "extra": 1} for t in types], **more}
            )
        )

    def seen(self) -> list[tuple[str, str, Any]]:
        """Return (plugin, verb, prevResult) for each call."""
        rows = [line.split("|", 4) for line in self.calls.read_text().splitlines()] if self.calls.exists() else []
        args = (
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=p1;K8S_POD_INFRA_CONTAINER_ID=cid;K8S_POD_UID=uid-1"
        )
        assert all(r[2] == args and r[3] == POD.netns and json.loads(r[4])["name"] == "net" for r in rows)
        return [(r[0], r[1], json.loads(r[4]).get("prevResult")) for r in rows]


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    made = Setup(tmp_path)
    made.plugin("one", f"[ $CNI_COMMAND = ADD ] && echo '{json.dumps(RESULT)}'; true")
    made.plugin("two", """[ $CNI_COMMAND = ADD ] && echo '{"cniVersion": "1.1.0", "ips": [], "second": true}'; true""")
    return made


def test_add_in_order_del_in_reverse_with_the_kept_result(setup: Setup) -> None:
    setup.conflist("one", "two")
    last = {"cniVersion": "1.1.0", "ips": [], "second": True}
    assert run(setup.runtime.add(POD)) == last
    assert setup.seen() == [("one", "ADD", None), ("two", "ADD", RESULT)]
    setup.conflist("other")  # DEL uses the configuration that the ADD used
    another = CniRuntime(setup.root / "conf", setup.root / "bin", setup.root / "cache")
    run(another.delete(POD))
    assert setup.seen()[2:] == [("two", "DEL", last), ("one", "DEL", last)]
    assert not list((setup.root / "cache").iterdir())


def test_delete_is_repeatable_and_needs_no_add(setup: Setup) -> None:
    run(setup.runtime.delete(POD))
    setup.conflist("one", "two")
    for _ in range(2):
        run(setup.runtime.delete(POD))
    assert [s[:2] for s in setup.seen()] == [("two", "DEL"), ("one", "DEL")] * 2


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (
            """echo '{"code": 7, "msg": "no address", "details": "range is full"}'; exit 1""",
            7,
            "two: no address: range is full",
        ),
        ("echo broken >&2; exit 3", 0, "two: exit status 3: broken"),
        ("exit 1", 0, "no output"),
        ("echo '[1]'; exit 1", 0, "exit status 1"),
        ("echo '{nonsense'", 6, "two: .*JSON"),
        ("echo '[1]'", 6, "two: .*object"),
    ],
)
def test_a_failing_second_plugin_undoes_the_first(setup: Setup, body: str, code: int, words: str) -> None:
    setup.plugin("two", f"[ $CNI_COMMAND = DEL ] && exit 0\n{body}")
    setup.conflist("one", "two")
    with pytest.raises(CniFailed, match=words) as caught:
        run(setup.runtime.add(POD))
    assert caught.value.code == code
    assert [s[:2] for s in setup.seen()] == [("one", "ADD"), ("two", "ADD"), ("two", "DEL"), ("one", "DEL")]
    assert not (setup.root / "cache").exists()


def test_a_failing_delete_can_be_tried_again(setup: Setup) -> None:
    setup.conflist("one", "two")
    run(setup.runtime.add(POD))
    setup.plugin("two", "exit 1")
    with pytest.raises(CniFailed):
        run(setup.runtime.delete(POD))
    setup.plugin("two", "true")
    run(setup.runtime.delete(POD))
    assert setup.seen()[-1] == ("one", "DEL", {"cniVersion": "1.1.0", "ips": [], "second": True})


def test_missing_plugins_and_configurations_are_named(setup: Setup) -> None:
    with pytest.raises(CniFailed, match="no CNI configuration yet"):
        run(setup.runtime.add(POD))
    setup.conflist("one", "absent")
    with pytest.raises(CniFailed, match=r"absent.*install it"):
        run(setup.runtime.add(POD))
    for text, word in (
        ("{", "JSON"),
        ("[]", "object"),
        ('{"name": "n", "cniVersion": "1.1.0"}', "plugins"),
        ('{"name": "n", "plugins": [{"type": "one"}]}', "cniVersion"),
        ('{"name": "n", "cniVersion": "1.1.0", "plugins": [{}]}', "type"),
    ):
        (setup.root / "conf" / "10-x.conflist").write_text(text)
        with pytest.raises(CniFailed, match=f"10-x.conflist.*{word}"):
            run(setup.runtime.add(POD))
        assert setup.runtime.conflist() is None, "the node is not ready, but keeps running"


def test_the_first_conflist_counts_and_addresses_are_bare(setup: Setup) -> None:
    setup.conflist("one")
    (setup.root / "conf" / "99-later.conflist").write_text("{")
    assert addresses(run(setup.runtime.add(POD))) == ["10.244.0.2", "fd00::2"] and addresses({}) == []


def test_capabilities_go_to_the_plugins_that_declare_them(setup: Setup) -> None:
    ports = [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp", "hostIP": ""}]
    pod = dataclasses.replace(POD, capabilities={"portMappings": ports})
    setup.conflist("one", "two")
    with pytest.raises(CniFailed, match="portMappings: no plugin of network net"):
        run(setup.runtime.add(pod))
    file = setup.root / "conf" / "10-x.conflist"
    conf = json.loads(file.read_text())
    conf["plugins"][1]["capabilities"] = {"portMappings": True, "bandwidth": True}
    file.write_text(json.dumps(conf))
    run(setup.runtime.add(pod))
    run(setup.runtime.delete(POD))  # a restarted node agent remembers the request
    stdin = [json.loads(line.split("|", 4)[4]) for line in setup.calls.read_text().splitlines()]
    assert [c.get("runtimeConfig") for c in stdin] == [None, {"portMappings": ports}, {"portMappings": ports}, None]
    assert not [c for c in stdin if "capabilities" in c]
