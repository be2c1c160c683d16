from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from hashlib import sha256

import open_clip
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from baselines.preparation import Pictures
from baselines.search import FitnessConfig
from benchmarks.prepare.search import Calibration
from benchmarks.prepare.studio import RunStudio
from benchmarks.specs.prompts import FRESH
from benchmarks.specs.run import Setting
from benchmarks.supply import zoo
from benchmarks.supply.embedded import Embedded
from benchmarks.supply.zoo import ZOO
from dipgo.errors import DipgoError

CAPTIONED = ("emoji-bk-base", "emoji-bk-small", "emoji-sd2", "emoji-xl-lcm", "emoji-pixart")
MODELS = ("emoji-sd", "emoji-clip", *CAPTIONED, "emoji-dit")
LIMIT = 72 * 2**20
LIMIT_INSTALLED = 90 * 10**6  # of the zoo with every checkpoint in the place of the weights that it went on from


@pytest.fixture
def copy(tmp_path):
    """A second zoo with the judge only, free to be broken."""
    for file in ("manifest.json", "prompts.csv"):
        shutil.copy(ZOO / file, tmp_path / file)
    shutil.copytree(ZOO / "emoji-clip", tmp_path / "emoji-clip")
    return tmp_path


@pytest.mark.parametrize("name", [*MODELS, "reference"])
def test_every_entry_is_what_the_manifest_says(name):
    assert zoo.model_path(name) == ZOO / name


def test_a_tampered_weight_file_is_refused(copy):
    path = copy / "emoji-clip/open_clip_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DipgoError, match=r"open_clip_model.safetensors differs .* git checkout -- benchmarks/zoo"):
        zoo.model_path("emoji-clip", copy)


def test_a_link_that_became_a_text_file_is_explained(copy):
    shutil.copytree(ZOO / "emoji-dit", copy / "emoji-dit", symlinks=True)
    link = copy / "emoji-dit/vae"
    target = link.readlink().as_posix()
    link.unlink()
    link.write_text(target)
    with pytest.raises(DipgoError, match=r"emoji-dit/vae was checked out as a text .* core.symlinks true") as caught:
        zoo.model_path("emoji-dit", copy)
    assert "\n" not in str(caught.value)


def test_a_missing_weight_file_is_refused(copy):
    (copy / "emoji-clip/open_clip_model.safetensors").unlink()
    with pytest.raises(DipgoError, match=r"open_clip_model.safetensors is missing; .* git checkout"):
        zoo.model_path("emoji-clip", copy)


@pytest.mark.parametrize(
    "name", ["open_clip_model.safetensors.index.json", "open_clip_pytorch_model.bin", "sub/config.json"]
)
def test_a_file_that_the_manifest_does_not_know_is_refused(copy, name):
    (copy / "emoji-clip" / name).parent.mkdir(exist_ok=True)
    (copy / "emoji-clip" / name).write_text("")
    with pytest.raises(DipgoError, match=f"{name} is not in the manifest, .* remove it"):
        zoo.model_path("emoji-clip", copy)


def test_an_edited_prompt_file_is_refused(copy):
    with (copy / "prompts.csv").open("a") as file:
        file.write("seen,x,google,x,x,x,x\n")
    with pytest.raises(DipgoError, match="prompts.csv differs"):
        zoo.prompts("seen", zoo=copy)


def test_a_missing_manifest_is_one_clear_line(tmp_path):
    with pytest.raises(DipgoError, match="manifest.json: No such file .* git checkout") as caught:
        zoo.model_path("emoji-sd", tmp_path)
    assert "\n" not in str(caught.value)


def test_unknown_names_get_a_suggestion():
    with pytest.raises(DipgoError, match="did you mean emoji-sd"):
        zoo.model_path("emoji-ds")
    with pytest.raises(DipgoError, match="did you mean held-out"):
        zoo.prompts("heldout")


def test_revision_names_an_entry_and_depends_on_its_files():
    assert zoo.revision("emoji-sd") == zoo.revision("emoji-sd") != zoo.revision("emoji-clip")


