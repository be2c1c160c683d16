"""`dipgo learn | apply | compare | show | check` with a tiny pipeline, and bad input in one line."""

from __future__ import annotations

import json
import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import ROOT
from dipgo import Recipe, accelerate, compare
from dipgo.__main__ import main
from dipgo.errors import DipgoError
from dipgo.recipes import contestants
from dipgo.recipes.compare import learned_with
from dipgo.recipes.recipe import FILE
from dipgo.recipes.record import draw
from dipgo.registry import Registry
from tests.helpers.pipelines import stable_diffusion

FRESH = """
import sys, numpy, torch, diffusers, dipgo
from dipgo.recipes.record import draw
torch.set_num_threads(1)
pipe = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1])
with dipgo.accelerate(pipe, sys.argv[2]):
    numpy.save(sys.argv[3], draw(pipe, "a fox", 3, {"num_inference_steps": 6, "guidance_scale": 4.0}))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a pipeline, prompts, and a recipe that the command has learned."""
    folder = tmp_path_factory.mktemp("command")
    torch.manual_seed(0)
    stable_diffusion().save_pretrained(folder / "pipe")
    (folder / "prompts.txt").write_text("a fox\n\na dog\n")
    command = ["learn", "pipe", "--prompts", "prompts.txt", "-o", "recipe", "--budget", "0.5", "--steps", "6"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*command, "--guidance", "4"]) == 0
    return folder


def run(place, monkeypatch, capsys, *arguments):
    monkeypatch.chdir(place)
    status = main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_it_learns_into_a_folder(place):
    assert [path.name for path in (place / "recipe").iterdir()] == [FILE]
    recipe = Recipe.from_pretrained(place / "recipe")
    assert recipe.computed_calls == 3 and learned_with(recipe) == {"num_inference_steps": 6, "guidance_scale": 4.0}


