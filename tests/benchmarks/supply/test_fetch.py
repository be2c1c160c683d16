from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import pickle
import shutil
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants
from safetensors.torch import load_file

from benchmarks.supply import assets, fetch
from dipgo.errors import DipgoError
from tests.helpers.hub import Hub

REVISION = Hub.COMMIT
UNET = b"weights of a U-Net"


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    """Whatever this machine's settings are, the client asks the test's own hub."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr(fetch, "HfApi", partial(HfApi, endpoint=hub.url, token=False))
    hub.repos["owner/model"] = {"model_index.json": b"{}", "unet/model.safetensors": UNET, "unet/model.bin": b"no"}
    yield hub
    hub.close()


@pytest.fixture
def register(tmp_path, monkeypatch):
    """Writes a registry of assets to fetch: {name: [its parts]}."""
    monkeypatch.setenv("DIPGO_ASSETS", str(tmp_path / "assets"))

    def register(**entries: list[dict]) -> Path:
        lines = []
        for name, parts in entries.items():
            lines += [f"[{name}]", 'license = "MIT"', 'note = "A note."']
            for part in parts:
                lines.append(f"[[{name}.parts]]")
                lines += [f"{key} = {_toml(value)}" for key, value in {"bytes": 100, **part}.items()]
        registry = tmp_path / f"{len(list(tmp_path.iterdir()))}.toml"
        registry.write_text("\n".join(lines))
        monkeypatch.setattr(assets, "REGISTRY", registry)
        return tmp_path / "assets"

    return register


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)


def model(**changes: object) -> dict:
    return {"repo": "owner/model", "revision": REVISION, "files": ["model_index.json", "unet/*.safetensors"]} | changes


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def archive(members: dict[str, bytes]) -> bytes:
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w") as content:
            for name, data in members.items():
                content.writestr(name, data)
        return buffer.getvalue()


def pickled(content: object) -> bytes:
    with io.BytesIO() as buffer:
        torch.save(content, buffer)
        return buffer.getvalue()


def refused(names: list[str], message: str) -> None:
    with pytest.raises(DipgoError, match=message) as caught:
        fetch.fetch(names)
    assert "\n" not in str(caught.value), caught.value


def test_an_asset_arrives_whole_with_a_lock_and_without_what_was_not_asked_for(hub, register):
    root = register(sd=[model(sha256={"unet/model.safetensors": sha(UNET)})])
    assert "fetch sd" in assets.missing("sd")
    fetch.fetch(["sd"])
    assert assets.missing("sd") is None and assets.locate("sd") == root / "sd"
    files = {str(file.relative_to(root / "sd")) for file in (root / "sd").rglob("*") if file.is_file()}
    assert files == {"model_index.json", "unet/model.safetensors", "lock.json"}
    lock = json.loads((root / "sd/lock.json").read_text())
    assert lock["origins"] == [{"repo": "owner/model", "revision": REVISION}]
    assert lock["files"]["unet/model.safetensors"] == {"sha256": sha(UNET), "bytes": len(UNET)}


def test_what_is_there_is_not_fetched_again(hub, register):
    register(sd=[model()])
    fetch.fetch(["sd"])
    served = len(hub.served)
    fetch.fetch(["sd"])
    assert len(hub.served) == served


def test_without_a_known_revision_the_lock_says_which_one_it_was(hub, register):
    root = register(sd=[{key: value for key, value in model().items() if key != "revision"}])
    fetch.fetch(["sd"])
    assert json.loads((root / "sd/lock.json").read_text())["origins"][0]["revision"] == REVISION


def test_parts_of_two_repositories_make_one_folder(hub, register):
    hub.repos["owner/lcm"] = {"config.json": b"{}", "model.safetensors": b"another U-Net"}
    lcm = {"repo": "owner/lcm", "into": "unet", "files": ["config.json", "model.safetensors"]}
    register(xl=[model(files=["model_index.json"]), lcm])
    fetch.fetch(["xl"])
    assert (assets.locate("xl") / "unet/model.safetensors").read_bytes() == b"another U-Net"


def test_pickled_weights_are_converted_once_and_dropped(hub, register):
    weights = {"layer.weight": torch.arange(6.0).reshape(2, 3).T, "layer.bias": torch.ones(2, dtype=torch.float16)}
    hub.repos["owner/model"]["dit/model.bin"] = pickled({"state_dict": weights})
    register(dit=[model(files=["dit/model.bin"])])
    fetch.fetch(["dit"])
    folder = assets.locate("dit")
    assert [file.name for file in (folder / "dit").iterdir()] == ["model.safetensors"]
    stored = load_file(folder / "dit/model.safetensors")
    assert stored.keys() == weights.keys() and all(torch.equal(stored[key], weights[key]) for key in weights)


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_is_refused_and_never_run(hub, register, tmp_path, zipped):
    mark = tmp_path / "ran"
    hub.repos["owner/model"]["model.bin"] = (
        pickled(Hostile(mark)) if zipped else pickle.dumps(Hostile(mark), protocol=2)
    )
    root = register(dit=[model(files=["model.bin"])])
    refused(["dit"], "model.bin is not a pickle of tensors alone")
    assert not mark.exists() and not (root / "dit").exists()


def test_of_an_archive_only_what_is_asked_for_stays(hub, register):
    hub.files["coco.zip"] = archive({"annotations/captions.json": b"{}", "annotations/instances.json": b"{}"})
    part = {"url": f"{hub.url}/coco.zip", "files": ["coco.zip"], "unpack": ["annotations/captions.json"]}
    root = register(coco=[part | {"sha256": {"coco.zip": sha(hub.files["coco.zip"])}}])
    fetch.fetch(["coco"])
    files = sorted(str(file.relative_to(root / "coco")) for file in (root / "coco").rglob("*") if file.is_file())
    assert files == ["annotations/captions.json", "lock.json"]


def test_a_data_set_of_the_hub_is_found_under_its_own_address(hub, register):
    hub.repos["datasets/owner/prompts"] = {"images/part.zip": archive({"part": b"{}", "a.png": b""})}
    register(prompts=[{"repo": "owner/prompts", "dataset": True, "files": ["images/part.zip"], "unpack": ["part"]}])
    fetch.fetch(["prompts"])
    assert (assets.locate("prompts") / "part").read_bytes() == b"{}"


def test_a_withdrawn_repository_gives_way_to_its_fallback(hub, register):
    register(sd=[model(repo="gone/model", fallbacks=[{"repo": "owner/model", "revision": REVISION}])])
    fetch.fetch(["sd"])
    lock = json.loads((assets.locate("sd") / "lock.json").read_text())
    assert lock["origins"][0]["repo"] == "owner/model"


def test_a_lost_url_gives_way_to_its_fallback(hub, register):
    hub.files["here.npz"] = b"numbers"
    register(stats=[{"url": f"{hub.url}/gone.npz", "files": ["a.npz"], "fallbacks": [{"url": f"{hub.url}/here.npz"}]}])
    fetch.fetch(["stats"])
    assert (assets.locate("stats") / "a.npz").read_bytes() == b"numbers"


def test_a_killed_fetch_leaves_nothing_and_goes_on_where_it_stopped(hub, register, monkeypatch):
    root = register(sd=[model(), {"url": f"{hub.url}/late.npz", "files": ["late.npz"]}])
    hub.files["late.npz"] = b"late"

    def killed(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch.hub, "download_url_to_file", killed)
        fetch.fetch(["sd"])
    assert not (root / "sd").exists() and hub.served.count("unet/model.safetensors") == 1
    fetch.fetch(["sd"])
    assert hub.served.count("unet/model.safetensors") == 1 and assets.missing("sd") is None
    assert not [path for path in root.iterdir() if path.name.endswith((".part", ".broken"))]


def test_a_file_that_broke_is_fetched_again(hub, register):
    root = register(sd=[model()])
    fetch.fetch(["sd"])
    (root / "sd/unet/model.safetensors").write_bytes(UNET[:-1])
    assert f"has {len(UNET) - 1} bytes instead of {len(UNET)}" in assets.missing("sd")
    fetch.fetch(["sd"])
    assert (assets.locate("sd") / "unet/model.safetensors").read_bytes() == UNET


def test_an_own_copy_is_never_overwritten(hub, register, tmp_path):
    root = register(sd=[model()])
    (tmp_path / "mine").mkdir()
    root.mkdir()
    (root / "sd").symlink_to(tmp_path / "mine")
    refused(["sd"], "lacks model_index.json.*is a link to an own copy")
    assert not list((tmp_path / "mine").iterdir())


def test_no_network_is_one_line(register, monkeypatch):
    monkeypatch.setattr(fetch, "HfApi", partial(HfApi, endpoint="http://127.0.0.1:9", token=False))
    register(sd=[model()], stats=[{"url": "http://127.0.0.1:9/a.npz", "files": ["a.npz"]}])
    refused(["sd"], "sd: no network .*goes on where this stopped")
    refused(["stats"], "stats: .*a.npz cannot be reached")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(["sd"], "sd: HF_HUB_OFFLINE is set; unset it")


def test_what_the_hub_refuses_is_one_line_each(hub, register):
    hub.gated.add("owner/gated")
    register(
        revision=[model(revision="d" * 40)],
        repository=[model(repo="owner/gone")],
        gated=[model(repo="owner/gated")],
        file=[model(files=["unet/other.safetensors"])],
        changed=[model(sha256={"unet/model.safetensors": sha(b"other")})],
    )
    refused(["revision"], f"owner/model has no revision {'d' * 40}")
    refused(["repository"], "owner/gone is withdrawn, moved or private")
    refused(["gated"], "owner/gated is gated: accept its licence on huggingface.co/owner/gated, `hf auth login`")
    refused(["file"], "owner/model at .* holds no unet/other.safetensors")
    refused(["changed"], "changed: model.safetensors did not arrive as published")
    assert not [path for path in assets.folder().iterdir() if not path.name.startswith(".")]


def test_a_full_disk_is_told_before_and_after(hub, register, monkeypatch):
    root = register(sd=[model(bytes=10**18)], bk=[model()])
    refused(["sd"], r"sd: needs \d+.\d GB in .* are free")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(HfApi, "snapshot_download", full)
    refused(["bk"], "bk: no room left in .*goes on where this stopped")
    assert not (root / "bk").exists()


def test_a_second_process_does_not_disturb_the_first(hub, register):
    register(sd=[model()])
    with fetch._alone(assets.asset("sd")):
        refused(["sd"], "sd is being fetched by another process")


def test_an_unknown_asset_is_refused_before_any_is_fetched(hub, register):
    root = register(sd=[model()])
    refused(["sd", "sd3"], "unknown asset 'sd3'; did you mean sd")
    assert not root.exists() and not hub.served


def test_the_licence_is_told(hub, register, caplog):
    register(sd=[model()])
    with caplog.at_level(logging.INFO):
        fetch.fetch(["sd"])
    assert "sd is fetched; licence: MIT. A note." in caplog.text


def test_a_moved_folder_is_the_same_revision(hub, register, tmp_path, monkeypatch):
    root = register(sd=[model()])
    fetch.fetch(["sd"])
    revision = assets.revision("sd")
    shutil.copytree(root / "sd", tmp_path / "other/sd")
    (tmp_path / "other/sd/lock.json").unlink()
    monkeypatch.setenv("DIPGO_ASSETS", str(tmp_path / "other"))
    assert assets.revision("sd") == revision