def test_prompt_sets_are_large_and_share_no_picture_caption_or_name():
    with (ZOO / "prompts.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    by_set = {key: [row for row in rows if row["set"] == key] for key in ("train", "seen", "held-out")}
    trained = by_set["train"] + by_set["seen"]
    for column in ("sha256", "caption"):
        assert not {row[column] for row in trained} & {row[column] for row in by_set["held-out"]}
    for key in ("seen", "held-out"):
        names = {row["name"] for row in by_set[key]}
        assert len(names) == len(by_set[key]) >= 300
    assert {row["name"] for row in by_set["held-out"]} <= {row["name"] for row in trained}
    assert not {row["name"] for row in by_set["seen"]} & {row["name"] for row in by_set["held-out"]}


def test_the_fresh_captions_are_in_no_other_set_and_of_known_names():
    """Where a fluent picture is held out, training left out the flat one of its name, which has the same outlines; some
    names have no picture of a style at all. These pairs are the fresh set."""
    with (ZOO / "prompts.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    fresh = zoo.prompts(FRESH)
    assert len({row.caption for row in fresh}) == len(fresh) >= 100
    assert {row.caption for row in fresh}.isdisjoint(row["caption"] for row in rows)
    assert {row.name for row in fresh} <= {row["name"] for row in rows if row["set"] != "held-out"}
    styles = {row["name"]: {other["style"] for other in rows if other["name"] == row["name"]} for row in rows}
    hidden = {row["name"] for row in rows if row["set"] == "held-out" and row["style"] == "fluent"}
    without = {row.name for row in fresh if row.style == "flat"} - hidden
    assert hidden <= {row.name for row in fresh if row.style == "flat"} and len(without) <= 13
    assert all(row.style not in styles[row.name] for row in fresh)
    row = {"model": "emoji-sd", "prompts": ["held-out"]}
    assert Embedded().revision(row | {"prompts": ["fresh"]}).startswith(f"{Embedded().revision(row)}.")


@pytest.mark.parametrize("ask", ["studio", "calibration"])
def test_no_method_reads_the_fresh_captions(ask):
    setting = Setting("embedded", "emoji-sd", "", "float32", "ddim", 4, 4.0, 64)
    with pytest.raises(DipgoError, match="the prompt set 'fresh' is kept for the published numbers"):
        if ask == "studio":
            studio = RunStudio.__new__(RunStudio)
            Pictures(prompts="fresh").drawn(studio)
        else:
            Calibration(setting, FitnessConfig(prompts="fresh"))


def test_prompts_are_numbered_in_file_order():
    found = zoo.prompts("seen")
    assert [prompt.index for prompt in found] == list(range(len(found)))
    assert found[0].caption == f"{found[0].name}, {found[0].style}"


def test_classes_are_the_class_conditional_models_and_as_frequent_as_among_the_pictures():
    rows = zoo.prompts("classes", "emoji-dit")
    pipeline = DiffusionPipeline.from_pretrained(zoo.model_path("emoji-dit"), dtype=torch.float32)
    assert [row.index for row in rows] == list(range(320)) and rows[0].caption == rows[0].name
    assert {row.caption for row in rows} <= set(pipeline.labels)
    assert len(pipeline.labels) == pipeline.transformer.config.num_embeds_ada_norm
    with (ZOO / "prompts.csv").open(encoding="utf-8", newline="") as file:
        pictures = [row for row in csv.DictReader(file) if row["set"] != "held-out"]
    drawn, real = Counter(row.caption for row in rows), Counter(row["subcategory"] for row in pictures)
    for name in ("animal-mammal", "sky & weather", "heart", "lock"):
        assert abs(drawn[name] - 320 * real[name] / len(pictures)) < 1


def test_classes_are_those_of_the_asked_model_whatever_its_name(tmp_path):
    shutil.copytree(ZOO / "emoji-dit", tmp_path / "any-name")
    (tmp_path / "any-name" / "classes.csv").write_text("class\nfruit\ncat\n")
    files = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in zoo.files_of(tmp_path / "any-name")}
    known = {name: {"sha256": sha256(content).hexdigest(), "bytes": len(content)} for name, content in files.items()}
    (tmp_path / "manifest.json").write_text(json.dumps({"any-name": {"files": known, "measured": {}}}))
    assert [prompt.caption for prompt in zoo.prompts("classes", "any-name", tmp_path)] == ["fruit", "cat"]
    with pytest.raises(DipgoError, match="emoji-sd draws captions, no classes"):
        zoo.prompts("classes", "emoji-sd")


def test_every_class_has_a_centroid_of_the_judges():
    centroids = load_file(zoo.model_path("emoji-dit") / "centroids.safetensors")
    assert set(centroids) == {row.name for row in zoo.prompts("classes", "emoji-dit")}
    stacked = torch.stack(list(centroids.values())).float()
    assert stacked.shape[1] == 128
    assert torch.allclose(stacked.norm(dim=1), torch.ones(len(stacked)), atol=2e-3)


def test_the_zoo_is_small_and_its_weights_are_half_precision():
    own = {path.resolve() for path in zoo.files_of(ZOO)}  # a linked part counts once
    live = {path for path in own if not path.is_relative_to(ZOO / "checkpoints")}

    def size(folder):
        return sum(path.stat().st_size for path in own if path.is_relative_to(folder))

    growth = sum(max(size(folder) - size(ZOO / folder.name), 0) for folder in (ZOO / "checkpoints").glob("*"))
    assert sum(path.stat().st_size for path in live) < LIMIT
    assert sum(path.stat().st_size for path in live) + growth < LIMIT_INSTALLED
    for path in own:
        if path.suffix == ".safetensors":
            kinds = {t.dtype for t in load_file(path).values() if t.is_floating_point()}
            assert kinds == {torch.float16}, path


def test_the_manifest_lists_every_file_of_its_entries():
    assert {"prompts", FRESH, "reference", *MODELS} == set(zoo.manifest())
    for entry in (*MODELS, "reference"):
        present = {path.relative_to(ZOO).as_posix() for path in zoo.files_of(ZOO / entry)}
        assert present == set(zoo.manifest()[entry]["files"])


def test_shared_parts_are_relative_links_into_the_zoo():
    links = [path for entry in MODELS for path in (ZOO / entry).iterdir() if path.is_symlink()]
    assert {link.parent.name for link in links} == {*CAPTIONED, "emoji-dit"}
    for link in links:
        assert not link.readlink().is_absolute() and link.resolve().is_relative_to(ZOO / "emoji-sd")


def test_the_judge_loads_by_open_clip_and_ranks_by_colour():
    source = f"local-dir:{zoo.model_path('emoji-clip')}"
    model, _, preprocess = open_clip.create_model_and_transforms(source)
    tokens = open_clip.get_tokenizer(source)(["yellow heart, google", "black heart, google"])
    canvas = Image.new("RGB", (64, 64), "white")
    canvas.paste((20, 20, 20), (8, 8, 56, 56))
    with torch.no_grad():
        picture = model.eval().encode_image(preprocess(canvas)[None], normalize=True)
        yellow, black = (picture @ model.encode_text(tokens, normalize=True).T)[0]
    assert black > yellow


def test_the_generator_loads_by_the_plain_pipeline_and_draws_what_the_noise_says():
    pipeline = StableDiffusionPipeline.from_pretrained(zoo.model_path("emoji-sd"), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def draw(caption):
        noise = torch.Generator().manual_seed(0)
        return pipeline(caption, num_inference_steps=2, guidance_scale=4.0, generator=noise, output_type="np").images

    images = draw("sunflower, twitter")
    assert images.shape == (1, 64, 64, 3) and images.std() > 0.05
    assert (images == draw("sunflower, twitter")).all()
    assert abs(images - draw("cactus, twitter")).max() > 0.05  # the caption matters


@pytest.mark.parametrize("name", CAPTIONED)
def test_the_other_families_load_by_their_plain_pipelines_and_follow_the_caption(name):
    pipeline = DiffusionPipeline.from_pretrained(zoo.model_path(name), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    extra = {"max_sequence_length": 20, "use_resolution_binning": False} if name == "emoji-pixart" else {}

    def draw(caption):
        noise = torch.Generator().manual_seed(0)
        size = {"height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": 4.0, "output_type": "np"}
        return pipeline(caption, generator=noise, **size, **extra).images

    images = draw("red apple, twitter")
    assert images.shape == (1, 64, 64, 3) and images.std() > 0.05
    assert abs(images - draw("cactus, twitter")).max() > 0.05


def test_the_class_conditional_model_draws_classes_by_its_plain_pipeline():
    pipeline = DiffusionPipeline.from_pretrained(zoo.model_path("emoji-dit"), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def draw(label):
        noise = torch.Generator().manual_seed(0)
        chosen = pipeline.get_label_ids([label])
        return pipeline(chosen, guidance_scale=1.0, generator=noise, num_inference_steps=4, output_type="np").images

    images = draw("heart")
    assert images.shape == (1, 64, 64, 3) and images.std() > 0.05
    assert abs(images - draw("face-smiling")).max() > 0.05


def test_the_class_conditional_model_is_guided_by_its_plain_pipeline_after_the_data_cards_line():
    pipeline = DiffusionPipeline.from_pretrained(zoo.model_path("emoji-dit"), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    line = (ZOO / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    exec(line, {"pipeline": pipeline})

    def draw(guidance):
        noise, chosen = torch.Generator().manual_seed(0), pipeline.get_label_ids(["heart"])
        call = {"guidance_scale": guidance, "num_inference_steps": 4, "output_type": "np"}
        return pipeline(chosen, generator=noise, **call).images

    assert abs(draw(4.0) - draw(1.0)).max() > 0.05
