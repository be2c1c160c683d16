from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import pytest

from benchmarks.supply import assets
from benchmarks.supply.assets import locate, missing, revision
from benchmarks.supply.paper_configs import PAPER_MODELS
from dipgo.errors import DipgoError

SCRIPT = b"a TorchScript network"
REGISTRY = f"""
[model]
license = "MIT"
note = ""
[[model.parts]]
repo = "owner/model"
bytes = 30
files = ["model_index.json", "unet/model.bin"]
[[model.parts]]
repo = "owner/lcm"
bytes = 12
into = "vae"
files = ["model.safetensors"]
sha256 = {{ "model.safetensors" = "{hashlib.sha256(b"a decoder").hexdigest()}" }}

[network]
license = "MIT"
note = ""
[[network.parts]]
url = "https://example.org/network.pt"
bytes = 21
files = ["network.pt"]
torchscript = true
sha256 = {{ "network.pt" = "{hashlib.sha256(SCRIPT).hexdigest()}" }}

[captions]
license = "MIT"
note = ""
own = ["*.tsv"]
[[captions.parts]]
url = "https://example.org/captions.zip"
bytes = 5
files = ["captions.zip"]
unpack = ["captions/*.json"]
"""


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    (tmp_path / "registry.toml").write_text(REGISTRY)
    monkeypatch.setattr(assets, "REGISTRY", tmp_path / "registry.toml")
    monkeypatch.setenv("DIPGO_ASSETS", str(tmp_path / "assets"))
    return tmp_path / "assets"


def write(folder: Path, **files: bytes) -> Path:
    """Files below a folder; two underlines stand for a slash, the suffix is after the last one."""
    for name, content in files.items():
        stem, _, suffix = name.replace("__", "/").rpartition("_")
        path = folder / f"{stem}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def model(folder: Path, **changes: bytes) -> Path:
    files = {"model_index_json": b"{}", "unet__model_safetensors": b"weights", "vae__model_safetensors": b"a decoder"}
    return write(folder, **files | changes)


def lock(folder: Path, *files: str) -> None:
    values = {
        file: {
            "bytes": (folder / file).stat().st_size,
            "sha256": hashlib.sha256((folder / file).read_bytes()).hexdigest(),
        }
        for file in files
    }
    (folder / "lock.json").write_text(json.dumps({"files": values}))


def refused(name: str, message: str) -> None:
    with pytest.raises(DipgoError, match=message) as caught:
        locate(name)
    assert "\n" not in str(caught.value)


def test_an_absent_asset_comes_with_the_way_to_get_it(root):
    way = f"run `python -m benchmarks fetch model`, or link an own copy to {re.escape(str(root))}/model"
    refused("model", f"model is not at .*model; {way}")
    assert missing("model") == f"model is not at {root}/model; " + way.replace("\\", "")
    assert assets.size("model") == 42


def test_a_linked_own_copy_does(root, tmp_path):
    root.mkdir()
    (root / "model").symlink_to(model(tmp_path / "mine"))
    assert missing("model") is None and locate("model") == root / "model"


def test_equal_files_are_the_same_revision_wherever_they_lie(root, tmp_path, monkeypatch):
    model(root / "model", README_md=b"not asked for")
    found = revision("model")
    lock(root / "model", "unet/model.safetensors")
    assert re.fullmatch("[0-9a-f]{12}", found) and revision("model") == found
    model(tmp_path / "elsewhere/model")
    monkeypatch.setenv("DIPGO_ASSETS", str(tmp_path / "elsewhere"))
    assert revision("model") == found
    write(tmp_path / "elsewhere/model", unet__model_safetensors=b"Weights")
    assert revision("model") != found


def test_a_lacking_file_is_named(root):
    model(root / "model")
    (root / "model/vae/model.safetensors").unlink()
    assert "model lacks vae/model.safetensors; run `python -m benchmarks fetch model`" in missing("model")


def test_a_file_of_the_lock_that_is_gone_is_named(root):
    write(root / "captions", captions__a_json=b"{}", captions__b_json=b"{}")
    lock(root / "captions", "captions/a.json", "captions/b.json")
    assert missing("captions") is None
    (root / "captions/captions/b.json").unlink()
    refused("captions", r"captions/b\.json is gone; run")


def test_a_truncated_file_is_named_without_reading_it(root):
    lock(model(root / "model"), "unet/model.safetensors")
    (root / "model/unet/model.safetensors").write_bytes(b"weigh")
    assert r"unet/model.safetensors has 5 bytes instead of 7; run" in missing("model")


