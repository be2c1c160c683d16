from __future__ import annotations

import json
import math
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch
from cleanfid.resize import make_resizer
from torchvision.transforms import Normalize

from baselines import deepcache
from benchmarks.drift import baseline, cases, check, command, repeats
from benchmarks.drift.cases import CASES
from benchmarks.drift.check import PIXELS, Finding
from benchmarks.models import generate
from benchmarks.models import model as models
from benchmarks.quality import features, fid, fidelity
from benchmarks.quality import score as quality
from benchmarks.quality.clip_score import ClipJudge
from benchmarks.runs import tasks
from dipgo import BlockGraph, Sampler, Schedule, picture_seeds
from dipgo.costs import Costs
from dipgo.errors import DipgoError
from dipgo.execute import gating
from dipgo.schedulers import SCHEDULERS

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="baseline and limits are of processors")


@pytest.fixture(scope="module")
def stored():
    """The baseline, with everything loaded and counted before any fault can touch it."""
    loaded = baseline.load()
    assert not [finding for finding in check.check(loaded, ["pruner", "dit"]) if finding.drifted]
    return loaded


def drifted(stored, *names):
    """The drifted metrics of cases, those of their stored pictures with the ending `, stored`."""
    return {
        finding.metric + finding.case.removeprefix(name)
        for name in names
        for finding in check.check(stored, [name])
        if finding.drifted
    }


def other_rows(patch, change):
    """The executor reads another schedule than the one it was given."""
    execute = BlockGraph.execute

    def execute_other(graph, schedule):
        reuse = change(schedule.reuse)
        reuse[0] = False
        return execute(graph, Schedule(schedule.sites, reuse))

    patch.setattr(BlockGraph, "execute", execute_other)


def first_row_skipped(patch):
    other_rows(patch, lambda reuse: np.concatenate([reuse[1:], reuse[-1:]]))


def sites_off_by_one(patch):
    other_rows(patch, lambda reuse: np.roll(reuse, 1, axis=1))


def coefficients_reversed(patch):
    combine = gating.combine
    patch.setattr(gating, "combine", lambda coefficients, past: combine(coefficients, past[::-1]))


def oldest_value_lost(patch):
    combine = gating.combine
    patch.setattr(gating, "combine", lambda coefficients, past: combine(coefficients, [*past[:-1], past[0]]))


def branches_of_coefficients_swapped(patch):
    combine = gating.combine

    def swapped(coefficients, past):
        return combine(coefficients.flip(-1) if coefficients.ndim == 2 else coefficients, past)

    patch.setattr(gating, "combine", swapped)


def deltas_read_as_outputs(patch):
    patch.setattr(gating, "add", lambda value, streams: value)


def conditioning(patch, change):
    """`change` takes the conditioning of a batch and gives another one."""
    condition = models.Model.condition
    patch.setattr(models.Model, "condition", lambda model, *given: change(dict(condition(model, *given))))


def text_rows(patch, change):
    """`change` takes the unconditional rows and the conditional ones."""

    def changed(given):
        return given | {"encoder_hidden_states": torch.cat(change(*given["encoder_hidden_states"].chunk(2)))}

    conditioning(patch, changed)


def branches_swapped(patch):
    text_rows(patch, lambda negative, positive: [positive, negative])


def negative_prompt_lost(patch):
    text_rows(patch, lambda negative, positive: [torch.zeros_like(negative), positive])


def captions_of_the_batch_rolled(patch):
    text_rows(patch, lambda negative, positive: [negative, positive.roll(1, 0)])


def classes_off_by_one(patch):
    conditioning(patch, lambda given: given | {"class_labels": (given["class_labels"] + 1).clamp(max=61)})


def padding_read(patch):
    conditioning(
        patch,
        lambda given: given | {"encoder_attention_mask": torch.ones_like(given["encoder_attention_mask"])},
    )


def guidance_a_little_off(patch):
    patch.setattr(models.Model, "branch_guidance", lambda model, guidance: 1.001 * guidance)


def timesteps_off_by_one(patch):
    scheduler = Sampler.scheduler

    def scheduler_off(sampler):
        made = scheduler(sampler)
        made.timesteps = made.timesteps - 1
        return made

    patch.setattr(Sampler, "scheduler", scheduler_off)


