"""Where the API server is and who we are: kubeconfig files and in-cluster service accounts, read by lightkube."""

from __future__ import annotations

import base64
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class ConfigError(Exception):
    """A kubeconfig that cannot be used; the text names the file and the field."""


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """server: base URL. token: bearer token or "". ssl: for https URLs, with the client certificate loaded."""

    server: str
    token: str = ""
    ssl: ssl.SSLContext | None = None


def _pem(data: Any, path: Any, base: Path | None) -> str | None:
    if data:
        return base64.b64decode(str(data)).decode()
    if path:
        file = Path(str(path))
        return (file if file.is_absolute() or base is None else base / file).read_text()
    return None


def _context(cluster: Any, user: Any, base: Path | None) -> ssl.SSLContext:
    ca = _pem(cluster.certificate_auth_data, cluster.certificate_auth, base)
    context = ssl.create_default_context(cadata=ca)
    if cluster.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    cert = _pem(getattr(user, "client_cert_data", None), getattr(user, "client_cert", None), base)
    key = _pem(getattr(user, "client_key_data", None), getattr(user, "client_key", None), base)
    if cert and key:
        # ssl loads a key only from a file; it is gone again before this returns, and nobody else may read it meanwhile.
        with tempfile.NamedTemporaryFile("w", prefix="podwire-", suffix=".pem") as file:
            file.write(cert + "\n" + key)
            file.flush()
            context.load_cert_chain(file.name)
    return context


def load(kubeconfig: str | Path | None) -> ClientConfig:
    """Read `kubeconfig`, or the pod's service account where it is None. Raises ConfigError."""
    from lightkube.config.kubeconfig import KubeConfig  # 0.2 s: only where a client is really wanted

    try:
        config = KubeConfig.from_file(kubeconfig) if kubeconfig else KubeConfig.from_service_account()
        single = config.get()
        if single is None:
            raise ConfigError(f"{kubeconfig}: current-context names no context; set it or pass another file")
        cluster, user = single.cluster, single.user
        base = Path(kubeconfig).parent if kubeconfig else None
        context = _context(cluster, user, base) if cluster.server.startswith("https") else None
        return ClientConfig(cluster.server.rstrip("/"), str(getattr(user, "token", None) or ""), context)
    except ConfigError:
        raise
    except Exception as err:  # lightkube raises its own, yaml's, OSError and KeyError here
        where = kubeconfig or "in-cluster service account"
        raise ConfigError(f"{where}: not a usable kubeconfig: {err}") from err
