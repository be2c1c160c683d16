"""Recipes: they read back as they were written, and anything else is refused in one line."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import ROOT
from dipgo.errors import DipgoError
from dipgo.recipes import recipe as recipes
from dipgo.recipes.recipe import FILE, TENSORS, Recipe, RunForm, Target, load_recipes
from dipgo.schedule import Schedule


def made(calls: int = 4, **differs) -> Recipe:
    times = np.linspace(900.0, 1.0, calls)
    reuse = np.zeros((calls, 2), dtype=bool)
    reuse[1::2] = True
    coefficients = np.random.default_rng(0).normal(size=(calls, 2, 3, 2))
    target = Target("P", "unet", "U", {"width": 8}, "ab", "S", {"beta": 0.1, "kind": "linear"})
    parts = {
        "target": target,
        "form": RunForm(2, 1, tuple(times.tolist()), (4, 8, 8)),
        "schedule": Schedule(("a", "b"), reuse, coefficients, times),
        "graph": {"reads": [[], [0]], "output": [1], "bypassed": False},
        "rule": "recorded",
        "macs": {"full": (8e9, 4e9), "paper": (4e9, 2e9)},
        "quality": {"pictures": 4, "psnr": 31.5, "low": 30.0, "high": 33.0},
        "provenance": {"method": "recorded", "seed": 0},
    }
    return Recipe(**{**parts, **differs})


def test_it_reads_back(tmp_path):
    recipe = made()
    recipe.save_pretrained(tmp_path)
    back = Recipe.from_pretrained(tmp_path)
    assert back.to_dict() == recipe.to_dict() and back.digest == recipe.digest
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert "2 of 4 calls" in str(back) and "50.0% pruned" in str(back) and "31.50 dB" in str(back)


def test_many_coefficients_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "LARGE", 8)
    made().save_pretrained(tmp_path)
    assert Recipe.from_pretrained(tmp_path).digest == made().digest
    assert len((tmp_path / FILE).read_text()) < 3000
    (tmp_path / TENSORS).write_bytes(b"nothing")
    with pytest.raises(DipgoError, match=f"{TENSORS} beside it cannot be read"):
        load_recipes(tmp_path)
    from safetensors.numpy import save

    digest = made().schedule.digest
    (tmp_path / TENSORS).write_bytes(save({digest: made().schedule.coefficients + np.float32(1)}))
    with pytest.raises(DipgoError, match="restore both files together"):
        load_recipes(tmp_path)


def test_a_folder_holds_one_for_each_list_of_timesteps(tmp_path):
    for calls in (4, 6, 4):
        made(calls).save_pretrained(tmp_path)
    assert sorted(recipe.schedule.calls for recipe in load_recipes(tmp_path)) == [4, 6]
    assert Recipe.from_pretrained(tmp_path, calls=6).schedule.calls == 6
    with pytest.raises(DipgoError, match="holds 2 recipes"):
        Recipe.from_pretrained(tmp_path)


def _damaged(change):
    data = {"version": 1, "recipes": [made().to_dict()]}
    change(data, data["recipes"][0])
    return json.dumps(data)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda file, one: file.update(version=2), "its version is 2, but this dipgo reads 1"),
        (lambda file, one: file.update(version=True), "its version is True"),
        (lambda file, one: file.update(versoin=1), "unknown field of a file of recipes 'versoin'; did"),
        (lambda file, one: file.update(recipes=[]), "it holds no recipes"),
        (lambda file, one: file.update(recipes=[3]), "a recipe is a table, not a int"),
        (lambda file, one: one.update(shedule=1), "unknown field of a recipe 'shedule'; did you mean schedule"),
        (lambda file, one: one.pop("rule"), "a recipe needs the field 'rule'"),
        (lambda file, one: one["target"].pop("config"), "a recipe's target needs the field 'config'"),
        (lambda file, one: one["target"].update(denoiser=3), "target.denoiser must be a str, not 3"),
        (lambda file, one: one["form"].update(branches=True), "form.branches is True"),
        (lambda file, one: one["form"].update(grid=["1"]), "form.grid must be a list of numbers"),
        (lambda file, one: one["macs"].update(full=[1, 0]), "macs.full must be two positive numbers"),
        (lambda file, one: one["macs"].update(half=[1, 1]), "unknown field of a recipe's macs 'half'"),
        (lambda file, one: one["quality"].update(fid=1.0), "unknown field of a recipe's quality 'fid'"),
        (lambda file, one: one["quality"].update(psnr=float("nan")), "NaN is no number"),
        (lambda file, one: one["schedule"].pop("timesteps"), "needs the timestep of every call"),
        (lambda file, one: one["schedule"].update(reuse=["00"]), "coefficients have shape"),
        (lambda file, one: one["graph"].update(reads=[[], [1]]), "graph must list, for each of 2 sites"),
        (lambda file, one: one["graph"].update(bypassed=0), "graph.bypassed must be true or false"),
        (lambda file, one: one["graph"].update(streams=[[]]), "graph.streams must list, for each of 2 sites"),
        (lambda file, one: one["graph"].update(streams=[[], [["x", 0]]]), "graph.streams must list"),
    ],
)
def test_anything_else_is_refused_in_one_line(tmp_path, change, says):
    (tmp_path / FILE).write_text(_damaged(change))
    with pytest.raises(DipgoError) as refused:
        load_recipes(tmp_path)
    assert says in str(refused.value) and FILE in str(refused.value) and "\n" not in str(refused.value)


def test_numbers_without_bound_and_pickles_are_refused(tmp_path):
    text = _damaged(lambda file, one: one["quality"].update(psnr="HERE")).replace('"HERE"', "1e999")
    (tmp_path / FILE).write_text(text)
    with pytest.raises(DipgoError, match="not finite|beyond the range"):
        load_recipes(tmp_path)
    (tmp_path / FILE).write_bytes(pickle.dumps(made().to_dict()))
    with pytest.raises(DipgoError, match="not recipes"):
        load_recipes(tmp_path)
    with pytest.raises(DipgoError, match="give a file that holds recipes"):
        load_recipes(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("differs", "says"),
    [
        ({"pipeline": "Q"}, "made for the pipeline P, but this is Q"),
        ({"denoiser": "V"}, "made for the denoiser U, but this is V"),
        ({"scheduler": "T"}, "made for the scheduler S, but this is T"),
        ({"config": {"width": 9}}, "made for a U with width = 8, not 9"),
        ({"config": {"width": 8, "depth": 2}}, "made for a U with depth = None, not 2"),
        ({"scheduler_config": {"beta": 0.2, "kind": "linear"}}, "made for a S with beta = 0.1, not 0.2"),
        ({"weights": "cd"}, None),
    ],
)
def test_another_pipeline_is_named_with_both_sides(differs, says):
    target = made().target
    reason = target.misfit(replace(target, **differs))
    assert reason is None if says is None else says in reason


def test_another_run_is_named_with_both_sides():
    form = made().form
    assert form.misfit(form.grid, 2) is None and form.misfit((), None) is None
    assert "for 2 guidance branches in a call, but this run has 1" in form.misfit(form.grid, 1)
    assert "for 4 timesteps, but the scheduler is set to 3" in form.misfit(form.grid[:3], 2)
    assert "timestep 3 at 1, but the scheduler is set to 2" in form.misfit((*form.grid[:3], 2.0), 2)


def test_it_goes_to_the_hub_and_back(tmp_path, monkeypatch):
    import huggingface_hub

    calls = []

    class Api:
        def __init__(self, token=None):
            calls.append(token)

        def create_repo(self, repository, private, exist_ok):
            calls.append((repository, private, exist_ok))

        def upload_folder(self, repo_id, folder_path, commit_message):
            made().save_pretrained(tmp_path)
            calls.append((repo_id, Recipe.from_pretrained(folder_path).digest, commit_message))
            return "address"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert made().push_to_hub("me/recipe", token="t", commit_message="first") == "address"
    assert calls == ["t", ("me/recipe", None, True), ("me/recipe", made().digest, "first")]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: str(tmp_path))
    assert Recipe.from_pretrained("me/recipe").digest == made().digest


def test_a_recipe_is_read_without_torch():
    code = "import sys, dipgo.recipes.recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
