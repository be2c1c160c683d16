"""`python -m benchmarks pictures`: draws a few pictures of published records, to be looked at beside each other."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from baselines import Plan, method
from benchmarks.models import model as models
from benchmarks.models.generate import Pictures, image_paths, noise_seeds, pictures_at_once
from benchmarks.prepare.studio import RunStudio
from benchmarks.quality.fidelity import by_pairs, psnr
from benchmarks.runs.published import with_schedules_of
from benchmarks.specs import record
from benchmarks.specs.files import write_text
from benchmarks.specs.pictures import SHEETS, SIMILARITY, listed
from benchmarks.specs.record import Record
from benchmarks.specs.run import RunSpec
from benchmarks.supply.profiles import source
from dipgo import rollout
from dipgo.errors import DipgoError, first_line

log = logging.getLogger(__name__)

PROBED = ("sd-ddim-50", "sd2-dpm-25")
"""The dense runs whose features are compared between steps: DDIM on SD-1.5's shape and DPM-Solver++ on SD-2.1's."""


@dataclass(frozen=True)
class Gallery:
    """The records of a folder and the pictures of them that another folder keeps."""

    records: Path
    folder: Path
    """Holds a sheet a record, its pictures side by side, and two lists: of the sheets and of the similarities."""
    count: int
    """How many pictures a record gets."""

    @cached_property
    def known(self) -> dict[str, Record]:
        """The records by run id."""
        return {item.id: item for item in map(record.read, sorted(self.records.glob("*.json")))}

    def spec(self, name: str) -> RunSpec:
        """Return the run of a record, which follows the record's schedule where it would have to learn one."""
        return with_schedules_of(self.records, [RunSpec.from_json(self.known[name].spec)])[0]

    def plan(self, name: str) -> Plan:
        spec = self.spec(name)
        return method(spec.method).plan(RunStudio(spec, self.folder, self.plan).context())

    def check(self, spec: RunSpec) -> None:
        """Raise where the weights or prompts are others than those that were measured."""
        if source(spec.profile).revision(spec.to_json()) != spec.revision:
            raise DipgoError("the record was measured with other weights or prompts than those that are here")

    def draw(self, name: str, folder: Path) -> list[Path]:
        """Draw a run's pictures into a folder; return their paths."""
        spec, prompts = RunSpec.from_json(self.known[name].spec), self.known[name].spec["prompts"][-1]
        self.check(spec)
        captions = source(spec.profile).captions(prompts, spec.model)[: self.count]
        plan, seeds = self.plan(name), noise_seeds(spec, len(captions))
        batch = pictures_at_once(spec.resolution)
        return Pictures(folder / name, captions, seeds, spec.guidance, batch, name).make(models.load(spec), plan)

    def sheet(self, item: Record, folder: Path) -> dict[str, Any]:
        """Draw the sheet of a record; return its line in the list. `folder` keeps the single pictures meanwhile."""
        prompts, reference = item.spec["prompts"][-1], item.spec["reference"]
        paths = self.draw(item.id, folder)
        pictures = [Image.open(path) for path in paths]
        width, height = pictures[0].size
        sheet = Image.new("RGB", (width * len(pictures), height))
        for index, picture in enumerate(pictures):
            sheet.paste(picture, (width * index, 0))
        name = f"{item.id}-{item.digest}.png"
        sheet.save(self.folder / name)
        line = {"sheet": name, "prompts": prompts, "width": width, "height": height}
        line["captions"] = source(item.spec["profile"]).captions(prompts, item.spec["model"])[: self.count]
        if reference:
            dense = image_paths(folder / reference, len(paths))
            if not all(path.exists() for path in dense):
                dense = self.draw(reference, folder)
            line["psnr"] = [round(float(value), 2) for value in by_pairs(psnr, paths, dense)]
        return line

    @torch.no_grad()
    def similarity(self, name: str) -> dict[str, Any]:
        """Return how alike the features of the penultimate up block are between the calls of a dense run: the mean
        cosine over the pictures, calls x calls."""
        spec = RunSpec.from_json(self.known[name].spec)
        self.check(spec)
        model, features = models.load(spec), []
        captions = source(spec.profile).captions(spec.prompts[-1], spec.model)[: self.count]
        inputs = model.inputs_of(captions, noise_seeds(spec, len(captions)), spec.guidance)

        def keep(module: Any, given: Any, output: torch.Tensor) -> None:
            features.append(torch.nn.functional.normalize(output.flatten(1), dim=1))

        hook = model.denoiser.up_blocks[-2].register_forward_hook(keep)
        try:
            rollout(model.diffusion(model.sampler(spec.scheduler, spec.steps), spec.guidance), inputs)
        finally:
            hook.remove()
        calls = torch.stack(features, dim=1)  # pictures, calls, features
        cosine = (calls @ calls.transpose(1, 2)).mean(0)
        rows = [[round(value, 4) for value in row] for row in cosine.tolist()]
        return {"model": spec.model, "scheduler": spec.scheduler, "steps": spec.steps, "cosine": rows}

    def make(self, names: Sequence[str]) -> int:
        """Draw whatever is missing of some runs, or of all if none is named; return how many sheets there are.

        A record that cannot be drawn keeps the reason in its line of the list. A name without a record is ignored,
        since rows may not be measured yet.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = listed(self.folder / SHEETS)
        asked = [self.known[name] for name in names or self.known if name in self.known]
        todo = [item for item in asked if not self._whole(kept.get(item.file, {}))]
        todo.sort(key=lambda item: (item.spec["model"], item.id))  # a model is loaded once
        with TemporaryDirectory() as temporary:
            for item in tqdm(todo, desc="pictures", unit="record"):
                try:
                    kept[item.file] = self.sheet(item, Path(temporary))
                except (DipgoError, ValueError) as error:
                    kept[item.file] = {"absent": first_line(error)}
                write_text(self.folder / SHEETS, json.dumps(kept, indent=1) + "\n")
        probed = listed(self.folder / SIMILARITY)
        for name in PROBED:
            item = self.known.get(name)
            if item and item.file not in probed:
                try:
                    probed[item.file] = self.similarity(name)
                except DipgoError as error:
                    log.warning("%s: %s", name, error)
                write_text(self.folder / SIMILARITY, json.dumps(probed) + "\n")
        return sum("sheet" in line for line in kept.values())

    def _whole(self, line: Mapping[str, Any]) -> bool:
        """Tell whether a line of the list is of a sheet that is there and holds enough pictures."""
        return len(line.get("captions", ())) >= self.count and (self.folder / line["sheet"]).is_file()
