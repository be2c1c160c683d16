"""The one training loop: it resumes an interrupted run, and writes a checkpoint from which another machine goes on."""

from __future__ import annotations

import copy
import io
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.zoo.training.common import CHECKPOINTS, write_json, write_weights
from dipgo.files import write_bytes

log = logging.getLogger(__name__)

WARM_UP, LOGGED, SAVE_SECONDS = 200, 100, 240
Card = dict[str, Any]


@dataclass(frozen=True)
class Training:
    """How one model is trained."""

    name: str
    """Name of the state file in the scratch folder and of the folder in ``checkpoints``."""
    minutes: float
    """Wall-clock time of one run. The learning rate rises and decays again within it."""
    rate: float
    """Peak of AdamW's learning rate."""
    build: Callable[[], nn.Module]
    """Returns the model as the very first run finds it; later runs start from the checkpoint."""
    objective: Callable[[Path, nn.Module], Callable[[float], Tensor]]
    """Takes the scratch folder and the model; returns the function from progress (0 to 1) to the loss of a batch."""
    measure: Callable[[Path, nn.Module], Card]
    """Takes the scratch folder and the averaged model; returns what a run's end is judged by."""
    install: Callable[[Path, nn.Module, Card], None] | None = None
    """Writes the model and its card into the zoo's live folder. None: another training's teacher, not shipped."""


def load(training: Training, checkpoints: Path = CHECKPOINTS) -> tuple[nn.Module, Card]:
    """Returns the model with its checkpoint's weights, and the card of all its runs.

    Where the checkpoint holds no weights (they are installed, or there was no run), the model is as it was built.
    """
    model, folder = training.build(), checkpoints / training.name
    if (folder / "model.safetensors").exists():
        model.load_state_dict(load_file(folder / "model.safetensors"))
    if (folder / "card.json").exists():
        return model, json.loads((folder / "card.json").read_text())
    return model, {"parameters": sum(p.numel() for p in model.parameters()), "runs": []}


def train(training: Training, work: Path, minutes: float | None = None, checkpoints: Path = CHECKPOINTS) -> None:
    """Trains until a run has lasted ``minutes`` and adds the run to the checkpoint's card.

    Starts from the checkpoint's averaged weights. Where ``work`` holds the state of a run, that run goes on with its
    optimiser; a run that is over stays as it is, unless ``minutes`` gives it more time.

    The updates are AdamW's with warm-up, linear decay and clipped gradients; weights are averaged with decay 0.999.
    """
    minutes = training.minutes if minutes is None else minutes
    model, card = load(training, checkpoints)
    weights = [p for p in model.parameters() if p.requires_grad]
    average = EMAModel(weights, decay=0.999, foreach=True)
    optimiser = torch.optim.AdamW(weights, training.rate, weight_decay=0.01, fused=True)
    run: Card = {"rate": training.rate, "updates": 0, "seconds": 0.0, "losses": [], "measured": {}}
    path = work / f"{training.name}.pt"
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        card, run = state["card"], state["run"]
    if run["seconds"] >= minutes * 60:
        log.info("%s: its run of %.0f s is over", training.name, run["seconds"])
        return
    torch.manual_seed(run["updates"])
    model.train()
    loss = training.objective(work, model)

    def keep() -> nn.Module:
        """Writes the run's state and the checkpoint; returns the averaged model."""
        averaged = copy.deepcopy(model).eval()
        average.copy_to([p for p in averaged.parameters() if p.requires_grad])
        state = {"model": model.state_dict(), "average": average.state_dict(), "card": card, "run": run}
        state["optimiser"] = optimiser.state_dict()
        torch.save(state, content := io.BytesIO())
        write_bytes(path, content.getvalue())
        folder = checkpoints / training.name
        write_weights(folder / "model.safetensors", averaged.state_dict())
        write_json(folder / "card.json", card | {"runs": [*card["runs"], run]})
        return averaged

    bar = tqdm(total=round(minutes * 60), initial=round(run["seconds"]), unit="s", mininterval=60)
    start, saved, recent = time.monotonic() - run["seconds"], run["seconds"], []
    while run["seconds"] < minutes * 60:
        progress = run["seconds"] / (minutes * 60)
        for group in optimiser.param_groups:
            group["lr"] = training.rate * min(1.0, (run["updates"] + 1) / WARM_UP) * max(0.01, 1 - progress)
        value = loss(progress)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        average.step(weights)
        run["updates"] += 1
        run["seconds"] = round(time.monotonic() - start, 1)
        recent.append(value.item())
        if run["updates"] % LOGGED == 0:
            run["losses"].append(round(sum(recent) / len(recent), 5))
            recent = []
            log.info("%s, update %d: loss %.4f", training.name, run["updates"], run["losses"][-1])
        if run["seconds"] - saved > SAVE_SECONDS:
            saved = run["seconds"]
            keep()
        bar.update(round(run["seconds"]) - bar.n)
    averaged = keep()
    run["measured"] = training.measure(work, averaged)
    log.info("%s: %s", training.name, run["measured"])
    keep()
