"""A report is one file without references to the outside, complete, escaped, and honest about what is missing."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from skimage.io import imsave

from umamba_seg import figures
from umamba_seg.datasets.synthetic import make_dataset
from umamba_seg.errors import UserError
from umamba_seg.report import Picture, ReportInput, write_report

NAN = float("nan")
LABELS = {"background": 0, "liver": 1, "kidneys": 2, "aorta": 3}
EPOCHS = 5
LOGGING = {
    **{key: [0.5, 0.4, 0.3, 0.2, 0.1] for key in ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice", "lrs")},
    "dice_per_class_or_region": [[0.5, NAN, 0.5]] * EPOCHS,
    "epoch_start_timestamps": [0.0, 60.0, 120.0, 180.0, 240.0],
    "epoch_end_timestamps": [60.0, 120.0, 180.0, 240.0, 4000.0],
}


def _summary(dice: dict[str, dict[str, float]], ending: str = ".nii.gz") -> dict:
    """nnU-Net's summary of case -> key -> Dice."""
    return {
        "foreground_mean": {"Dice": 0.1234},
        "metric_per_case": [
            {
                "reference_file": f"/data/labelsTr/{case}{ending}",
                "prediction_file": f"/data/validation/{case}{ending}",
                "metrics": {key: {"Dice": value} for key, value in scores.items()},
            }
            for case, scores in dice.items()
        ],
    }


@pytest.fixture
def report() -> ReportInput:
    """Everything but logging, summary and pictures."""
    statistics = dict.fromkeys(("mean", "median", "std", "min", "max", "percentile_00_5", "percentile_99_5"), 7.25)
    arguments = {"strides": [[1, 1, 1], [2, 2, 2]], "features_per_stage": [32, 64], "conv_bias": True}
    return ReportInput(
        title="A run",
        date="2026-02-03",
        fold=0,
        dataset_json={"channel_names": {"0": "MR"}, "labels": LABELS, "file_ending": ".nii.gz"},
        fingerprint={
            "spacings": [[3.0, 1.5, 1.25], [3.0, 1.5, 1.25], [9.0, 1.5, 1.25]],
            "shapes_after_crop": [[20, 36, 40], [22, 36, 41], [29, 36, 47]],
            "foreground_intensity_properties_per_channel": {"0": statistics},
        },
        plans={
            "dataset_name": "Dataset007_Synth",
            "plans_name": "Plans",
            "configurations": {
                "3d_fullres": {
                    "patch_size": [20, 36, 40],
                    "batch_size": 2,
                    "spacing": [3.0, 1.5, 1.25],
                    "normalization_schemes": ["ZScoreNormalization"],
                    "topology": {"strides": arguments["strides"], "features": [32, 64]},
                    "architecture": {"network_class_name": "umamba_seg.networks.UMamba", "arch_kwargs": arguments},
                },
                "3d_cascade_fullres": {"inherits_from": "3d_fullres", "batch_size": 11},
            },
            "umamba_seg": {
                "network": "umamba_bot",
                "training": {"optimizer": "SGD", "nested": {"epochs": 42}},
                "versions": {"nnunetv2": "2.8.1"},
            },
        },
        configuration="3d_fullres",
        cases={"training": 16, "validation": 4, "test": 8},
    )


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = tmp_path_factory.mktemp("raw")
    grid = {"shape": (40, 36, 20), "spacing": (1.5, 1.5, 3.0)}
    return make_dataset(raw, 7, "Synth", train_cases=4, test_cases=0, **grid, seed=0)


def _pictures(folder: Path, ending: str = ".nii.gz") -> list[Picture]:
    """Cases whose prediction is the reference."""
    return [
        Picture(
            label.name.removesuffix(ending),
            [folder / "imagesTr" / label.name.replace(ending, f"_0000{ending}")],
            label,
            label,
        )
        for label in sorted((folder / "labelsTr").iterdir())
    ]


def test_style_of_nnunets_plots_does_not_reach_the_report(report, tmp_path):
    import matplotlib

    plain = _page(report, tmp_path)
    with matplotlib.rc_context({"font.size": 40, "axes.facecolor": "red"}):
        assert _page(report, tmp_path) == plain
        assert matplotlib.rcParams["font.size"] == 40


def _page(report: ReportInput, tmp_path: Path) -> str:
    return write_report(report, tmp_path / "new" / "report.html").read_text(encoding="utf-8")


def test_a_full_report_stands_alone_and_shows_everything(report, volumes, tmp_path):
    scores = {f"synth_00{case}": {"1": 0.9 - case / 8, "2": 0.8, "3": NAN if case == 1 else 0.7} for case in range(4)}
    full = replace(
        report, logging=LOGGING, summary=_summary(scores), pictures=_pictures(volumes), parameters=12_345_678
    )
    page = _page(full, tmp_path)
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert len(sources) == 6, "three curves and three cases"
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in sources)
    assert "http" not in page
    assert "url(" not in page
    assert "<script" not in page
    for text in (*list(LABELS)[1:], "A run", "umamba_bot", "nnunetv2 2.8.1", "fold 0", "12,345,678", "0.123"):
        assert text in page
    for text in ("20×36×40 voxels", "ZScoreNormalization", "training: nested: epochs", "5 epochs in 1 h 7 min"):
        assert text in page
    for text in ("synth_000 – best", "synth_001 – median", "synth_003 – worst"):
        assert text in page, "synth_001 is not the worst for its missing class"


