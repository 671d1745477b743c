#!/usr/bin/env python
"""Peak memory of predicting one large volume, by classes and slices.

    python scripts/prediction_memory.py MODEL_FOLDER --classes 3 60 --slices 320 640 --ram-gb 6 --csv FILE

The network of MODEL_FOLDER gets random weights and as many classes as asked for. The volume is 320x320 voxels in plane,
finer than the model's grid by a quarter, so that logits are resampled. Every run is a process of its own. --check also
computes the labels with all logits in one buffer and resampled in one block, and says whether they are equal.
"""

import argparse
import csv
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import umamba_seg
from umamba_seg.networks import build_from
from umamba_seg.predict.predictor import Predictor, _Runner
from umamba_seg.predict.resampling import Resampler
from umamba_seg.predict.results import Canvas
from umamba_seg.predict.window import Tiling, sweep

FINER = 0.8  # the volume's spacing, of the model's


def make_model(source: Path, target: Path, classes: int) -> None:
    plans = json.loads((source / "plans.json").read_text())
    description = json.loads((source / "dataset.json").read_text())
    description["labels"] = {"background": 0} | {f"organ {value}": value for value in range(1, classes)}
    (target / "fold_0").mkdir(parents=True)
    (target / "plans.json").write_text(json.dumps(plans))
    (target / "dataset.json").write_text(json.dumps(description))
    torch.manual_seed(0)
    channels = {"input_channels": len(description["channel_names"]), "num_classes": classes}
    network = build_from(plans["configurations"]["3d_fullres"]["architecture"], **channels, deep_supervision=False)
    checkpoint = {
        "network_weights": network.state_dict(),
        "init_args": {"configuration": "3d_fullres", "fold": 0},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(checkpoint, target / "fold_0" / "checkpoint_final.pth")


def make_volume(slices: int) -> np.ndarray:
    """(1, slices, 320, 320) of waves and noise, without a copy in another type."""
    rng = np.random.default_rng(0)
    volume = np.empty((1, slices, 320, 320), np.int16)
    plane = np.add.outer(np.sin(np.arange(320) / 20), np.cos(np.arange(320) / 30))
    for number in range(slices):
        volume[0, number] = 300 * (plane + np.sin(number / 25)) + rng.normal(0, 40, plane.shape) + 1000
    return volume


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def run(model: Path, slices: int, ram_gb: float, check: bool) -> dict:
    """In a process of its own: what one prediction takes, in GB."""
    predictor = Predictor.load(model, ["0"], "cpu", mirroring=False, ram_gb=ram_gb)
    spacing = [FINER * step for step in predictor.plans["configurations"]["3d_fullres"]["spacing"]]
    loaded = peak()
    volume = make_volume(slices)
    case = predictor.prepare(volume, spacing=spacing)
    del volume
    prepared = peak()
    prediction = predictor.segment(case)
    row = {
        "loaded_gb": loaded,
        "prepared_gb": prepared,
        "peak_gb": peak(),
        "labels": len(np.unique(prediction.segmentation)),
    }
    if check:
        row["equal_to_unchunked"] = bool((unchunked(predictor, case) == prediction.segmentation).all())
    return row


@torch.inference_mode()
def unchunked(predictor: Predictor, case) -> np.ndarray:
    tiling = Tiling(case.data.shape[1:], predictor._configuration.patch_size, predictor.step_size)
    shape = [tiling.shape[axis] for axis in tiling.order]
    classes = predictor.labels.num_classes
    logits = torch.empty(1, classes, *shape)
    sizes = {"members": 1, "classes": classes, "tiles_at_once": predictor.tiles_at_once}
    for first, planes in sweep(case.data, tiling, _Runner(predictor, "", 1), **sizes, device=torch.device("cpu")):
        logits[:, :, first : first + planes.shape[2]] = planes
    wanted = [int(case.properties["shape_after_cropping_and_before_resampling"][axis]) for axis in tiling.order]
    canvas = Canvas(
        predictor.labels, case.properties, tiling.order, predictor.plans_manager.transpose_backward,
        probabilities=False, entropy=False, disagreement=False, scratch=None,
    )  # fmt: skip
    for rows, group in Resampler(shape, wanted, None, wanted[0]).feed(0, logits):
        canvas.write(rows, group)
    return canvas.finish("", (), {}).segmentation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--classes", type=int, nargs="+", default=[3, 60])
    parser.add_argument("--slices", type=int, nargs="+", default=[320, 640])
    parser.add_argument("--ram-gb", type=float, default=6)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        print(json.dumps(run(args.model, args.child, args.ram_gb, args.check)))
        return
    rows = []
    for classes in args.classes:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model"
            make_model(args.model, model, classes)
            for slices in args.slices:
                # Only the first volume is checked: the whole buffer of the larger one does not fit everywhere.
                check = ["--check"] if args.check and slices == args.slices[0] else []
                words = [sys.executable, __file__, str(model), "--child", str(slices), "--ram-gb", str(args.ram_gb)]
                done = subprocess.run([*words, *check], check=True, stdout=subprocess.PIPE, text=True)
                facts = json.loads(done.stdout.splitlines()[-1])
                rows.append({"classes": classes, "slices": slices, "ram_gb": args.ram_gb} | facts)
                print(rows[-1], flush=True)
    versions = {"torch": torch.__version__, "umamba_seg": umamba_seg.__version__, "cores": os.cpu_count(),
                "machine": platform.machine()}  # fmt: skip
    if args.csv:
        names = list(dict.fromkeys(name for row in rows for name in row)) + list(versions)
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows({key: f"{value:.3f}" if isinstance(value, float) else value for key, value in row.items()}
                             | versions for row in rows)  # fmt: skip


if __name__ == "__main__":
    main()