def test_a_new_process_draws_the_same_picture(place):
    done = subprocess.run(
        [sys.executable, "-c", FRESH, "pipe", "recipe", "there.npy"],
        cwd=place,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    pipe = diffusers.DiffusionPipeline.from_pretrained(place / "pipe")
    with accelerate(pipe, place / "recipe"):
        here = draw(pipe, "a fox", 3, {"num_inference_steps": 6, "guidance_scale": 4.0})
    assert np.array_equal(np.load(place / "there.npy"), here)


def test_it_shows_checks_and_applies(place, monkeypatch, capsys):
    status, out, _ = run(place, monkeypatch, capsys, "show", "recipe", "--png", "map.png")
    assert status == 0 and "3 of 6 calls" in out and np.array(Image.open(place / "map.png")).shape == (8, 48, 3)
    status, out, _ = run(place, monkeypatch, capsys, "check", "pipe", "recipe")
    assert status == 0 and out.strip().endswith("fits")
    status, out, _ = run(place, monkeypatch, capsys, "check", "pipe", "recipe", "--scheduler", "PNDMScheduler")
    assert status == 1 and "does not fit: the recipe was made for the scheduler DDIMScheduler, but this is PNDM" in out
    status, out, _ = run(place, monkeypatch, capsys, "apply", "pipe", "recipe", "--prompt", "a fox", "-o", "fox.png")
    assert status == 0 and "3 of 6 calls" in out and Image.open(place / "fox.png").mode == "RGB"


def test_it_tells_drift(place, monkeypatch, capsys):
    command = ["drift", "pipe", "--prompts", "prompts.txt", "--store", "stored", "--steps", "6", "--guidance", "4"]
    assert [run(place, monkeypatch, capsys, *command)[0] for _ in range(2)] == [0, 0]
    status, _, err = run(place, monkeypatch, capsys, *command, "--recipe", "recipe")
    assert status == 1 and "have drifted: PSNR" in err


def test_it_compares(place, monkeypatch, capsys):
    some = {name: contestants.CONTESTANTS[name] for name in ("recipe", "held", "few steps")}
    monkeypatch.setattr("dipgo.recipes.compare.CONTESTANTS", some)
    status, out, _ = run(place, monkeypatch, capsys, "compare", "pipe", "recipe", "--prompts", "prompts.txt")
    assert status == 0
    for label in ("dense", "recipe", "its calls, held", "3 steps, DDIM", "3 steps, DPMSolverMultistep"):
        assert label in out


def test_a_comparison_holds_what_was_spent(place):
    pipe = diffusers.DiffusionPipeline.from_pretrained(place / "pipe")
    stock = pipe.scheduler
    found = compare(pipe, Recipe.from_pretrained(place / "recipe"), ["a cow", "a hen"], seed=7)
    rows = {row.label: row for row in found.rows}
    dense = rows["dense"].macs
    assert rows["recipe"].macs == rows["3 steps, DDIM"].macs == pytest.approx(dense / 2)
    assert rows["recipe"].quality["pictures"] == 2 and not rows["dense"].quality and pipe.scheduler is stock
    spread = [rows[f"evenly spread calls, {how}"] for how in ("held", "Taylor series of order 1")]
    assert all(row.macs == pytest.approx(dense / 2) for row in spread) and spread[0].quality != spread[1].quality
    (deepcache,) = (row for label, row in rows.items() if label.startswith("DeepCache, interval "))
    assert 0 < deepcache.macs <= dense / 2 * (1 + 1e-6) and deepcache.quality["pictures"] == 2
    (tuned,) = (row for label, row in rows.items() if label.startswith("3 steps, tuned: "))
    assert 0 < tuned.macs <= dense / 2 * (1 + 1e-6) and tuned.quality["pictures"] == 2


def test_a_contestant_is_one_entry_and_one_that_fails_says_why(place, monkeypatch):
    def fails(contest):
        yield contest.by("the recipe again", contest.recipe)
        raise DipgoError("it wants more")

    monkeypatch.setattr("dipgo.recipes.compare.CONTESTANTS", Registry("contestant", {"toy": fails}))
    pipe = diffusers.DiffusionPipeline.from_pretrained(place / "pipe")
    dense, again, failed = compare(pipe, Recipe.from_pretrained(place / "recipe"), ["a cow"]).rows
    assert (dense.label, again.label, failed.label) == ("dense", "the recipe again", "toy")
    assert again.quality and failed.reason == "not drawn: it wants more"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "nowhere"], "give a file that holds recipes"),
        (["check", "nowhere", "recipe"], "nowhere is no pipeline that can be read"),
        (["check", "pipe", "recipe", "--scheduler", "PNDM"], "diffusers has no scheduler 'PNDM'"),
        (["learn", "pipe", "--prompts", "none.txt", "-o", "new"], "none.txt: "),
        (["learn", "pipe", "--prompts", "prompts.txt", "-o", "prompts.txt"], "prompts.txt is a file"),
        (["learn", "pipe", "--prompts", "prompts.txt", "-o", "new", "--set", "eta"], "give NAME=VALUE"),
        (["learn", "pipe", "--prompts", "prompts.txt", "-o", "new", "--budget", "2"], "budget is 2.0"),
        (["apply", "pipe", "recipe", "--prompt", "a fox", "-o", "no/fox.png"], "no is no folder"),
        (["apply", "pipe", "recipe", "--prompt", "a fox", "-o", "x.png", "--steps", "7"], "for 6 timesteps"),
    ],
)
def test_bad_input_ends_in_one_line(place, monkeypatch, capsys, arguments, says):
    before = sorted(path.name for path in place.iterdir())
    status, _, err = run(place, monkeypatch, capsys, *arguments)
    assert status == 1 and says in err and len(err.strip().splitlines()) == 1
    assert sorted(path.name for path in place.iterdir()) == before


def test_json_prompts_hold_arguments_of_their_own(tmp_path, monkeypatch, capsys):
    from dipgo.recipes.command import _prompts

    (tmp_path / "p.json").write_text(json.dumps(["a fox", {"prompt": "a dog", "eta": 0.5}]))
    assert _prompts(tmp_path / "p.json") == ["a fox", {"prompt": "a dog", "eta": 0.5}]