def test_undefined_dice_is_shown_and_counted_not_repaired(report, tmp_path):
    scores = {
        "a": {"1": 0.5, "2": NAN, "3": NAN},
        "b": {"1": NAN, "2": NAN, "3": NAN},
        "c": {"1": 0.25, "2": NAN, "3": 1.0},
    }
    page = _page(replace(report, summary=_summary(scores)), tmp_path)
    assert "6 of 9 scores are undefined" in page
    assert "nan" not in page.lower()
    rows = re.findall(r'<tr><th scope="row">([abc])</th><td class="number">([^<]*)', page)
    assert rows == [("a", "0.500"), ("c", "0.625"), ("b", "–")], "worst first, those without any Dice last"


def test_what_is_missing_is_said(report, tmp_path):
    page = _page(report, tmp_path)
    for text in (
        "so this report holds no scores",
        "so this report holds no curves",
        "so this report holds no pictures",
    ):
        assert text in page
    assert "<img" not in page


def test_text_is_escaped(report, tmp_path):
    attack = "<script>alert(1)</script>"
    labels = {"background": 0, f"liver{attack}": 1}
    hostile = replace(
        report,
        title=attack,
        plans={**report.plans, "dataset_name": f"Dataset001_{attack}"},
        dataset_json={**report.dataset_json, "labels": labels},
        summary=_summary({f'"><img src=x>{attack}': {"1": 0.5}}),
    )
    page = _page(hostile, tmp_path)
    assert "<script" not in page
    assert "<img" not in page
    assert "Dataset001_&lt;script&gt;" in page


def test_regions_and_ignore_label(report, volumes, tmp_path):
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    regional = replace(
        report,
        dataset_json={**report.dataset_json, "labels": labels, "regions_class_order": [1, 2]},
        summary=_summary({"synth_000": {"(1, 2)": 0.75, "2": 0.25}}),
        pictures=_pictures(volumes)[:1],
    )
    page = _page(regional, tmp_path)
    for text in ("region of 1, 2", "whole + core", "ignore (not annotated)", "0.750", "0.250"):
        assert text in page


def test_an_unknown_configuration_is_refused(report, tmp_path):
    with pytest.raises(UserError, match="-c 2d: not a configuration"):
        _page(replace(report, configuration="2d"), tmp_path)


def test_two_dimensional_data_has_two_axes(report, tmp_path):
    flat = make_dataset(tmp_path, 8, "Flat", train_cases=2, test_cases=0, shape=(64, 48), spacing=(1, 1), seed=0)
    page = _page(
        replace(
            report,
            dataset_json={**report.dataset_json, "file_ending": ".png"},
            fingerprint={**report.fingerprint, "shapes_after_crop": [[1, 48, 64]], "spacings": [[999, 1, 1]]},
            pictures=_pictures(flat, ".png"),
        ),
        tmp_path,
    )
    assert "999" not in re.sub('base64,[^"]*', "", page)
    assert page.count("<img") == 2


def test_colour_images_keep_their_colours(tmp_path):
    pixels = np.zeros((8, 10, 3), np.uint8)
    pixels[..., 0] = 200
    imsave(tmp_path / "rgb.png", pixels, check_contrast=False)
    imsave(tmp_path / "mask.png", np.ones((8, 10), np.uint8), check_contrast=False)
    volume = figures.read_volume(tmp_path / "rgb.png")
    np.testing.assert_array_equal(volume.array, pixels[None])
    assert figures.slices(tmp_path / "rgb.png", None, tmp_path / "mask.png", None, None).startswith("data:image/png")


def test_volumes_are_turned_to_the_patient(tmp_path):
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, tmp_path / "turned.nii.gz")
    volume = figures.read_volume(tmp_path / "turned.nii.gz")
    np.testing.assert_array_equal(volume.array, array[:, ::-1, ::-1])
    assert volume.spacing == pytest.approx((3.0, 2.0, 1.0))


def test_labels_of_another_grid_are_refused(volumes, tmp_path):
    sitk.WriteImage(sitk.Image(4, 5, 6, sitk.sitkUInt8), tmp_path / "small.nii.gz")
    image = volumes / "imagesTr" / "synth_000_0000.nii.gz"
    with pytest.raises(UserError, match=r"its grid 6×5×4 is not that of the image"):
        figures.slices(image, None, tmp_path / "small.nii.gz", None, None)


def test_a_missing_image_is_refused(report, volumes, tmp_path):
    picture = _pictures(volumes)[0]._replace(prediction=tmp_path / "none.nii.gz")
    with pytest.raises(UserError, match="no such file"):
        _page(replace(report, pictures=[picture]), tmp_path)


def test_neighbouring_labels_have_distinct_colours():
    colours = [figures.colour(label) for label in range(1, 40)]
    assert len(set(colours)) == len(colours)
    assert all(re.fullmatch("#[0-9a-f]{6}", text) for text in colours)


def test_says_where_the_time_of_training_steps_went(report, tmp_path):
    seconds = {"loader": 1.0, "forward_backward": 6.0, "step": 2.0, "other": 1.0, "all": 10.0}
    epoch = {f"seconds/{part}": value for part, value in seconds.items()}
    page = _page(replace(report, logging=LOGGING, epochs=[epoch] * EPOCHS), tmp_path)
    assert "Training steps: waiting for data 10%, forward and backward pass 60%, clipping and optimizer 20%" in page
