"""The harness: counting MACs, writing records, rendering tables, and the suite's own time around the pipeline's."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from benchmarks.machine.provenance import ROOT
from benchmarks.models.generate import Pictures
from benchmarks.models.shapes import without_weights
from benchmarks.specs import record
from benchmarks.speed.cases import CAPTION, GUIDANCE, Case, zoo
from benchmarks.supply.paper_configs import paper_model
from dipgo import count_costs, family_of, picture_seeds, trace_graph

PICTURES = 4
FEW = 2  # rounds of what takes seconds
RECORDS = ROOT / "tables" / "records"


def count(denoiser: torch.nn.Module) -> None:
    family = family_of(denoiser)
    inputs = family.probe(denoiser)
    count_costs(denoiser, trace_graph(denoiser, family.blocks(denoiser), inputs), inputs)


@pytest.mark.benchmark(group="harness: MACs")
def test_macs_of_the_zoo(timed):
    denoiser = zoo("emoji-sd").denoiser
    timed(lambda: count(denoiser), rounds=FEW)


@pytest.mark.benchmark(group="harness: MACs")
def test_macs_without_weights(timed):
    denoiser = without_weights(paper_model("sd15"))
    timed(lambda: count(denoiser), rounds=FEW)


@pytest.mark.benchmark(group="harness: records")
def test_record_written_and_read(timed, tmp_path):
    kept = record.read(next(RECORDS.glob("ours-0.80-*.json")))
    timed(lambda: record.read(record.write(kept, tmp_path, replace=True)))


@pytest.mark.benchmark(group="harness: rendering, from the command line")
def test_table_rendered(timed, tmp_path):
    command = [sys.executable, "-m", "tables", "render", "table8", "--out", str(tmp_path)]
    timed(lambda: subprocess.run(command, cwd=ROOT, check=True, capture_output=True), rounds=FEW)


@pytest.mark.benchmark(group="harness: pictures on disk, in turn with the stock pipeline's")
def test_pictures_made_by_the_suite(timed, benchmark, tmp_path):
    """Time pictures of the suite. `own_time` is its seconds / those of diffusers' pipeline for the same batch."""
    case, folders = zoo("emoji-sd"), (tmp_path / str(number) for number in itertools.count())
    stock = stock_pipeline(case)
    captions, seeds = [CAPTION] * PICTURES, picture_seeds(0, range(PICTURES))
    plan = case.plan("dense")

    def ours() -> list[Path]:
        return Pictures(next(folders), captions, seeds, GUIDANCE, PICTURES, "benchmark").make(case.model, plan)

    def theirs() -> None:
        folder = next(folders)
        folder.mkdir()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        pictures = stock(
            captions, num_inference_steps=case.sampler.steps, guidance_scale=GUIDANCE, generator=generators
        ).images
        for number, picture in enumerate(pictures):
            picture.save(folder / f"{number}.png")

    timed(ours, against=theirs)
    if "speedup" in benchmark.extra_info:
        benchmark.extra_info["own_time"] = 1 / benchmark.extra_info["speedup"]


def stock_pipeline(case: Case) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pipe(case.model.pipeline, scheduler=case.sampler.scheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
