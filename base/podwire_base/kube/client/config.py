"""The API server's address and the client's identity: kubeconfig files (read by lightkube) and in-cluster service
accounts.

Credential files change while a client runs. The token of a service account changes every hour, the certificate of a
kubelet every year. So a ClientConfig has the names of the files that it was read from, and can read them again. Source:
client-go's InClusterConfig and clientcmd.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import os
import re
import ssl
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import ConfigError
from . import kubeconfigs

SERVERS = "PODWIRE_API_SERVERS"  # server addresses that replace the kubeconfig's, separated by spaces or commas
ACCOUNT_DIR = "PODWIRE_SERVICE_ACCOUNT_DIR"
DEFAULT_ACCOUNT_DIR = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# Kubeconfig settings that podwire does not support. They are errors, because ignoring them would lead to an unexplained
# 401.
_REFUSED = {
    "user": {
        "exec": "a node's agents do not run credential plugins; use client-certificate, token or tokenFile",
        "auth-provider": "was removed from Kubernetes; use client-certificate, token or tokenFile",
        "username": "passwords were removed from Kubernetes; use client-certificate, token or tokenFile",
        "as": "impersonation is not supported; give the agent a user of its own",
    },
    "cluster": {"proxy-url": "a proxy is not supported; remove it, or use PODWIRE_API_SERVERS"},
}


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """The address and credentials of an API server. server: the base URL. token: the bearer token or "". ssl: the TLS
    context for https URLs, with the client certificate loaded.

    others: further URLs of the same API, used if `server` does not answer. server_name: the name in the server's
    certificate, if the name differs from the address. files: the files that this ClientConfig was read from. again:
    reads the files again (raises ConfigError).
    """

    server: str
    token: str = ""
    ssl: ssl.SSLContext | None = None
    others: tuple[str, ...] = ()
    server_name: str = ""
    files: tuple[Path, ...] = ()
    again: Callable[[], ClientConfig] | None = field(default=None, compare=False)

    @property
    def servers(self) -> tuple[str, ...]:
        return (self.server, *self.others)

    @property
    def server_ips(self) -> tuple[str, ...]:
        """Returns the addresses in `servers`, without loopback addresses and names."""
        found = []
        for url in self.servers:
            with contextlib.suppress(ValueError):
                ip = ipaddress.ip_address(urlsplit(url).hostname or "")
                found += [] if ip.is_loopback else [str(ip)]
        return tuple(dict.fromkeys(found))


def stamps(files: tuple[Path, ...]) -> tuple[tuple[int, int, int], ...]:
    """Returns one stamp for each file. A stamp changes when the file is written or replaced. The stamp of a missing
    file is all zeros.
    """
    found = []
    for file in files:
        try:
            stat = file.stat()
            found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        except OSError:
            found.append((0, 0, 0))
    return tuple(found)


def server_urls(text: str, default: str) -> tuple[str, ...]:
    """Returns the addresses in `text`, or `default` if `text` is empty. Raises ConfigError for text that is not a URL
    of an API server.
    """
    urls = tuple(dict.fromkeys(url.rstrip("/") for url in re.split(r"[\s,]+", text) if url)) or (default.rstrip("/"),)
    for url in urls:
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
        except ValueError:
            good = False
        if not good:
            raise ConfigError(f"{url!r} is not an address of an API server; expected https://HOST:PORT")
    return urls


class _Files:
    """Reads files and records their names. Relative names in a kubeconfig are relative to the kubeconfig's
    directory.
    """

    def __init__(self, base: Path | None) -> None:
        self.base, self.read = base, list[Path]()

    def text(self, name: Any) -> str:
        path = Path(str(name))
        path = path if path.is_absolute() or self.base is None else self.base / path
        self.read.append(path)
        return path.read_text()

    def pem(self, data: Any, name: Any) -> str | None:
        if data:
            return base64.b64decode(str(data)).decode()
        return self.text(name) if name else None


def _context(cluster: Any, user: Any, files: _Files) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=files.pem(cluster.certificate_auth_data, cluster.certificate_auth))
    if cluster.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    cert = files.pem(getattr(user, "client_cert_data", None), getattr(user, "client_cert", None))
    key = files.pem(getattr(user, "client_key_data", None), getattr(user, "client_key", None))
    if bool(cert) != bool(key):
        raise ConfigError(
            f"user: client-{'key' if cert else 'certificate'} is missing beside client-"
            f"{'certificate' if cert else 'key'}"
        )
    if cert and key:
        # The ssl module loads a key only from a file. Only the owner can read this temporary file, and it is deleted
        # before the function returns.
        with tempfile.NamedTemporaryFile("w", prefix="podwire-", suffix=".pem") as file:
            file.write(cert + "\n" + key)
            file.flush()
            context.load_cert_chain(file.name)
    return context


def paths(text: str) -> list[Path]:
    """Return the files that $KUBECONFIG names: a file, or several with ":" between them. A file whose own name has a
    colon is taken as it is.
    """
    names = [text] if Path(text).expanduser().is_file() else [name for name in text.split(os.pathsep) if name]
    return [Path(name).expanduser() for name in names]


def read(text: str, files: Callable[[Path], str] = Path.read_text) -> dict[str, Any]:
    """Return the content of a kubeconfig, or of several with ":" between them as one. Of several, those that are
    missing are skipped. files: reads a file. Raises ConfigError, OSError, and errors of yaml.
    """
    import yaml

    found = [path.absolute() for path in paths(text) if path.is_file()]
    if not found:
        raise ConfigError("there is no such file")
    documents = []
    for path in found:
        document = yaml.safe_load(files(path))
        if document is None and len(found) > 1:
            continue  # an empty file
        if not isinstance(document, dict):
            raise ConfigError(f"{path}: it is not a YAML mapping" if len(found) > 1 else "it is not a YAML mapping")
        documents.append((path, document))
    return kubeconfigs.merged(documents)


def from_files(text: str, servers: str = "", context: str = "") -> ClientConfig:
    """Read a context of a kubeconfig, or of several with ":" between them. context: default: the current one. Raises
    ConfigError. For an invalid file, also raises any error of lightkube or yaml.
    """
    # The import takes 0.2 s, so import lightkube only when a client is needed.
    from lightkube.config.kubeconfig import KubeConfig

    files = _Files(None)
    document = read(text, files.text)
    known = [str(row.get("name")) for row in document["contexts"]]
    if context and context not in known:
        raise ConfigError(f"there is no context {context!r}; there are: {', '.join(known) or 'none'}")
    if not (context or document["current-context"]):
        raise ConfigError("current-context names no context; set it, pass --context or another file")
    config = KubeConfig.from_dict(document)
    single = config.get(context or None)
    assert single is not None
    raw = {
        "user": kubeconfigs.entry(document, "users", single.context.user or ""),
        "cluster": kubeconfigs.entry(document, "clusters", single.context.cluster),
    }
    for part, fields in _REFUSED.items():
        for name, why in fields.items():
            if raw[part].get(name):
                raise ConfigError(f"{part}.{name}: {why}")
    cluster, user = single.cluster, single.user
    urls = server_urls(servers, cluster.server)
    token = files.text(user.token_file) if user and user.token_file else str(getattr(user, "token", None) or "")
    tls = _context(cluster, user, files) if any(url.startswith("https") for url in urls) else None
    return ClientConfig(
        urls[0],
        token.strip(),
        tls,
        urls[1:],
        str(raw["cluster"].get("tls-server-name") or ""),
        tuple(files.read),
        partial(load, text, servers=servers, context=context),
    )


def from_service_account(folder: Path, env: Mapping[str, str], servers: str = "") -> ClientConfig:
    """Read a pod's service account: the variables KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT, and the files
    token and ca.crt. Raises ConfigError.
    """
    host, port = env.get("KUBERNETES_SERVICE_HOST", ""), env.get("KUBERNETES_SERVICE_PORT", "443")
    if not host and not servers:
        raise ConfigError(f"KUBERNETES_SERVICE_HOST is not set: outside a pod name a kubeconfig, or set {SERVERS}")
    urls = server_urls(servers, f"https://{f'[{host}]' if ':' in host else host}:{port}")
    files = _Files(folder)
    token, authority = files.text("token").strip(), files.text("ca.crt")
    return ClientConfig(
        urls[0],
        token,
        ssl.create_default_context(cadata=authority),
        urls[1:],
        files=tuple(files.read),
        again=partial(load, None, folder=folder, servers=servers),
    )


def in_cluster(env: Mapping[str, str]) -> bool:
    """Whether this process is in a pod that has a service account."""
    folder = Path(env.get(ACCOUNT_DIR) or DEFAULT_ACCOUNT_DIR)
    return bool(env.get("KUBERNETES_SERVICE_HOST") or env.get(SERVERS)) and (folder / "token").exists()


def load(
    kubeconfig: str | Path | None, *, folder: Path | None = None, servers: str | None = None, context: str = ""
) -> ClientConfig:
    """Read `kubeconfig` (one file, or several as in $KUBECONFIG), or the pod's service account in `folder` if
    `kubeconfig` is None. context: of the kubeconfig; default: its current one. Raises ConfigError.

    servers: addresses that replace the addresses in the file or in the pod's environment. A Service proxy needs them,
    because it must not reach the API server through a Service: before the proxy writes its first rules, Services do not
    work. The defaults of folder and servers come from environment variables ($PODWIRE_...).
    """
    where = str(kubeconfig) if kubeconfig else "in-cluster service account"
    addresses = os.environ.get(SERVERS, "") if servers is None else servers
    try:
        if kubeconfig:
            return from_files(str(kubeconfig), addresses, context)
        return from_service_account(
            folder or Path(os.environ.get(ACCOUNT_DIR) or DEFAULT_ACCOUNT_DIR), os.environ, addresses
        )
    except Exception as err:  # lightkube raises its own errors, yaml errors, OSError, ValueError and KeyError here
        raise ConfigError(f"{where}: not a usable kubeconfig: {err}") from err