def solver(name, **settings):
    """The fault of another setting of a scheduler."""

    def fault(patch):
        kind, usual = SCHEDULERS[name]
        patch.setitem(SCHEDULERS.data, name, (kind, usual | settings))

    fault.__name__ = f"{name}_{'_'.join(settings)}"
    return fault


def another_solver(patch):
    patch.setitem(SCHEDULERS.data, "unipc", SCHEDULERS["dpm"])


def latents_in_half_precision(patch):
    rollout = generate.rollout

    def rollout_half(diffusion, inputs):
        return rollout(diffusion, replace(inputs, noise=inputs.noise.half())).float()

    patch.setattr(generate, "rollout", rollout_half)


def seeds_of_steps_rolled(patch):
    rollout = generate.rollout

    def rollout_rolled(diffusion, inputs):
        return rollout(diffusion, replace(inputs, seeds=[*inputs.seeds[1:], inputs.seeds[0]]))

    patch.setattr(generate, "rollout", rollout_rolled)


def noise_by_place_in_batch(patch):
    noise_of = models.initial_noise
    patch.setattr(models, "initial_noise", lambda seeds, shape: noise_of(picture_seeds(0, range(len(seeds))), shape))


def latents_scaled_a_little_off(patch):
    decode = models.Model.decode
    patch.setattr(models.Model, "decode", lambda model, latents: decode(model, 1.002 * latents))


def pictures_cut_to_whole_numbers(patch):
    write = generate._write_png
    patch.setattr(generate, "_write_png", lambda path, image: write(path, image - 0.5 / 255))


def red_and_blue_swapped(patch):
    write = generate._write_png
    patch.setattr(generate, "_write_png", lambda path, image: write(path, image.flip(0)))


def another_layer_cached(patch):
    runs = deepcache._runs
    patch.setattr(
        deepcache, "_runs", lambda name, layers, layer, is_down: runs(name, layers, layer + 1, is_down=is_down)
    )


DRAWING = [  # each changes pictures
    (first_row_skipped, "pruner"),
    (sites_off_by_one, "pruner"),
    (branches_swapped, "pruner"),
    (captions_of_the_batch_rolled, "pruner"),
    (coefficients_reversed, "ours+"),
    (oldest_value_lost, "ours+"),
    (branches_of_coefficients_swapped, "ours+"),
    (coefficients_reversed, "pixart+"),
    (padding_read, "pixart+"),
    (negative_prompt_lost, "ddim"),
    (guidance_a_little_off, "ddim"),
    (pictures_cut_to_whole_numbers, "ddim"),
    (solver("ddim", timestep_spacing="trailing"), "ddim"),
    (solver("dpm", solver_order=1), "dpm"),
    (timesteps_off_by_one, "dpm"),
    (solver("dpm", solver_type="heun"), "pixart"),
    (another_solver, "unipc"),
    (solver("unipc", solver_order=1), "unipc"),
    (seeds_of_steps_rolled, "lcm"),
    (noise_by_place_in_batch, "lcm"),
    (latents_in_half_precision, "lcm"),
    (latents_scaled_a_little_off, "lcm"),
    (red_and_blue_swapped, "dit"),
    (classes_off_by_one, "dit"),
    (solver("ddim", clip_sample=True), "dit"),
    (deltas_read_as_outputs, "dit-delta"),
    (another_layer_cached, "deepcache"),
]


def clip_normalised_otherwise(patch):
    judge = tasks._judge("embedded")
    preprocess = judge.preprocess
    normalise = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # ImageNet's, not the judge's
    assert isinstance(preprocess.transforms[-1], Normalize)
    patch.setattr(judge, "preprocess", type(preprocess)([*preprocess.transforms[:-1], normalise]))


def captions_of_the_next_picture(patch):
    scores = ClipJudge.scores
    patch.setattr(ClipJudge, "scores", lambda judge, images, own: scores(judge, images, [*own[1:], own[0]]))


def clip_scores_in_half_precision(patch):
    def scores(judge, images, captions):
        return (100 * (images.half() * judge.text_features(captions).half()).sum(dim=1)).numpy()

    patch.setattr(ClipJudge, "scores", scores)


def fid_resizes_otherwise(patch):
    size = (features.EFFLITE0_SIZE,) * 2
    wrong = replace(features.EFFLITE0, resize=make_resizer("PIL", False, "bilinear", size))
    patch.setitem(features.PROTOCOLS, "efflite0", wrong)


