"""The paper profile from specs to records: its own code path, with tiny stand-ins where its assets lie."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import SOME_ROWS_ABSENT, main
from benchmarks.models import model as models
from benchmarks.models.generate import noise_seeds, pictures_at_once
from benchmarks.specs import record
from benchmarks.specs.run import RunSpec, Setting
from benchmarks.speed import latency
from benchmarks.supply import assets, datasets, paper, profiles, random_weights, zoo
from dipgo.errors import DipgoError
from tests.helpers.inceptions import save_noise
from tests.helpers.pipelines import dit, stable_diffusion
from tests.helpers.suites import DEFAULTS

PROMPTS = ["a cat face", "a dog", "some fruit", "a dog face", "fruit, fruit"]
SUITE = (
    DEFAULTS
    + """\
prompts = ["seen", "held-out"]
limit = 300
metrics = ["macs"]
[method.dipgo.train]
steps = 36
lr = 20.0
width = 16
keep = 0.51
checkpoint = false
[[run]]
id = "dense"
[[run]]
id = "half"
method = "step_skip"
params = { mode = "hold", interval = 2 }
[[run]]
id = "ours"
method = "dipgo"
params = { ratio = 0.5 }
[profile.paper.defaults]
dtype = "float16"
prompts = ["parti", "coco"]
limit = 4
resolution = 16
metrics = ["macs", "latency", "clip_score", "psnr", "ssim"]
[profile.paper.model]
emoji-sd = { model = "sd15", guidance = 7.5 }
[profile.paper.run.half]
prompts = ["coco"]
metrics = ["macs", "clip_score", "fid_clean", "fid_paper", "psnr"]
[profile.paper.run.dense]
metrics = ["macs", "latency", "clip_score"]
[profile.paper.method.dipgo.train]
steps = 2
checkpoint = true
prompts = "diffusiondb"
"""
)
ENTRY = '[{name}]\nlicense = "any"\nnote = ""\n[[{name}.parts]]\nrepo = "{name}/{name}"\nbytes = 1\nfiles = {files}\n'
FILES = {
    "sd15": ["model_index.json", "*/*.json", "*/*.safetensors"],
    "dit-xl-2": ["model_index.json", "*/*.json", "*/*.safetensors"],
    "clip-vit-g-14": ["*.json", "*.safetensors"],
    "parti": ["PartiPrompts.tsv"],
    "coco": ["annotations/captions_val2017.json"],
    "coco-images": ["val2017/*.png"],
    "diffusiondb": ["part-000001.json"],
    "inception-clean": ["inception-2015-12-05.pt"],
    "inception-paper": ["*.safetensors"],
}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory, inceptions) -> Path:
    """A folder of assets and, beside it, their registry."""
    folder = tmp_path_factory.mktemp("paper") / "assets"
    torch.manual_seed(0)
    stable_diffusion().save_pretrained(folder / "sd15")
    dit().save_pretrained(folder / "dit-xl-2")
    shutil.copytree(zoo.model_path("emoji-clip"), folder / "clip-vit-g-14")
    for protocol in ("clean", "paper"):
        shutil.copytree(inceptions[protocol], folder / f"inception-{protocol}")
    for name in ("parti", "coco/annotations", "coco-images", "diffusiondb"):
        (folder / name).mkdir(parents=True)
    with (folder / "parti" / "PartiPrompts.tsv").open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerows([["Prompt", "Category", "Challenge", "Note"], *([text, "", "", ""] for text in PROMPTS)])
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(len(PROMPTS))]
    annotations = [{"id": n, "image_id": n, "caption": text} for n, text in enumerate(reversed(PROMPTS))]
    captions = {"images": images, "annotations": annotations}
    (folder / "coco" / "annotations" / "captions_val2017.json").write_text(json.dumps(captions))
    drawn = {f"{number}.webp": {"p": f"fruit {number}"} for number in range(30)}
    (folder / "diffusiondb" / "part-000001.json").write_text(json.dumps(drawn))
    save_noise(folder / "coco-images" / "val2017", [f"{number}.png" for number in range(5)])
    entries = [ENTRY.format(name=name, files=json.dumps(files)) for name, files in FILES.items()]
    script = next((folder / "inception-clean").glob("*.pt"))
    known = (
        f'torchscript = true\nsha256 = {{ "{script.name}" = "{hashlib.sha256(script.read_bytes()).hexdigest()}" }}\n'
    )
    entries = [text + known if "[inception-clean]" in text else text for text in entries]
    (folder.parent / "registry.toml").write_text("\n".join(entries))
    return folder


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *arguments: str, profile: str = "paper") -> int:
        (self.folder / "suite.toml").write_text(SUITE)
        folders = ["--workspace", str(self.folder / "runs"), "--records", str(self.folder / "records")]
        options = ["--profile", profile, "--workers", "1", *folders, *arguments]
        return main(["run", str(self.folder / "suite.toml"), *options])

    def record(self, name: str) -> record.Record:
        found = record.find(self.folder / "records", name)
        assert found is not None
        return found


@pytest.fixture
def bench(stand_ins, tmp_path, monkeypatch) -> Bench:
    monkeypatch.setattr(assets, "REGISTRY", stand_ins.parent / "registry.toml")
    monkeypatch.setenv("DIPGO_ASSETS", str(stand_ins))
    monkeypatch.setattr(paper.Paper, "judge_model", None)
    lengths = {"parti": len(PROMPTS), "coco": len(PROMPTS), "diffusiondb": 30, "imagenet": 150}
    monkeypatch.setattr(datasets, "LENGTHS", lengths)
    monkeypatch.setattr(datasets, "CLASSES", 3)
    monkeypatch.setattr(latency, "ROUNDS", 1)
    models._load.cache_clear()
    yield Bench(tmp_path)
    models._load.cache_clear()


def test_a_table_of_the_paper_profile_is_measured(bench):
    assert bench.run() in (0, SOME_ROWS_ABSENT)
    dense, half, ours = map(bench.record, ("dense", "half", "ours"))
    assert dense.spec["profile"] == "paper" and dense.spec["model"] == "sd15" and dense.spec["guidance"] == 7.5
    assert set(dense.metrics) == {"all", "parti", "coco"} and "seconds_denoiser" in dense.metrics["all"]
    assert set(half.metrics["coco"]) == {"clip_score", "fid_clean", "fid_paper", "psnr"}
    assert half.metrics["coco"]["fid_clean"]["value"] != half.metrics["coco"]["fid_paper"]["value"]
    assert half.metrics["coco"]["psnr"]["n"] == 4 and half.metrics["all"]["computed_calls"]["value"] == 2
    parts = dense.spec["revision"].split(".")
    assert len(parts) == 5 and "missing" not in parts
    assert ours.metrics or "no threshold" in ours.absent["psnr"]
    assert len(list((bench.folder / "runs" / "pruners").glob("*.json"))) == 1  # trained in half precision
    models._load.cache_clear()
    assert bench.run() in (0, SOME_ROWS_ABSENT)  # all is there


def test_half_precision_is_the_denoisers_and_not_the_decoders(bench):
    model = models.load(Setting("paper", "sd15", "any", "float16", "ddim", 4, 7.5, 16))
    assert model.denoiser.dtype == model.pipeline.text_encoder.dtype == torch.float16
    assert model.pipeline.vae.dtype == torch.float32 and model.pipeline.vae.use_slicing


def test_classes_that_share_a_name_keep_their_labels(bench, stand_ins, tmp_path, monkeypatch):
    shutil.copytree(stand_ins, tmp_path / "assets")
    index = tmp_path / "assets" / "dit-xl-2" / "model_index.json"
    changed = json.loads(index.read_text())
    changed["id2label"] = {"0": "crane", "1": "dog, dogs", "2": "crane"}
    index.write_text(json.dumps(changed))
    monkeypatch.setenv("DIPGO_ASSETS", str(tmp_path / "assets"))
    paper = profiles.source("paper")
    names = paper.captions("imagenet", "dit-xl-2")
    assert len(names) == 150 and names[:3] == ["crane (0)", "dog, dogs", "crane (2)"]
    pipeline = paper.pipeline("dit-xl-2", torch.float32)
    assert pipeline.get_label_ids(names[:3]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "says"),
    [("coco", "python -m benchmarks fetch coco"), ("sd15", "fetch sd15"), ("inception-paper", "fetch inception-paper")],
)
def test_what_is_missing_is_said_before_anything_is_begun(bench, stand_ins, tmp_path, monkeypatch, capsys, name, says):
    (tmp_path / "assets").mkdir()
    for path in stand_ins.iterdir():
        if path.name != name:
            (tmp_path / "assets" / path.name).symlink_to(path)
    monkeypatch.setenv("DIPGO_ASSETS", str(tmp_path / "assets"))
    assert bench.run() == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and says in errors[0]
    assert not list((bench.folder / "runs").rglob("*.png")) and not (bench.folder / "records").exists()


def test_a_data_set_of_another_length_is_refused(bench, monkeypatch, capsys):
    monkeypatch.setattr(datasets, "LENGTHS", {**datasets.LENGTHS, "coco": 5000})
    assert bench.run("--row", "dense") == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "5000" in errors[0] and not list((bench.folder / "runs").rglob("*.png"))


def test_random_weights_need_nothing_and_score_nothing(bench, monkeypatch):
    monkeypatch.delenv("DIPGO_ASSETS")
    asked = []

    def tiny(name, dtype, device):
        asked.append((name, dtype))
        pipeline = stable_diffusion().to(dtype)
        pipeline.vae.to(torch.float32)
        return pipeline

    monkeypatch.setattr(random_weights, "pipeline", tiny)
    arguments = ("--limit", "1", "--set", "steps=2", "--row", "dense", "--row", "half")
    assert bench.run(*arguments, profile="random-weights") == 0
    assert asked == [("sd15", torch.float16)]
    dense, half = bench.record("dense"), bench.record("half")
    assert dense.spec["revision"] == "random" and "seconds_end_to_end" in dense.metrics["all"]
    assert dense.metrics["parti"] == {} and "random weights" in dense.absent["clip_score"]
    assert {"fid_paper", "psnr"} <= set(half.absent) and not half.samples["coco"]
    assert len(list((bench.folder / "runs").rglob("*.png"))) == 3


def test_random_weights_are_asked_nothing_else():
    own = profiles.source("random-weights")
    for ask in (own.judge, lambda: own.real_pictures("paper", "coco")):
        with pytest.raises(DipgoError, match="random weights"):
            ask()
    assert len(own.captions("parti", "sd15")) == datasets.LENGTHS["parti"] and own.captions("imagenet", "dit-xl-2")


def test_a_profile_without_an_overlay_is_refused(bench, capsys):
    (bench.folder / "bare.toml").write_text(SUITE.partition("[profile")[0])
    assert main(["run", str(bench.folder / "bare.toml"), "--profile", "paper"]) == 1
    assert "this suite has no such profile" in capsys.readouterr().err


def test_the_papers_protocol_gives_all_pictures_four_noises():
    spec = RunSpec("a", "paper", "m", "r", "dense", "ddim", 4, 7.5, 512, "float16", ("coco",), 9, 0, ())
    clean, paper = (noise_seeds(replace(spec, protocol=name), 9) for name in ("clean", "paper"))
    assert len(set(clean)) == 9 and len(set(paper)) == 4 and paper == [clean[place % 4] for place in range(9)]
    assert replace(spec, protocol="paper").digest != spec.digest


def test_as_many_pictures_at_once_as_their_size_allows():
    assert [pictures_at_once(size) for size in (64, 256, 512, 768, 1024)] == [100, 16, 4, 1, 1]
