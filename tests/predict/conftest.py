"""Models with random weights, for what does not depend on what they have learnt."""

import json
from pathlib import Path

import pytest
import torch


@pytest.fixture
def make_model(trained, tmp_path):
    """``make_model(labels=..., folds=2, mirroring=..., previous_stage=...)``: a model folder made from that of
    ``trained``. Extra keywords replace entries of its configuration.
    """

    def make(
        labels: dict | None = None,
        *,
        order: list[int] | None = None,
        folds: int = 1,
        mirroring: dict | None = None,
        name: str = "model",
        **configuration,
    ) -> Path:
        from umamba_seg.datasets.labels import Labels
        from umamba_seg.networks import build_from

        plans = json.loads((trained.model / "plans.json").read_text())
        description = json.loads((trained.model / "dataset.json").read_text())
        if labels is not None:
            description["labels"] = labels
            description.pop("regions_class_order", None)
            if order is not None:
                description["regions_class_order"] = order
        plan = plans["configurations"]["3d_fullres"]
        plan.update(configuration)
        if mirroring is not None:
            plan["mirroring"] = mirroring
        known = Labels.from_json(description, Path("dataset.json"))
        channels = len(description["channel_names"])
        if plan.get("previous_stage"):
            plans["configurations"][plan["previous_stage"]] = {**plan, "previous_stage": None}
            channels += len(known.values) - 1
        folder = tmp_path / name
        folder.mkdir()
        (folder / "plans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps(description))
        for fold in range(folds):
            torch.manual_seed(fold)
            network = build_from(plan["architecture"], input_channels=channels, num_classes=known.num_classes,
                                 deep_supervision=False)  # fmt: skip
            checkpoint = {
                "network_weights": network.state_dict(),
                "init_args": {"configuration": "3d_fullres", "fold": fold},
                "trainer_name": "nnUNetTrainer",
                "inference_allowed_mirroring_axes": (0, 1, 2),
            }
            (folder / f"fold_{fold}").mkdir()
            torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
        return folder

    return make
