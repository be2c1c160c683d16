"""Trains the zoo on, in order: every model goes on from its checkpoint, or from the weights that users load.

    python -m benchmarks.zoo.training --work DIR                     train all that are not over, one after another
    python -m benchmarks.zoo.training --work DIR emoji-sd --minutes 90     train one model for so long
    python -m benchmarks.zoo.training --work DIR --sheets            draw DIR/samples.png and DIR/families.png
    python -m benchmarks.zoo.training --work DIR --install           replace the live weights by the checkpoints'

DIR keeps the pictures, the latents and the state of every run, so that a run that was interrupted goes on; what lasts
is in benchmarks/zoo/checkpoints.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from benchmarks.zoo.training import decoder, judge, mmdit
from benchmarks.zoo.training.common import CHECKPOINTS, ZOO
from benchmarks.zoo.training.denoisers import DIT, PIXART, SD, SD2
from benchmarks.zoo.training.distillations import BK_BASE, BK_SMALL, LCM, XL
from benchmarks.zoo.training.loop import load, train
from benchmarks.zoo.training.manifest import write_manifest
from benchmarks.zoo.training.pictures import prepare
from benchmarks.zoo.training.reference import write_reference
from benchmarks.zoo.training.samples import write_sheets
from dipgo.errors import unknown

# A student comes after its teacher.
QUEUE = (decoder.TRAINING, judge.TRAINING, SD, PIXART, DIT, mmdit.TRAINING, SD2, XL, LCM, BK_BASE, BK_SMALL)
ON_SHEET = (BK_BASE, BK_SMALL, SD2, LCM, PIXART, mmdit.TRAINING)


def install(work: Path) -> None:
    """Moves the checkpoints' weights into the live folders, renews what follows from them, and leaves the cards."""
    for training in QUEUE:
        weights = CHECKPOINTS / training.name / "model.safetensors"
        if training.install and weights.exists():
            model, card = load(training)
            training.install(work, model.eval(), card)
            weights.unlink()
    write_reference(work)
    write_sheets(work, ZOO, ON_SHEET)
    write_manifest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to train; all, where none is named")
    parser.add_argument("--work", type=Path, required=True, help="scratch folder for data and the runs' states")
    parser.add_argument("--minutes", type=float, help="how long each run lasts, instead of its usual time")
    parser.add_argument("--sheets", action="store_true", help="draw contact sheets of the newest weights into DIR")
    parser.add_argument("--install", action="store_true", help="replace the live weights by the checkpoints'")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    trainings = {training.name: training for training in QUEUE}
    for name in args.names:
        if name not in trainings:
            parser.error(str(unknown("training", name, trainings)))
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    prepare(args.work)
    if args.install:
        install(args.work)
    elif args.sheets:
        write_sheets(args.work, args.work, ON_SHEET)
    else:
        for name in args.names or trainings:
            train(trainings[name], args.work, args.minutes, CHECKPOINTS)


if __name__ == "__main__":
    main()
