from __future__ import annotations

import csv
import shutil

import open_clip
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from benchmarks.zoo import zoo
from benchmarks.zoo.zoo import ZOO, ZooError

MODELS = ("emoji-sd", "emoji-clip")
LIMIT = 72 * 2**20


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
    with pytest.raises(ZooError, match=r"open_clip_model.safetensors differs .* git checkout -- benchmarks/zoo"):
        zoo.model_path("emoji-clip", copy)


def test_a_missing_weight_file_is_refused(copy):
    (copy / "emoji-clip/open_clip_model.safetensors").unlink()
    with pytest.raises(ZooError, match=r"open_clip_model.safetensors is missing; .* git checkout"):
        zoo.model_path("emoji-clip", copy)


def test_an_edited_prompt_file_is_refused(copy):
    with (copy / "prompts.csv").open("a") as file:
        file.write("seen,x,google,x,x,x,x\n")
    with pytest.raises(ZooError, match="prompts.csv differs"):
        zoo.prompts("seen", copy)


def test_a_missing_manifest_is_one_clear_line(tmp_path):
    with pytest.raises(ZooError, match="manifest.json cannot be read") as caught:
        zoo.model_path("emoji-sd", tmp_path)
    assert "\n" not in str(caught.value)


def test_unknown_names_get_a_suggestion():
    with pytest.raises(ZooError, match="did you mean 'emoji-sd'"):
        zoo.model_path("emoji-ds")
    with pytest.raises(ZooError, match="did you mean 'held-out'"):
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


def test_prompts_are_numbered_in_file_order():
    found = zoo.prompts("seen")
    assert [prompt.index for prompt in found] == list(range(len(found)))
    assert found[0].caption == f"{found[0].name}, {found[0].style}"


def test_the_zoo_is_small_and_its_weights_are_half_precision():
    files = [path for path in ZOO.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LIMIT
    for path in ZOO.rglob("*.safetensors"):
        assert {t.dtype for t in load_file(path).values() if t.is_floating_point()} == {torch.float16}, path


def test_the_manifest_lists_every_file_of_its_entries():
    for entry in (*MODELS, "reference"):
        present = {path.relative_to(ZOO).as_posix() for path in (ZOO / entry).rglob("*") if path.is_file()}
        assert present == set(zoo.manifest()[entry]["files"])


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
