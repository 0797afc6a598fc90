"""Calls plugins as libcni does (CNI spec 1.1.0, section 3), with conflists, capabilities, and a cache of results
between ADD and DEL.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .netns import NetNS

SINCE = {"CHECK": (0, 4, 0), "GC": (1, 1, 0), "STATUS": (1, 1, 0)}


class PluginFailed(Exception):
    """A plugin returned an error object. code: the CNI error code."""

    def __init__(self, program: Path, verb: str, body: Mapping[str, Any]) -> None:
        super().__init__(f"{program.name} {verb}: {body.get('msg')}")
        self.code = int(body.get("code", 0))


@dataclass
class Network:
    """One conflist on one node. plugins: (program, configuration) in order. asked: capability -> the runtime's
    arguments. cache: the last result of each attachment, for DEL, CHECK and GC, as in libcni.
    """

    ns: NetNS
    name: str
    version: str
    plugins: Sequence[tuple[Path, Mapping[str, Any]]]
    env: Mapping[str, str] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)
    cache: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def has(self, verb: str) -> bool:
        """Whether this version of the specification has the verb. libcni calls plugins only with verbs of their
        version.
        """
        return tuple(map(int, self.version.split("."))) >= SINCE.get(verb, (0,))

    def _call(
        self, verb: str, program: Path, conf: Mapping[str, Any], env: Mapping[str, str], more: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        asked = {key: value for key, value in self.asked.items() if conf.get("capabilities", {}).get(key)}
        body = {k: v for k, v in conf.items() if k != "capabilities"} | {
            "cniVersion": self.version,
            "name": self.name,
            **({"runtimeConfig": asked} if asked else {}),
            **more,
        }
        done: subprocess.CompletedProcess[str] = self.ns.run(
            [str(program)],
            check=False,
            input=json.dumps(body),
            env={"CNI_COMMAND": verb, "CNI_PATH": str(program.parent), **self.env, **env},
        )
        if done.returncode:
            raise PluginFailed(program, verb, json.loads(done.stdout))
        return json.loads(done.stdout) if done.stdout.strip() else None

    def _variables(self, container: str, netns: NetNS | None, ifname: str) -> dict[str, str]:
        return {
            "CNI_CONTAINERID": container,
            "CNI_IFNAME": ifname,
            "CNI_NETNS": netns.path if netns else "",
            "CNI_ARGS": "IgnoreUnknown=1",
        }

    def add(self, container: str, netns: NetNS, ifname: str = "eth0") -> dict[str, Any]:
        """Call ADD and return the result of the last plugin. After PluginFailed the caller must call `delete`."""
        result: dict[str, Any] | None = None
        for program, conf in self.plugins:
            more = {"prevResult": result} if result is not None else {}
            result = self._call("ADD", program, conf, self._variables(container, netns, ifname), more)
        assert result is not None, "the last plugin printed no result"
        self.cache[container, ifname] = result
        return result

    def _with_result(self, verb: str, container: str, netns: NetNS | None, ifname: str) -> None:
        last = self.cache.get((container, ifname))
        more = {"prevResult": last} if last and self.has("CHECK") else {}
        for program, conf in self.plugins if verb != "DEL" else reversed(self.plugins):
            self._call(verb, program, conf, self._variables(container, netns, ifname), more)

    def check(self, container: str, netns: NetNS, ifname: str = "eth0") -> None:
        self._with_result("CHECK", container, netns, ifname)

    def delete(self, container: str, netns: NetNS | None = None, ifname: str = "eth0") -> None:
        self._with_result("DEL", container, netns, ifname)
        self.cache.pop((container, ifname), None)

    def collect(self, valid: Sequence[tuple[str, str]]) -> None:
        """Call GC: delete the attachments that are not valid, then pass the valid attachments to the plugins."""
        for container, ifname in set(self.cache) - set(valid):
            self.delete(container, None, ifname)
        entries = [{"containerID": container, "ifname": ifname} for container, ifname in valid]
        for program, conf in self.plugins:
            self._call("GC", program, conf, {}, {"cni.dev/valid-attachments": entries, "cni.dev/attachments": entries})

    def status(self) -> None:
        for program, conf in self.plugins:
            self._call("STATUS", program, conf, {}, {})

    def versions(self) -> list[set[str]]:
        """Return the set of versions that each plugin supports."""
        answers = [self._call("VERSION", program, {}, {}, {}) for program, _ in self.plugins]
        return [set(answer["supportedVersions"]) if answer else set() for answer in answers]