def features_in_half_precision(patch):
    made = fid.feature_set
    patch.setattr(quality, "feature_set", lambda values: made(values.astype(np.float16)))


def kid_counts_a_picture_with_itself(patch):
    patch.setattr(fid, "_mean_of_pairs", np.mean)


def psnr_three_decibels_up(patch):
    made = fidelity.psnr
    patch.setattr(fidelity, "psnr", lambda a, b: made(a, b) + 3)


def ssim_of_another_range(patch):
    made = fidelity.pytorch_msssim.ssim
    patch.setattr(fidelity.pytorch_msssim, "ssim", lambda *given, **named: made(*given, **named | {"data_range": 256}))


def rest_of_the_denoiser_free(patch):
    patch.setattr(Costs, "per_call", lambda costs, execution: execution.computed @ costs.sites)


def one_guidance_branch_counted(patch):
    count = cases.macs_cells
    patch.setattr(cases, "macs_cells", lambda plan, branches: count(plan, 1))


SCORING = [  # each changes what is said of the same pictures
    (clip_normalised_otherwise, "pruner", "clip_score, stored"),
    (captions_of_the_next_picture, "pruner", "clip_score, stored"),
    (clip_scores_in_half_precision, "pruner", "clip_score, stored"),
    (fid_resizes_otherwise, "pruner", "fid_efflite0, stored"),
    (features_in_half_precision, "pruner", "fid_efflite0, stored"),
    (kid_counts_a_picture_with_itself, "pruner", "kid_efflite0, stored"),
    (psnr_three_decibels_up, "pruner", "psnr, stored"),
    (ssim_of_another_range, "pruner", "ssim, stored"),
    (rest_of_the_denoiser_free, "pruner", "macs_full"),
    (one_guidance_branch_counted, "dpm", "macs_full"),
]


@pytest.mark.parametrize(("fault", "case"), DRAWING, ids=lambda value: getattr(value, "__name__", value))
def test_a_fault_in_drawing_is_found_by_the_pictures(fault, case, stored, monkeypatch):
    fault(monkeypatch)
    assert PIXELS in drifted(stored, case)


@pytest.mark.parametrize(("fault", "case", "metric"), SCORING, ids=lambda value: getattr(value, "__name__", value))
def test_a_fault_in_what_is_said_of_pictures_is_found_by_its_metric(fault, case, metric, stored, monkeypatch):
    fault(monkeypatch)
    found = drifted(stored, case)
    assert metric in found and PIXELS not in found


def test_a_clean_repeat_passes_at_another_batch_size(stored):
    findings = [
        replace(finding, limit=stored.limits[finding.case].get(finding.metric, 0.0))
        for finding in check.changes(stored, ["pruner", "ours+", "dit"], batch=3)
    ]
    assert findings and not [finding for finding in findings if finding.drifted]


def test_the_cases_cover_every_family_and_scheduler():
    specs = [case.spec for case in CASES.values()]
    assert {spec.scheduler for spec in specs} == set(SCHEDULERS)
    models_drawn = {spec.model for spec in specs}
    assert {"emoji-sd", "emoji-sd2", "emoji-xl-lcm", "emoji-dit", "emoji-pixart", "emoji-bk-small"} <= models_drawn


def test_every_score_has_limits_on_both_sides_and_no_fact_has_any(stored):
    for name, outcome in stored.outcomes.items():
        scored = {*outcome.scores, *outcome.distances}
        assert set(stored.limits[name]) == {PIXELS, *scored} and set(stored.limits[f"{name}, stored"]) == scored
    for change in (-2.0, 2.0):
        assert Finding("a", "psnr", change, change, change, 1.0).drifted
    assert not Finding("a", "psnr", 0.2, -0.9, 0.9, 1.0).drifted
    assert Finding("a", "psnr", 0.2, -0.9, 1.1, 1.0).drifted
    assert Finding("a", "psnr", math.nan, math.nan, math.nan, 1.0).drifted


