"""The README's examples are code that runs."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks import ROOT
from dipgo import FAMILIES, Diffusion, Inputs, Sampler, Schedule, family_of, gated, initial_noise, rollout, trace_graph
from tests.conftest import SD_SCHEDULER


def block_with(text: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return next(block for block in blocks if text in block)


def test_the_example_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    names: dict = {}
    exec(compile(block_with("gated("), "README.md", "exec"), names)
    ratio, share = map(float, capsys.readouterr().out.split())
    assert 0.4 < ratio < 0.5 and share == 1
    assert torch.isfinite(names["latents"]).all()
    assert names["trace"].ran.sum() == 26


@pytest.mark.parametrize("unit", ["output", "delta"])
@torch.no_grad()
def test_the_model_that_the_readme_adds_can_be_pruned(monkeypatch, unit):
    section = block_with("FAMILIES.append(")
    assert len([line for line in section.splitlines() if line.strip()]) < 30
    monkeypatch.setattr("dipgo.FAMILIES", families := FAMILIES.copy())
    exec(compile(section, "README.md", "exec"), {"torch": torch})
    added = families[-1]
    monkeypatch.setattr("dipgo.families.FAMILIES", families)
    torch.manual_seed(0)
    unet = added.tiny()
    assert family_of(unet) is added
    graph = trace_graph(unet, added.sites(unet, unit), added.probe(unet))
    sampler, noise = Sampler("ddim", SD_SCHEDULER, 8), initial_noise([0], (3, 8, 8))
    reuse = torch.rand(8, len(graph.sites)) < 0.5
    reuse[0] = False
    pictures = []
    for gates in (Schedule(graph.sites, reuse.numpy()), reuse.float(), torch.zeros(reuse.shape)):
        with gated(unet, graph, gates):
            pictures.append(rollout(Diffusion(unet, sampler, 1.0), Inputs(noise, added.condition(None, [""], 1.0))))
    hard, soft, dense = pictures
    torch.testing.assert_close(hard, soft)
    assert (hard - dense).abs().max() > 1e-3
