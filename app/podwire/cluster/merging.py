"""Puts the context of a cluster into a user's kubeconfig, as `kind` does, and takes it out again.

The file keeps its owner and mode. It is written under the lock that kubectl takes (FILE.lock, made with O_EXCL;
client-go, clientcmd/config.go), by the user whose file it is: under sudo that is the user who called sudo, so that a
link in the user's directory leads root nowhere.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from podwire_base.kube.client.kubeconfigs import LISTS, entry
from podwire_base.role import files

from .config import BASE, ClusterConfig

LOCK_SECONDS = 5.0


class CannotMerge(Exception):
    """The user's kubeconfig stays as it is. The message says why, and what to do."""


# ---- pure


def with_entries(document: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a kubeconfig with the entries of `own` in it, and with its current context. Entries of the same names are
    replaced. Raises CannotMerge if such an entry is of a cluster that is not on this machine.
    """
    found: dict[str, Any] = {"apiVersion": "v1", "kind": "Config", **document}
    for row in own["clusters"]:
        server = str(entry(document, "clusters", row["name"]).get("server") or "")
        if server and not server.startswith("https://127.0.0.1:"):
            raise CannotMerge(f"it has a cluster {row['name']!r} at {server}: rename that one, or use another --name")
    for table in LISTS:
        names = {row["name"] for row in own[table]}
        found[table] = [row for row in document.get(table) or [] if row.get("name") not in names] + list(own[table])
    found["current-context"] = own["current-context"]
    return found


def without(document: Mapping[str, Any], cluster: str, authority: str) -> dict[str, Any] | None:
    """Return a kubeconfig without a cluster and its contexts and users, None if it does not have them. authority: the
    cluster's certificate-authority-data; a cluster of the same name with another one is not the same.
    """
    if entry(document, "clusters", cluster).get("certificate-authority-data") != authority:
        return None
    found = dict(document)
    contexts = document.get("contexts") or []
    ours = [row for row in contexts if (row.get("context") or {}).get("cluster") == cluster]
    others = [row for row in contexts if row not in ours]
    used = {(row.get("context") or {}).get("user") for row in others}
    users = {(row.get("context") or {}).get("user") for row in ours} - used
    found["contexts"] = others
    found["clusters"] = [row for row in document["clusters"] if row.get("name") != cluster]
    found["users"] = [row for row in document.get("users") or [] if row.get("name") not in users]
    if document.get("current-context") in {row.get("name") for row in ours}:
        found["current-context"] = ""
    return found


# ---- files


def caller() -> tuple[int, int, Path]:
    """Return (uid, gid, home) of the calling user: under sudo of the user who called sudo."""
    uid = os.geteuid()
    with contextlib.suppress(KeyError, ValueError):
        if uid == 0 and int(os.environ.get("SUDO_UID", "0")):
            found = pwd.getpwuid(int(os.environ["SUDO_UID"]))
            return found.pw_uid, found.pw_gid, Path(found.pw_dir)
    return uid, os.getegid(), Path.home()


def target(home: Path, variable: str) -> Path:
    """Return the kubeconfig to change: of $KUBECONFIG (its value: variable) the first file that exists, else the last
    one; by default ~/.kube/config. A cluster's own file is no target.
    """
    named = [Path(name).expanduser() for name in variable.split(os.pathsep) if name]
    named = [file for file in named if not file.is_relative_to(BASE)] or [home / ".kube" / "config"]
    return next((file for file in named if file.exists()), named[-1])


@contextlib.contextmanager
def _acting_as(uid: int, gid: int) -> Iterator[None]:
    """Use the file system with the rights of a user. Only root can act as another one."""
    if os.geteuid() or not uid:
        yield
        return
    groups = os.getgroups()
    os.setgroups([gid])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    lock, end = file.with_name(f"{file.name}.lock"), time.monotonic() + LOCK_SECONDS
    while True:
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            break
        except FileExistsError:
            if time.monotonic() > end:
                raise CannotMerge(f"{lock} exists: kubectl changes the file, or was killed: `rm {lock}`") from None
            time.sleep(0.05)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _read(file: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(file.read_text())
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise CannotMerge("it is not a kubeconfig (YAML)") from err
    if document is None:
        return {}
    if not isinstance(document, dict) or any(not isinstance(document.get(t) or [], list) for t in LISTS):
        raise CannotMerge("it is not a kubeconfig")
    return document


def _write(file: Path, document: Mapping[str, Any]) -> None:
    """Replace the file at once, with its owner and mode. A link to it stays."""
    file = Path(os.path.realpath(file))
    text = yaml.safe_dump(dict(document), sort_keys=False)
    try:
        before = file.stat()
        mode, owner = before.st_mode & 0o7777, (before.st_uid, before.st_gid)
    except FileNotFoundError:
        mode, owner = 0o600, (os.geteuid(), os.getegid())
    try:
        try:
            files.write(file, text, mode=mode, owner=owner)
        except PermissionError:  # the file has a group that the user is not in
            files.write(file, text, mode=mode)
    except OSError as err:
        if err.errno != errno.EBUSY:
            raise
        file.write_text(text)  # the file itself is a mount point, as in a container


def merge(config: ClusterConfig, own: Mapping[str, Any], user: tuple[int, int, Path], variable: str) -> Path:
    """Put the entries of the kubeconfig `own` into the user's kubeconfig and return its name. `take_out` knows where
    they are. Raises CannotMerge.
    """
    uid, gid, home = user
    file = target(home, variable)
    places = [place for place in _places(config) if place[0] != str(file)] + [[str(file), uid, gid]]
    _record(config).write_text(json.dumps(places))  # before the change, so that `down` finds it in any case
    try:
        with _acting_as(uid, gid):
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(file):
                _write(file, with_entries(_read(file), own))
    except OSError as err:
        raise CannotMerge(f"{file}: {err.strerror}") from err
    except CannotMerge as err:
        raise CannotMerge(f"{file}: {err}") from err
    return file


def _record(config: ClusterConfig) -> Path:
    return config.run_dir / "merged.json"


def _places(config: ClusterConfig) -> list[list[Any]]:
    try:
        found = json.loads(_record(config).read_text())
        return [[str(file), int(uid), int(gid)] for file, uid, gid in found]
    except (OSError, ValueError, TypeError):
        return []


def take_out(config: ClusterConfig) -> list[str]:
    """Take the cluster's context out of the kubeconfigs that have it. Returns what stays, as `teardown` does."""
    stays = []
    for name, uid, gid in _places(config):
        file, gone = Path(name), f"`kubectl config delete-context {config.context} --kubeconfig {name}`"
        try:
            authority = entry(_read(config.kubeconfig), "clusters", config.context)["certificate-authority-data"]
            with _acting_as(uid, gid):
                if not file.exists():
                    continue
                with _locked(file):
                    document = without(_read(file), config.context, authority)
                    if document is not None:
                        _write(file, document)
        except OSError as err:
            stays.append(f"context {config.context} in {name}: {err.strerror}: {gone}")
        except (CannotMerge, KeyError) as err:
            stays.append(f"context {config.context} in {name}: {err}: {gone}")
    return stays
