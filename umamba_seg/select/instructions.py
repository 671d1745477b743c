"""What to run with the best model or ensemble, for people and for programs, in nnU-Net's two files."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from umamba_seg.files import write_json, write_text
from umamba_seg.select.crossval import Candidate, Model
from umamba_seg.select.postprocessing import FILE
from umamba_seg.train import TRAINER_NAME

INSTRUCTIONS, INFORMATION = "inference_instructions.txt", "inference_information.json"


def inference_commands(best: Candidate, folds: Sequence[int], *, postprocessed: bool) -> list[str]:
    """Of this command line, from a folder of images to the final segmentations."""
    how = ["-f", *folds]
    model = best.members[0]
    if len(best.members) > 1:
        models = [member.folder for member in best.members]
        commands = [["ensemble", "-m", *models, "--images", "INPUT_FOLDER", "-o", "OUTPUT_FOLDER", *how]]
    else:
        commands = [["predict", "-m", model.folder, "-i", "INPUT_FOLDER", "-o", "OUTPUT_FOLDER", *how]]
        if stage := model.planned().get("previous_stage"):
            before = model.folder.with_name(f"{TRAINER_NAME}__{model.plans}__{stage}")
            commands[0] += ["-prev_stage_predictions", "OUTPUT_FOLDER_PREV_STAGE"]
            commands.insert(0, ["predict", "-m", before, "-i", "INPUT_FOLDER", "-o", "OUTPUT_FOLDER_PREV_STAGE", *how])
    if postprocessed:
        commands.append(["postprocess", "-i", "OUTPUT_FOLDER", "-o", "OUTPUT_FOLDER_PP", "-pp", best.folder / FILE])
    return [shlex.join(["umamba-seg", *map(str, words)]) for words in commands]


def write_instructions(results: Path, best: Candidate, after: float, commands: Sequence[str]) -> str:
    """Write the commands for people, and return the text.

    Args:
        results: ``nnUNet_results/DATASET``.
        best: What was chosen.
        after: Its mean Dice after postprocessing.
        commands: See :func:`inference_commands`.
    """
    title = f"Best in cross-validation: {best.title}, mean Dice {best.dice:.4f} ({after:.4f} after postprocessing)."
    text = "\n\n".join([title, "Run", *commands]) + "\n"
    write_text(results / INSTRUCTIONS, text)
    return text


def write_information(
    results: Path, best: Candidate, after: float, candidates: Sequence[Candidate], **others: Any
) -> dict[str, Any]:
    """Write what was found for programs, under nnU-Net's names and with ``others`` beside them, and return it."""

    def described(model: Model) -> dict[str, str]:
        return {
            "configuration": model.configuration,
            "trainer": TRAINER_NAME,
            "plans_identifier": model.plans,
            "model_folder": str(model.folder),
        }

    content = {
        "dataset_name_or_id": results.name,
        "considered_models": [described(one.members[0]) for one in candidates if len(one.members) == 1],
        "all_results": {candidate.name: candidate.dice for candidate in candidates},
        "best_model_or_ensemble": {
            "name": best.name,
            "result_on_crossval_pre_pp": best.dice,
            "result_on_crossval_post_pp": None if math.isnan(after) else after,
            "postprocessing_file": str(best.folder / FILE),
            "some_plans_file": str(best.folder / "plans.json"),
            "selected_model_or_models": [described(model) for model in best.members],
        },
    } | others
    write_json(results / INFORMATION, content)
    return content
