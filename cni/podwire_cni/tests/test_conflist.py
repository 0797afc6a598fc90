"""Other files in the directory of CNI configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from podwire_cni import conflist, conflistfile


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (("10-podwire.conflist",), []),
        (("05-cilium.conflist", "20-x.conf", "10-podwire.conflist"), ["05-cilium.conflist"]),
        (("10-flannel.conflist", "10-calico.conf", "9-x.json"), ["10-calico.conf", "10-flannel.conflist"]),
        (("05-cilium.conflist.cilium_bak", "05-x.yaml", "README", "00-multus.conf.tmp"), []),
        (("87-podman.conflist", "Z.conf", "A.conf"), []),
        ((".05-hidden.conf", "05.conf", "10-podwire.conf"), [".05-hidden.conf", "05.conf", "10-podwire.conf"]),
    ],
)
def test_order_of_files_is_that_of_the_runtimes(names: tuple[str, ...], first: list[str]) -> None:
    assert conflist.before(names, "10-podwire.conflist") == first


FLANNEL = {"name": "cbr0", "plugins": [{"type": "flannel"}, {"type": "portmap"}]}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (FLANNEL, "network cbr0, plugins flannel, portmap"),
        ({"name": "mynet", "type": "bridge"}, "network mynet, plugins bridge"),
        ("{", "no valid configuration"),
        ([], "no valid configuration"),
        ({"plugins": [7]}, "no valid configuration"),
        ({"name": "other", "plugins": [{"type": "podwire-cni", "bridge": "br1"}]}, "plugins podwire-cni"),
        ({"name": "chain", "plugins": [{"type": "podwire-cni"}, {"type": "tuning"}]}, None),
    ],
)
def test_the_file_that_the_runtime_reads_is_named(tmp_path: Path, body: Any, words: str | None) -> None:
    (tmp_path / "05-x.conflist").write_text(body if isinstance(body, str) else json.dumps(body))
    (tmp_path / "04-folder.conf").mkdir()
    found = conflistfile.rival(tmp_path / "10-podwire.conflist")
    if words is None:
        assert found == ""
    else:
        assert found.startswith(f"{tmp_path}/05-x.conflist (") and words in found


def test_no_rival(tmp_path: Path) -> None:
    assert conflistfile.rival(tmp_path / "none" / "10-podwire.conflist") == ""
    (tmp_path / "05-x.conf").symlink_to("nowhere")
    (tmp_path / "87-podman.conflist").write_text(json.dumps(FLANNEL))
    assert conflistfile.rival(tmp_path / "10-podwire.conflist") == ""
