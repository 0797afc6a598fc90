"""The demo: it starts a cluster, applies `examples/`, and proves every behaviour with real traffic, once with
bridge-nf-call-iptables 0 and once with 1.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from podwire_base.kernel.netns import call_in
from podwire_base.patience import patient

from ..check.table import TABLE, Check
from ..cluster import network
from ..cluster.config import ClusterConfig
from ..cluster.lifecycle import down, up
from .lab import DemoLab, NotYet, examples_dir
from .probing import Probing
from .rows import Row

TITLES = {
    "1": "pods reach each other without NAT",
    "2": "the pause process holds a pod's network",
    "3": "ClusterIP",
    "4": "a Service without selector",
    "5": "NodePort from outside",
    "6": "names",
    "7": "the API",
    "8": "restarts",
    "9": "what `podwire check` sees, too",
}


def find_tool() -> tuple[list[str], str]:
    """Return (argv prefix, name) of the tool for objects: kubectl if version 1.31 or newer is on PATH, else podwire."""
    own = [sys.executable, "-m", "podwire.main"]
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        return own, "podwire"
    done = subprocess.run(
        [kubectl, "version", "--client", "-o", "json"], capture_output=True, text=True, timeout=patient(20), check=False
    )
    try:
        text = json.loads(done.stdout)["clientVersion"]["gitVersion"]
        major, minor = (int(n) for n in re.findall(r"\d+", text)[:2])
    except (ValueError, KeyError):
        return own, "podwire"
    return ([kubectl], f"kubectl {major}.{minor}") if (major, minor) >= (1, 31) else (own, "podwire")


@dataclass
class Result:
    """The results of one row. verdicts: setting of bridge-nf-call-iptables -> row. place: (number of the check, number
    of the row in this check).
    """

    place: tuple[int, int]
    verdicts: dict[int, Row] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return all(r.ok for r in self.verdicts.values())


class Demo:
    def __init__(self, config: ClusterConfig, console: Console, passes: tuple[int, ...]) -> None:
        self.config, self.console, self.passes = config, console, passes
        self.results: list[Result] = []
        tool, name = find_tool()
        self.lab = DemoLab(config, tool, name)
        self.probing = Probing(config)

    def say(self, text: str) -> None:
        self.console.print(text, style="dim", soft_wrap=True)

    def _set_bridge_nf(self, value: int) -> bool:
        """Set bridge-nf-call-iptables on all nodes. Return False, without a change, if the kernel has no
        br_netfilter.
        """
        path = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
        found = call_in(self.lab.node_netns("node1"), path.exists)
        for node in self.config.node_names() if found else ():
            network.sysctl(self.config.netns(node), {"net.bridge.bridge-nf-call-iptables": str(value)})
        return found

    def _one(self, check: Check, setting: int, number: int) -> None:
        begin, title = time.monotonic(), check.says
        rows: list[Row] = []
        try:
            for row in check.lab(self.lab) if check.lab else self.probing.rows(check):
                rows.append(row)
        except Exception as err:
            detail = str(err) if isinstance(err, NotYet) else traceback.format_exc(limit=-3)
            rows.append(Row(rows[-1].part if rows else "-", title, "", "it broke off", False, detail))
        for place, row in enumerate(rows):
            found = next((r for r in self.results if r.place == (number, place)), None)
            if found is None:
                found = Result((number, place))
                self.results.append(found)
            found.verdicts[setting] = row
        bad = [r for r in rows if not r.ok]
        left_out = "" if rows else self.probing.left_out.get(check.name, "")
        mark = "[red]✗[/red]" if bad else "[yellow]-[/yellow]" if left_out else "[green]✓[/green]"
        note = f"left out: {left_out}" if left_out else f"{time.monotonic() - begin:.1f} s"
        self.console.print(f"  {mark} {title} [dim]{note}[/dim]", soft_wrap=True)
        for row in bad:
            self.console.print(
                f"      {row.sent} from {row.source}: {row.back} {row.detail}",
                style="red",
                markup=False,
                soft_wrap=True,
            )

    def run(self) -> bool:
        """Run the demo and return whether every row passed. The cluster is removed in every case."""
        begin = time.monotonic()
        self.say(f"starting {self.config.nodes} nodes ...")
        try:
            process = up(self.config, lambda text: self.say(f"  {text}"), until_eof=True).process
            self.say(f"ready after {time.monotonic() - begin:.1f} s; applying examples/ with {self.lab.tool_name}")
            self.lab.make_outside()
            self.lab.run_tool("apply", "-f", str(examples_dir()))
            for setting in self.passes:
                if not self._set_bridge_nf(setting) and setting:
                    self.say("this kernel has no br_netfilter: bridge-nf-call-iptables=1 cannot be tested here")
                    continue
                self.console.print(f"[bold]bridge-nf-call-iptables={setting}[/bold]")
                for number, check in enumerate(TABLE):
                    self._one(check, setting, number)
        finally:
            self.probing.close()
            self.lab.close()
            down(self.config)
        if process.poll() is None:
            process.wait(patient(10))
        self._report(time.monotonic() - begin)
        return bool(self.results) and all(r.ok for r in self.results)

    def _report(self, seconds: float) -> None:
        self.results.sort(key=lambda r: r.place)
        grid = Table(title="What was proven", title_justify="left", header_style="bold", show_lines=False)
        for column in ("", "sent", "from", "came back", *(f"nf={s}" for s in self.passes)):
            grid.add_column(column, overflow="fold")
        part = ""
        for result in self.results:
            row = next(iter(result.verdicts.values()))
            if row.part != part:
                part = row.part
                grid.add_section()
                grid.add_row(part, f"[bold]{TITLES.get(part, '')}[/bold]")
            marks = [
                ("[green]ok[/green]" if result.verdicts[s].ok else "[red]FAILED[/red]") if s in result.verdicts else "-"
                for s in self.passes
            ]
            grid.add_row("", *(text.replace("[", r"\[") for text in (row.sent, row.source, row.back)), *marks)
        self.console.print(grid)
        held = sum(r.ok for r in self.results)
        self.console.print(
            f"{held} of {len(self.results)} rows held, in {seconds:.0f} s; everything is taken down again"
            + (
                ""
                if self.lab.tool_name != "podwire"
                else "; no kubectl 1.31 or newer on PATH, so podwire apply/get/delete did its part"
            )
        )
