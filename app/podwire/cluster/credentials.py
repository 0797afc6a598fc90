"""The cluster's certificates and kubeconfigs. They are made once: a cluster that is taken up again keeps them, and a
new node or user gets a certificate of the same authority.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection
from pathlib import Path

from podwire_base.role import files
from podwire_controlplane.server import auth, pki

from .config import ClusterConfig

GROUPS = {"viewer": auth.READERS, "admin": auth.ADMINS}  # role of `podwire kubeconfig --role` -> group


class Damaged(Exception):
    """The authority cannot be read. The message names the file."""


def _private(path: Path, text: str) -> None:
    files.write(path, text, mode=0o600)


def authority(config: ClusterConfig) -> pki.Authority:
    """Return the cluster's authority. Raises Damaged, also if this version of podwire did not make the cluster."""
    data = config.run_dir / "api"
    try:
        return pki.Authority(pki.Pair((data / "ca.pem").read_text(), (data / "ca-key.pem").read_text()))
    except (OSError, ValueError, TypeError) as err:
        raise Damaged(f"the cluster's authority cannot be read: {data}/ca.pem, ca-key.pem: {err}") from err


def make(config: ClusterConfig) -> None:
    """Write the CA, the server certificate, the kubeconfigs of the admin, of the controllers and of each node: those
    that are missing. The files have mode 0600. Raises Damaged and OSError.
    """
    data = config.run_dir / "api"
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (data / "ca.pem").exists():
        made = pki.Authority().pair
        _private(data / "ca-key.pem", made.key)
        _private(data / "ca.pem", made.certificate)  # last: with it both exist
    ca = authority(config)
    if not (data / "server-key.pem").exists():
        domain = config.cluster_domain
        names = [
            "localhost",
            *(f"kubernetes{end}" for end in ("", ".default", ".default.svc", f".default.svc.{domain}")),
        ]
        server = ca.server(names, ["127.0.0.1", config.gateway, config.kubernetes_address])
        _private(data / "server.pem", server.certificate)
        _private(data / "server-key.pem", server.key)
    if not (data / "tokens.json").exists():
        token = secrets.token_urlsafe(32)
        _private(data / "tokens.json", json.dumps({token: {"name": "admin", "groups": [auth.ADMINS]}}))
    inside = f"https://{config.gateway}:6443"
    rows = [(config.kubeconfig, outside(config), "admin", [auth.ADMINS])]
    rows += [(config.node_dir(n) / "kubeconfig", inside, f"system:node:{n}", [auth.NODES]) for n in config.node_names()]
    for path, server_url, user, groups in rows:
        if not path.exists():
            _private(path, _kubeconfig(config, ca, server_url, user, groups))
    if not pki.acts_as(controllers := data / "controllers.kubeconfig", auth.CONTROLLERS, ()):
        _private(controllers, _kubeconfig(config, ca, outside(config), auth.CONTROLLERS, ()))


def outside(config: ClusterConfig) -> str:
    """Return the URL of the API server as this machine reaches it."""
    return f"https://127.0.0.1:{config.api_port}"


def _kubeconfig(
    config: ClusterConfig, ca: pki.Authority, server: str, user: str, groups: Collection[str], context: str = ""
) -> str:
    entry = f"{config.context}-{user}"
    pair = ca.client(user, groups)
    return pki.kubeconfig(config.context, server, ca.certificate, entry, pair, context or config.context)


def for_user(config: ClusterConfig, user: str, role: str) -> str:
    """Return the text of a kubeconfig for a new user. role: a key of GROUPS. Raises Damaged."""
    context = f"{config.context}-{user}"
    return _kubeconfig(config, authority(config), outside(config), user, [GROUPS[role]], context)
