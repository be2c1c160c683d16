"""The README's examples are code that runs."""

from __future__ import annotations

import re
import shlex

import pytest
import torch

from benchmarks import ROOT
from dipgo import FAMILIES, Diffusion, Inputs, Sampler, Schedule, family_of, gated, initial_noise, rollout, trace_graph
from tests.conftest import SD_SCHEDULER

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def block_with(text: str) -> str:
    """Return the block of Python code that holds a text."""
    blocks = (block for page in PAGES for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    return next(block for block in blocks if text in block)


def test_the_pipeline_of_the_readme_is_accelerated_in_a_few_lines(tmp_path, monkeypatch, capsys):
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.chdir(tmp_path)
    code = block_with("dipgo.learn(")
    exec(
        compile(code.replace('"num_inference_steps": 20', '"num_inference_steps": 8'), "README.md", "exec"), names := {}
    )
    assert names["recipe"].schedule.calls == 9 and len(names["images"]) == 1  # PLMS calls twice at its second timestep
    assert (tmp_path / "my-recipe" / "dipgo_recipe.json").is_file() and "calls" in capsys.readouterr().out


def test_the_commands_of_the_pages_have_the_flags_that_are_shown():
    from dipgo.__main__ import _parser

    lines = re.findall(r"^dipgo (.+?)(?: +#.*)?$", PAGES[PAGES.index(ROOT / "docs" / "library.md")].read_text(), re.M)
    assert len(lines) == 5
    for line in lines:
        _parser().parse_args(shlex.split(line))


def test_a_schedule_made_by_hand_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    names: dict = {}
    exec(compile(block_with("gated("), "library.md", "exec"), names)
    ratio, share = map(float, capsys.readouterr().out.split())
    assert 0.4 < ratio < 0.5 and share == 1
    assert torch.isfinite(names["latents"]).all()
    assert names["trace"].ran.sum() == 26


def test_the_readme_is_short_and_every_link_of_the_pages_leads_to_a_file():
    assert len(PAGES[0].read_text().split()) <= 900
    for page in PAGES:
        for link in re.findall(r"\]\((.*?)\)", page.read_text()):
            assert link.startswith("http") or (page.parent / link.partition("#")[0]).exists(), f"{page.name}: {link}"


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
