"""What `podwire explain` says is what happens: random flows, and the common faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner

from lab import explained as x
from lab.dataplane import Ours
from lab.netns import Lab
from lab.patience import wait_until
from lab.serviceworld import SILENCE, World, ask
from podwire.explain.answer import Answer as Explained
from podwire.explain.lookup import Question
from podwire.explain.names import parse, source, target
from podwire.explain.onnode import Misshapen, Place, answer
from podwire.explain.sending import prove
from podwire.main import cli
from podwire_proxy.testing import scenarios as s

FLOWS = 500 if os.environ.get("PODWIRE_LONG") else 50
EACH = 5  # packets for each random cluster


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        made = World(lab)
        yield made
        made.close()


@pytest.fixture
def clean(world: World) -> Iterator[World]:
    yield world
    world.node.run(["nft", "flush", "ruleset"])


def test_random_flows_meet_the_fate_that_was_explained(clean: World, tmp_path: Path) -> None:
    world, run_dir = clean, x.announcing(tmp_path)
    seed = Random().randrange(1 << 30) if os.environ.get("PODWIRE_LONG") else 14
    random, wrong, judged, undecided = Random(seed), list[str](), Counter[str](), 0
    while min(judged["IPv4"], judged["IPv6"]) < FLOWS // 4 or judged.total() < FLOWS:
        drawn = x.draw(random)
        Ours("nftables").program(world, drawn.program)
        x.install(world, drawn)
        try:
            for _ in range(EACH):
                src, dst, number, protocol = x.packet(random, drawn.family)
                said = x.explained(world, run_dir, drawn.objects, src, dst, number, protocol)
                if x.undecided(said):
                    undecided += 1
                    continue
                judged[drawn.family] += 1
                world.forget()
                got = ask(world.client(src), dst, number, protocol, src=src, timeout=SILENCE)
                if problem := x.disagreement(said, got, src):
                    wrong.append(f"seed {seed}: {problem}\n{x.told(drawn, said)}")
        finally:
            x.remove(world.node, drawn)
        assert undecided <= judged.total() // 2 + 2 * EACH, (
            f"seed {seed}: explain decides too little: {undecided} undecided"
        )
    assert not wrong, f"{len(wrong)} of {judged.total()}\n\n" + "\n\n".join(wrong[:5])


def sent(world: World, run_dir: Path, src: str, dst: str, number: int, protocol: str = "TCP") -> Explained:
    """What `--send` adds to an explanation."""
    said = x.explained(world, run_dir, (), src, dst, number, protocol)
    objects = x.cluster(())
    sender = source(src, objects)
    at = f"{dst}/icmp" if protocol == "ICMP" else f"{dst}:{number}/{protocol.lower()}"
    found = target(parse(at), objects, sender)
    prove(Question(sender, found, objects, x.reach(world, run_dir)), said)
    return said


def test_what_is_sent_is_followed_to_where_it_was_last_seen(clean: World, tmp_path: Path) -> None:
    world, run_dir = clean, x.announcing(tmp_path)
    said = sent(world, run_dir, s.POD_A, s.POD_B, s.TARGET)
    assert (said.agrees, said.last_seen) == (True, "the answer, on n1: left by veth0")
    assert "n1: packet passed prerouting, forward, postrouting" in said.seen
    said = sent(world, run_dir, s.POD_A, s.POD_B, 1234)
    assert (said.verdict, said.sent, said.agrees) == ("reject", "refused", True)
    world.node.run(
        ["nft", "-f", "-"],
        input=f"""table inet fw {{
      chain c {{ type filter hook forward priority 0; ip daddr {s.POD_B} tcp dport {s.TARGET} drop; }}
    }}""",
    )
    said = sent(world, run_dir, s.POD_A, s.POD_B, s.TARGET)
    assert (said.verdict, said.agrees) == ("drop", True)
    assert said.last_seen == "the packet, on n1: the rule with handle 2 of table fw, chain c, ended it"
    said = sent(world, run_dir, s.NODE_IP, s.POD_C, s.TARGET, "UDP")
    assert (said.agrees, said.verdict) == (True, "forward")
    said = sent(world, run_dir, s.POD_A, s.POD_C, 0, "ICMP")
    assert (said.agrees, said.verdict, said.last_seen) == (True, "forward", "the answer, on n1: left by veth0")
    assert "podwire-trace" not in world.node.run(["nft", "list", "tables"]).stdout


def test_a_node_sends_and_follows_for_a_reader_elsewhere(clean: World) -> None:
    """What `--send` of another machine runs in the agent's pod: all of it goes as JSON."""
    inside = {ip: ns.path for ip, ns in clean.pods.items()}
    place = Place(clean.node.path, s.NODE, None, inside)
    found = json.loads(json.dumps(answer(place, {"version": 1, "send": [s.POD_A, s.POD_B, s.TARGET, "TCP"]})))["sent"]
    assert (found["verdict"], found["words"].startswith("connected in")) == ("forward", True)
    assert {"postrouting-end", "forward-end"} <= {one[1] for one in found["told"]}
    assert "veth0" in found["links"].values()
    with pytest.raises(Misshapen, match="is not an address of this node"):
        answer(place, {"version": 1, "send": [s.OUTSIDE, s.POD_B, s.TARGET, "TCP"]})


def test_the_kernel_removes_the_trace_of_a_process_that_was_killed(clean: World) -> None:
    code = (
        "import time\nfrom podwire.explain.tracing import Followed, Tracer\n"
        "made = Tracer('n', 'ip', [Followed('', '', 'TCP')])\nprint('up', flush=True)\ntime.sleep(60)"
    )
    process = clean.node.popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert "podwire-trace" in clean.node.run(["nft", "list", "tables"]).stdout
        refused = clean.node.run(["nft", "add", "chain", "ip", "podwire-trace", "x"], check=False)
        assert refused.returncode, "nobody else may change it"
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: "podwire-trace" not in clean.node.run(["nft", "list", "tables"]).stdout, "the table is gone")


def test_nft_list_prints_the_tables_with_their_rules(clean: World) -> None:
    Ours("nftables").program(clean, next(one for one in s.SCENARIOS if one.name == "externalTrafficPolicy Local"))
    done = CliRunner().invoke(cli, ["nft", "list", "--netns", clean.node.path], env={"KUBECONFIG": "/nonexistent"})
    assert done.exit_code == 0, done.output
    assert "# names are missing: " in done.output, "no API server has the names here"
    assert f"{s.VIP} . tcp . {s.PORT} : goto lb2" in done.output
    assert 'reject with tcp reset comment "refused at once [no-endpoints]' in done.output, "as nft(8) prints it"
    found = json.loads(
        CliRunner()
        .invoke(cli, ["nft", "list", "--json", "--netns", clean.node.path], env={"KUBECONFIG": "/nonexistent"})
        .output
    )
    assert {"services", "endpoints"} <= {one["set"] for one in found[0]["elements"]}
    clean.node.run(["nft", "flush", "ruleset"])
    done = CliRunner().invoke(cli, ["nft", "list", "--netns", clean.node.path], env={"KUBECONFIG": "/nonexistent"})
    assert (done.exit_code, "there is no nftables table of podwire here" in done.output) == (1, True)
