"""The runtime's side of CNI, as in libcni: read the conflist and call the plugin binaries with CNI_* variables and the
configuration on stdin.

ADD calls the plugins in order, each with the result of the previous plugin. DEL calls the plugins in reverse order,
with the final result of ADD. This result is stored on disk, so that a restarted node agent can call DEL for the ADD of
an earlier agent (CNI spec 1.1.0, section 3).
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT = 30.0


class CniFailed(Exception):
    """A plugin returned an error. code: the CNI error code, 0 if the plugin returned no code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Attachment:
    """One attachment of a pod to the network: the values that identify it to the plugins in ADD and DEL.

    capabilities: capability name (CNI conventions), such as "portMappings", -> the capability arguments of the pod.
    """

    container_id: str
    netns: str
    pod_namespace: str
    pod_name: str
    pod_uid: str
    interface: str = "eth0"
    capabilities: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def environment(self, verb: str, path: Path) -> dict[str, str]:
        args = (
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", self.pod_namespace),
            ("K8S_POD_NAME", self.pod_name),
            ("K8S_POD_INFRA_CONTAINER_ID", self.container_id),
            ("K8S_POD_UID", self.pod_uid),
        )
        return {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": self.container_id,
            "CNI_NETNS": self.netns,
            "CNI_IFNAME": self.interface,
            "CNI_PATH": str(path),
            "CNI_ARGS": ";".join(f"{k}={v}" for k, v in args),
        }


def _message(answer: str, plugin: str, code: int | None) -> CniFailed:
    try:
        error = json.loads(answer)
        text = error.get("msg", "") + (f": {error['details']}" if error.get("details") else "")
        return CniFailed(int(error.get("code", 0)), f"{plugin}: {text}")
    except (ValueError, AttributeError, TypeError):
        return CniFailed(0, f"{plugin}: exit status {code}: {answer.strip()[:300] or 'no output'}")


def _object(text: str | bytes, where: str) -> dict[str, Any]:
    """Return the decoded JSON object. Raises CniFailed with code 6 (failure to decode content: CNI spec 1.1.0,
    section 5).
    """
    try:
        found = json.loads(text)
    except ValueError as err:
        raise CniFailed(6, f"{where}: not JSON: {err}") from err
    if not isinstance(found, dict):
        raise CniFailed(6, f"{where}: expected a JSON object")
    return found


class CniRuntime:
    """conf_dir: the directory of the conflist, such as /etc/cni/net.d. bin_dir: the directory of the plugin binaries.
    cache: the directory for the results of ADD.
    """

    def __init__(self, conf_dir: Path, bin_dir: Path, cache: Path) -> None:
        self.conf_dir, self.bin_dir, self.cache = conf_dir, bin_dir, cache

    def conflist(self) -> dict[str, Any] | None:
        """Return the configuration, None if there is no valid one. The node is not ready without a configuration."""
        try:
            return self._read()
        except CniFailed:
            return None  # ADD reports the error

    def _read(self) -> dict[str, Any] | None:
        """Return the lexically first *.conflist, None if there is none. Raises CniFailed if this file is invalid."""
        found = sorted(self.conf_dir.glob("*.conflist"))
        if not found:
            return None
        loaded = _object(found[0].read_text(), str(found[0]))
        for field, kind in (("name", str), ("cniVersion", str), ("plugins", list)):
            if not isinstance(loaded.get(field), kind):
                raise CniFailed(7, f"{found[0]}: {field} is missing or of the wrong type")
        if not all(isinstance(p, dict) and isinstance(p.get("type"), str) for p in loaded["plugins"]):
            raise CniFailed(7, f"{found[0]}: every item of plugins needs a type")
        return loaded

    async def _invoke(
        self,
        verb: str,
        plugin: dict[str, Any],
        conflist: dict[str, Any],
        attachment: Attachment,
        previous: dict[str, Any] | None,
    ) -> dict[str, Any] | None:
        conf = {**plugin, "name": conflist["name"], "cniVersion": conflist["cniVersion"]}
        declared = conf.pop("capabilities", None) or {}
        asked = {name: value for name, value in attachment.capabilities.items() if declared.get(name)}
        if asked:
            conf["runtimeConfig"] = asked
        if previous is not None:
            conf["prevResult"] = previous
        binary = self.bin_dir / plugin["type"]
        if not os.access(binary, os.X_OK):
            raise CniFailed(5, f"{binary}: no such plugin; install it or correct `type` in the conflist")
        process = await asyncio.create_subprocess_exec(
            str(binary),
            env={**os.environ, **attachment.environment(verb, self.bin_dir)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(TIMEOUT):
                out, err = await process.communicate(json.dumps(conf).encode())
        except TimeoutError:
            process.kill()
            raise CniFailed(11, f"{plugin['type']}: no answer in {TIMEOUT:.0f} s") from None
        if process.returncode:
            raise _message((out or err).decode(errors="replace"), plugin["type"], process.returncode)
        return _object(out, plugin["type"]) if out.strip() else None

    def _cache_file(self, attachment: Attachment) -> Path:
        return self.cache / f"{attachment.container_id}-{attachment.interface}.json"

    async def add(self, attachment: Attachment) -> dict[str, Any]:
        """Call ADD and return the final result. If a plugin fails, call DEL for all plugins and raise CniFailed."""
        conflist = self._read()
        if conflist is None:
            raise CniFailed(
                11, f"{self.conf_dir}: no CNI configuration yet; the wiring role writes it when it has a podCIDR"
            )
        for name in attachment.capabilities:
            if not any((plugin.get("capabilities") or {}).get(name) for plugin in conflist["plugins"]):
                raise CniFailed(
                    7, f"the pod requests {name}: no plugin of network {conflist['name']} has that capability"
                )
        result: dict[str, Any] | None = None
        try:
            for plugin in conflist["plugins"]:
                result = await self._invoke("ADD", plugin, conflist, attachment, result)
        except CniFailed:
            await self._undo(conflist, attachment, result)
            raise
        self.cache.mkdir(parents=True, exist_ok=True)
        self._cache_file(attachment).write_text(
            json.dumps({"conflist": conflist, "result": result, "capabilities": dict(attachment.capabilities)})
        )
        return result or {}

    async def _undo(self, conflist: dict[str, Any], attachment: Attachment, result: dict[str, Any] | None) -> None:
        for plugin in reversed(conflist["plugins"]):
            try:
                await self._invoke("DEL", plugin, conflist, attachment, result)
            except CniFailed:
                pass  # the user must see the error of ADD, not that of DEL

    async def delete(self, attachment: Attachment) -> None:
        """Call DEL. DEL is idempotent. Raises CniFailed if a plugin fails; the caller tries again."""
        file = self._cache_file(attachment)
        try:
            kept = json.loads(file.read_text())
        except (OSError, ValueError):
            conflist = self._read()
            if conflist is None:
                return
            kept = {"conflist": conflist, "result": None}
        attachment = dataclasses.replace(attachment, capabilities=kept.get("capabilities") or attachment.capabilities)
        for plugin in reversed(kept["conflist"]["plugins"]):
            await self._invoke("DEL", plugin, kept["conflist"], attachment, kept["result"])
        file.unlink(missing_ok=True)


def addresses(result: dict[str, Any]) -> list[str]:
    """Return the pod's addresses in a CNI result, without prefix lengths."""
    return [ip["address"].split("/")[0] for ip in result.get("ips") or []]
