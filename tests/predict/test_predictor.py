"""Mirrored tiles in pairs; the whole of prediction is in test_pipeline.py."""

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from umamba_seg.predict.predictor import Predictor


@pytest.mark.parametrize(("axes", "mirroring"), [((0, 1, 2), True), ((1,), True), ((0, 1, 2), False), (None, True)])
def test_mean_over_mirrored_tiles_is_nnunets(axes, mirroring):
    predictors = []
    for kind in (Predictor, nnUNetPredictor):
        predictor = kind(device=torch.device("cpu"), use_mirroring=mirroring)
        torch.manual_seed(0)
        predictor.network = torch.nn.Conv3d(1, 2, 3, padding=1)
        predictor.allowed_mirroring_axes = axes
        predictors.append(predictor)
    x = torch.randn(1, 1, 4, 5, 6)
    ours, theirs = (predictor._internal_maybe_mirror_and_predict(x.clone()) for predictor in predictors)
    torch.testing.assert_close(ours, theirs)
