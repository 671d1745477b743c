#!/usr/bin/env python
"""Wall time and peak memory of predicting a folder, beside nnU-Net's own command with the same model.

    python scripts/prediction_speed.py MODEL_FOLDER IMAGES --cases 60 --csv FILE

Both run on the CPU, with and without mirroring, one after the other. Memory is the proportional set size of the process
and all its children, sampled five times a second. The segmentations are compared voxel by voxel.
"""

import argparse
import csv
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import SimpleITK as sitk
import torch

import umamba_seg

SECONDS_BETWEEN_SAMPLES = 0.2


def tree_pss(process: psutil.Process) -> int:
    """Bytes of a process and its children; those that end meanwhile count as nothing."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total


def measure(words: list[str], log: Path) -> tuple[float, float]:
    """Seconds and peak PSS in GB of a command."""
    with log.open("w") as output:
        began = time.monotonic()
        process = psutil.Popen(words, stdout=output, stderr=subprocess.STDOUT)
        peak = 0
        while process.poll() is None:
            peak = max(peak, tree_pss(process))
            time.sleep(SECONDS_BETWEEN_SAMPLES)
        seconds = time.monotonic() - began
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}; see {log}")
    return seconds, peak / 1e9


def agreement(ours: Path, theirs: Path, ending: str) -> tuple[float, float]:
    """Share of equal voxels: of all together, and of the worst case."""
    equal, shares = [0, 0], []
    for path in sorted(theirs.glob(f"*{ending}")):
        one, other = (sitk.GetArrayFromImage(sitk.ReadImage(str(folder / path.name))) for folder in (ours, theirs))
        same = int((one == other).sum())
        equal = [equal[0] + same, equal[1] + one.size]
        shares.append(same / one.size)
    return equal[0] / equal[1], min(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--fold", default="0")
    parser.add_argument("--mirroring", nargs="+", choices=("off", "on"), default=["off", "on"])
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(variable, tempfile.gettempdir())  # nnU-Net asks for them, and needs none here
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "images").mkdir()
        chosen = sorted(args.images.iterdir())[: args.cases]
        for path in chosen:
            shutil.copy(path, work / "images")
        ending = "".join(chosen[0].suffixes)
        for mirroring in args.mirroring:
            flag = [] if mirroring == "on" else ["--disable_tta"]
            common = ["-i", str(work / "images"), "-m", str(args.model), "-f", args.fold, "-device", "cpu", *flag]
            found = {}
            for name, command in {
                "nnunet": ["nnUNetv2_predict_from_modelfolder"],
                "umamba_seg": ["umamba-seg", "predict"],
            }.items():
                output = work / f"{name}_{mirroring}"
                found[name] = measure([*command, *common, "-o", str(output)], work / f"{name}_{mirroring}.log")
            (their_seconds, their_gb), (seconds, gb) = found["nnunet"], found["umamba_seg"]
            equal, worst = agreement(work / f"umamba_seg_{mirroring}", work / f"nnunet_{mirroring}", ending)
            rows.append(
                {
                    "mirroring": mirroring,
                    "cases": len(chosen),
                    "nnunet_s": f"{their_seconds:.1f}",
                    "umamba_seg_s": f"{seconds:.1f}",
                    "ratio_s": f"{seconds / their_seconds:.3f}",
                    "nnunet_pss_gb": f"{their_gb:.2f}",
                    "umamba_seg_pss_gb": f"{gb:.2f}",
                    "ratio_pss": f"{gb / their_gb:.3f}",
                    "equal_voxels": f"{equal:.6f}",
                    "worst_case": f"{worst:.6f}",
                    "cores": len(os.sched_getaffinity(0)),
                    "machine": platform.machine(),
                    "torch": torch.__version__,
                    "numpy": np.__version__,
                    "umamba_seg": umamba_seg.__version__,
                }
            )
            print(rows[-1], flush=True)
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