def test_a_changed_file_is_named_by_who_knows_it(root):
    lock(model(root / "model"), "unet/model.safetensors")
    (root / "model/unet/model.safetensors").write_bytes(b"Weights")
    assert missing("model") is None
    refused("model", r"unet/model\.safetensors is not the file that was fetched; run")
    model(root / "model", vae__model_safetensors=b"A decoder")
    refused("model", r"vae/model\.safetensors is not the file that was published; run")


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "ckpt", "pkl"])
def test_pickled_weights_of_an_own_copy_are_refused_by_name(root, suffix):
    model(root / "model", **{f"unet__model_{suffix}": b"pickle"})
    assert f"unet/model.{suffix} holds pickled weights, which are never loaded; remove it" in missing("model")
    refused("model", f"unet/model.{suffix} holds pickled weights")


@pytest.mark.parametrize(
    "name", ["model.safetensors.index.json", "adapter_config.json", "pipeline.py", "added_tokens.json"]
)
def test_a_file_that_a_loader_looks_at_must_have_been_published(root, name):
    (model(root / "model") / "unet" / name).write_text("{}")
    refused("model", f"unet/{name} was not published with model, and a loader may look at it; remove it")


def test_torchscript_is_taken_only_as_it_was_published(root):
    write(root / "network", network_pt=SCRIPT)
    assert locate("network") == root / "network"
    write(root / "network", network_pt=SCRIPT[::-1])
    refused("network", r"network\.pt is not the file that was published")
    write(root / "network", network_pt=SCRIPT, other_pt=SCRIPT)
    refused("network", r"other\.pt holds pickled weights")


def test_an_own_copy_may_have_the_other_layout(root):
    write(root / "captions", mine_tsv=b"image_id\tcaption\n")
    assert locate("captions") == root / "captions"
    (root / "captions/mine.tsv").unlink()
    refused("captions", r"captions lacks captions/\*\.json")


def test_a_broken_lock_is_named(root):
    (model(root / "model") / "lock.json").write_text('{"files": 3')
    refused("model", r"lock\.json is broken; remove it, or run")


def test_a_file_is_read_again_only_where_it_changed(root, monkeypatch):
    folder, file = model(root / "model"), "unet/model.safetensors"
    first = revision("model")
    read, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda stream, name: read.append(stream.name) or digest(stream, name))
    assert revision("model") == first and not read
    os.utime(folder / file, ns=(1, 1))
    assert revision("model") == first and read == [str(folder / file)]


def test_a_folder_that_may_only_be_read_does(root, monkeypatch):
    def read_only(*args: object) -> None:
        raise DipgoError("read-only")

    monkeypatch.setattr(assets, "write_text", read_only)
    model(root / "model")
    assert locate("model") == root / "model"


def test_an_unknown_asset_is_refused():
    for ask in (locate, missing, revision, assets.size):
        with pytest.raises(DipgoError, match="unknown asset 'modle'; did you mean model"):
            ask("modle")


class TestRegistry:
    """What assets.toml itself says."""

    @pytest.fixture(autouse=True)
    def published(self, monkeypatch):
        monkeypatch.setattr(assets, "REGISTRY", Path(assets.__file__).with_suffix(".toml"))

    def test_it_holds_every_model_of_the_paper(self):
        assert set(PAPER_MODELS) <= set(assets.registry())

    def test_every_pin_is_a_full_commit_and_every_digest_a_sha256(self):
        for entry in assets.registry().values():
            for part in entry.parts:
                for place in ({"revision": part.revision}, *part.fallbacks):
                    assert re.fullmatch("([0-9a-f]{40})?", place.get("revision", "")), entry.name
                    assert "url" in place or part.url or part.repo, entry.name
                assert bool(part.url) != bool(part.repo), entry.name
                assert part.sha256.keys() <= set(part.files), entry.name
                assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in part.sha256.values()), entry.name

    def test_every_asset_says_its_licence_and_its_size(self):
        assert all(entry.license and assets.size(name) for name, entry in assets.registry().items())

    def test_what_stays_pickled_is_known_by_its_digest(self):
        for entry in assets.registry().values():
            kept = [name for part in entry.parts for name in part.patterns if name.endswith(assets.PICKLES)]
            assert set(kept) <= entry.digests.keys(), entry.name