def test_one_picture_among_many_and_a_fact_in_its_last_digits_are_found(stored):
    old = stored.outcomes["pruner"]
    pixels = old.pixels.copy()
    pixels[3, :8, :8] += 60
    facts = old.facts | {"macs_full": old.facts["macs_full"] * (1 + 1e-7), "timesteps": "999 1"}
    found = {
        finding.metric: replace(finding, limit=stored.limits["pruner"].get(finding.metric, 0.0))
        for finding in check.compare("pruner", replace(old, pixels=pixels, facts=facts), old)
    }
    assert {name for name, finding in found.items() if finding.drifted} == {PIXELS, "macs_full", "timesteps"}
    with pytest.raises(DipgoError, match="calls is not in both sides; renew"):
        next(
            x
            for x in check.compare("pruner", replace(old, facts={k: v for k, v in facts.items() if k != "calls"}), old)
            if x.metric == "none"
        )


def test_limits_are_a_multiple_of_the_most_that_any_repeat_reached(stored, monkeypatch):
    monkeypatch.setattr(baseline, "load", lambda folder: stored)
    seen = {"": [Finding("pruner", "psnr", 0, -0.2, 0.1)], "avx2": [Finding("pruner", "psnr", 0, -0.1, 0.5)]}
    monkeypatch.setattr(repeats, "_repeat", lambda folder, instructions, choices: seen[instructions])
    assert repeats.limits(None, {"": (), "avx2": ()}) == {"pruner": {"psnr": 0.5 * repeats.FACTOR}}


def options(**given):
    return Namespace(**{"update": False, "reason": None, "records": None} | given)


def test_the_command_fails_naming_case_metric_size_and_interval(monkeypatch, capsys):
    findings = [Finding("ours+", PIXELS, 0.1, 0.1, 0.1, 0.2), Finding("ours+", "psnr", 3.0, 2.5, 3.5, 0.1)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # which the command sets
    monkeypatch.setattr(command, "_side_by_side", lambda: findings)
    assert command.main(options()) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "1 of 2 have drifted" and len(lines) == 2
    assert "ours+" in lines[0] and "psnr" in lines[0] and "+3 [+2.5, +3.5]" in lines[0] and lines[0].endswith("DRIFT")
    monkeypatch.setattr(command, "_side_by_side", lambda: findings[:1])
    assert command.main(options()) == 0


def test_a_renewed_baseline_keeps_every_reason_and_knows_its_files(stored, tmp_path):
    for reason in ("first", "second"):
        baseline.store(stored, reason, tmp_path)
    data = json.loads((tmp_path / "baseline.json").read_text())
    assert [renewal["reason"] for renewal in data["renewals"]] == ["first", "second"]
    assert all({"date", "commit", "device", "packages"} <= set(renewal) for renewal in data["renewals"])
    again = baseline.load(tmp_path)
    for name, outcome in stored.outcomes.items():
        assert (again.outcomes[name].pixels == outcome.pixels).all()
        assert [finding.size for finding in check.compare(name, again.outcomes[name], outcome)] == [0.0] * len(
            [*outcome.scores, *outcome.distances, *outcome.facts, PIXELS]
        )
    pruner, plms = (next(tmp_path.glob(f"{name}-????????.png")) for name in ("pruner", "plms"))
    pruner.write_bytes(plms.read_bytes())
    with pytest.raises(DipgoError, match=r"pruner-[0-9a-f]{8}.png is not the file that baseline.json names; restore"):
        baseline.load(tmp_path)


def test_bad_input_is_named_and_changes_nothing(stored, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    before = (baseline.FOLDER / "baseline.json").read_bytes()
    for given, message in (
        ({"update": True}, "say it with --reason"),
        ({"update": True, "reason": " "}, "say it with --reason"),
        ({"reason": "why"}, "give it with --update"),
        ({"update": True, "reason": "why", "records": []}, "give one"),
    ):
        with pytest.raises(DipgoError, match=message):
            command.main(options(**given))
    assert (baseline.FOLDER / "baseline.json").read_bytes() == before
    with pytest.raises(DipgoError, match="no record of ours-0.80 in .*; make it with"):
        baseline.draw(tmp_path)
    with pytest.raises(DipgoError, match="no whole baseline in .*; restore"):
        baseline.load(tmp_path)
    with pytest.raises(DipgoError, match="has no case 'another'"):
        check.check(stored, ["another"])
    monkeypatch.setattr(baseline, "revisions", dict)
    with pytest.raises(DipgoError, match="are not those of the drift baseline"):
        baseline.load()
