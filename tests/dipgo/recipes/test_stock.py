"""Any stock pipeline: learn, save, accelerate in a new process with the same bits, and be refused where it misfits.

Each is tiny and random, and is made on the spot: Stable Diffusion's with several samplers, with an image, a mask or a
ControlNet; SD3's and FLUX's with flow matching; a video pipeline with two transformers.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import dipgo
from benchmarks import ROOT
from dipgo.errors import DipgoError
from dipgo.recipes.compare import learned_with
from dipgo.recipes.learn import NOISE_SEED
from dipgo.recipes.recipe import load_recipes
from dipgo.recipes.record import draw, psnr
from dipgo.sampling import picture_seeds
from tests.helpers.stock import STOCK

FRESH = """
import sys, numpy, torch, dipgo
from dipgo.recipes.record import draw
from tests.helpers.stock import STOCK
torch.set_num_threads(1)
for number, name in enumerate(STOCK):
    torch.manual_seed(0)
    stock = STOCK[name]()
    with dipgo.accelerate(stock.pipeline, f"{sys.argv[1]}/{number}"):
        picture = draw(stock.pipeline, {}, 3, {"num_inference_steps": 4, **stock.run})
    numpy.save(f"{sys.argv[1]}/{number}/there.npy", picture)
"""


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Each pipeline, the folder of the recipe that it has learned, and its run's arguments, by name."""
    folder, found = tmp_path_factory.mktemp("recipes"), {}
    for number, (name, make) in enumerate(STOCK.items()):
        torch.manual_seed(0)  # for what is random in it
        stock = make()
        run = {"num_inference_steps": 4, **stock.run}
        recipe = dipgo.learn(stock.pipeline, [{}, {}], 0.6, component=stock.component, **run)
        recipe.save_pretrained(folder / str(number))
        found[name] = stock, folder / str(number), run
    return found


def test_a_new_process_draws_the_same_bits(learned):
    places = [place for _, place, _ in learned.values()]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", FRESH, str(places[0].parent)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    for stock, place, run in learned.values():
        with dipgo.accelerate(stock.pipeline, place) as accelerated:
            here = draw(stock.pipeline, {}, 3, run)
        spent = accelerated.report()[stock.component]
        assert np.array_equal(np.load(place / "there.npy"), here)
        assert 0 < spent["calls_run"] < spent["calls"] and 0 < spent["macs"] < spent["macs_dense"]
        assert not np.array_equal(draw(stock.pipeline, {}, 3, run), here)  # the gates are off again


@pytest.mark.parametrize("name", STOCK)
def test_a_run_that_does_not_fit_is_refused_before_its_second_call_ends(learned, name):
    stock, place, run = learned[name]
    for others in stock.others:
        calls = []
        handle = stock.denoiser.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        try:
            with pytest.raises(DipgoError) as refused, dipgo.accelerate(stock.pipeline, place):
                draw(stock.pipeline, {}, 3, {**run, **others})
        finally:
            handle.remove()
        assert len(calls) < 2 and "\n" not in str(refused.value), others
    if stock.scheduler is not None:
        own, stock.pipeline.scheduler = stock.pipeline.scheduler, stock.scheduler
        try:
            with pytest.raises(DipgoError, match="was made for"), dipgo.accelerate(stock.pipeline, place):
                pass
        finally:
            stock.pipeline.scheduler = own


def test_arguments_that_a_recipe_cannot_hold_are_asked_for_in_one_line(learned):
    asked = 0
    for _, folder, run in learned.values():
        tensors = [name for name, value in run.items() if isinstance(value, torch.Tensor)]
        if not tensors:
            continue
        (recipe,) = load_recipes(folder)
        with pytest.raises(DipgoError, match=f"learned with .*{tensors[0]}.*; give them again") as refused:
            learned_with(recipe)
        assert "\n" not in str(refused.value)
        assert learned_with(recipe, **run).keys() == run.keys()
        asked += 1
    assert asked > 5


def test_what_is_learned_is_no_worse_than_holding(learned):
    """Wan's first transformer runs in few calls, whose fit is far worse than the last value."""
    stock, folder, run = learned["wan's first transformer"]
    (recipe,) = load_recipes(folder)
    seeds = picture_seeds(NOISE_SEED, range(2))  # the pictures that were learned from
    dense = [draw(stock.pipeline, {}, seed, run) for seed in seeds]
    found = []
    for each in (recipe, replace(recipe, schedule=replace(recipe.schedule, coefficients=None))):
        with dipgo.accelerate(stock.pipeline, each):
            drawn = [draw(stock.pipeline, {}, seed, run) for seed in seeds]
        found.append(np.mean([psnr(*pair) for pair in zip(drawn, dense, strict=True)]))
    assert found[0] >= found[1]


def test_branches_and_flow_are_recorded(learned):
    forms = {name: load_recipes(place)[0].form for name, (_, place, _) in learned.items()}
    assert (forms["plms"].branches, forms["plms"].calls_per_step) == (2, 1)
    assert (forms["flux"].branches, forms["flux"].calls_per_step) == (1, 1)
    assert (forms["flux with true guidance"].branches, forms["flux with true guidance"].calls_per_step) == (2, 2)
    assert (forms["wan's first transformer"].branches, forms["wan's first transformer"].calls_per_step) == (2, 2)
    assert forms["ddpm"].branches == 1 and forms["sd3"].latent == (4, 8, 8)


def test_both_transformers_are_gated_together(learned):
    stock, first, run = learned["wan's first transformer"]
    other, second, _ = learned["wan's second transformer"]
    with dipgo.accelerate(stock.pipeline, [*load_recipes(first), *load_recipes(second)]) as accelerated:
        draw(stock.pipeline, {}, 3, run)
    report = accelerated.report()
    assert report["transformer"]["runs"] == report["transformer_2"]["runs"] == 1
