"""The verb ``evaluate`` on folders: what it writes and prints, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator

import nibabel
import numpy as np
import pytest
import tifffile
from skimage import io

from umamba_seg.errors import UserError
from umamba_seg.evaluate import folder
from umamba_seg.evaluate.protocols import PROTOCOLS
from umamba_seg.evaluate.results import evaluate_segmentations, read_case_metrics

LABELS = {"background": 0, "left": 1, "right": 2}


def save(path, array, spacing=(1, 1, 3), origin=(0, 0, 0)):
    """(x, y, z) as NIfTI."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    nibabel.save(nibabel.Nifti1Image(np.asarray(array, np.uint8), affine), path)


@pytest.fixture
def folders(tmp_path):
    """References and predictions of three cases; in b the right one is missed, in c nobody has it."""
    references, predictions = tmp_path / "references", tmp_path / "predictions"
    references.mkdir()
    predictions.mkdir()
    for name in "abc":
        reference = np.zeros((8, 9, 4), int)
        reference[1:4, 2:5, 1:3] = 1
        if name != "c":
            reference[5:7, 5:8, 1:3] = 2
        prediction = np.roll(reference, 1, axis=0)
        prediction[prediction == (2 if name == "b" else -1)] = 0
        save(references / f"{name}.nii.gz", reference)
        save(predictions / f"{name}.nii.gz", prediction)
    (predictions / "dataset.json").write_text(json.dumps({"labels": LABELS, "file_ending": ".nii.gz"}))
    return references, predictions


def evaluate(umamba_seg, folders, *words):
    return umamba_seg("evaluate", *folders, "-np", 1, *words)


def test_files_and_result(folders, umamba_seg):
    done = evaluate(umamba_seg, folders, "--json").succeeded()
    predictions = folders[1]
    assert set(os.listdir(predictions)) >= {"summary.json", "metrics.json", "metrics.csv"}
    assert done.result["summary"] == str(predictions / "summary.json")
    assert done.result["metrics"] == str(predictions / "metrics.json")
    assert done.result["table"] == str(predictions / "metrics.csv")
    assert done.result["protocol"] == "nnunet"
    dice = (2 / 3 + (1 / 2 + 0) / 2) / 2
    assert done.result["foreground_mean"]["Dice"] == pytest.approx(dice)
    assert done.result["overall"]["dice"]["mean"] == pytest.approx(dice)
    assert json.loads((predictions / "metrics.json").read_text())["settings"]["references"] == str(folders[0])


def test_table(folders, umamba_seg):
    out = evaluate(umamba_seg, folders, "--metrics", "dice, hd95").succeeded().out
    lines = [line.split() for line in out.splitlines()]
    assert ["dice", "left", "0.6667", "0.6667", "0.6667", "0.6667", "0.6667", "0.6667", "3", "0", "0"] in lines
    assert ["hd95", "(mm)", "right", "1.0000", "nan", "nan", "1.0000", "1.0000", "1.0000", "1", "1", "1"] in lines
    assert ["right", "3", "1", "1", "0"] in lines
    assert "protocol nnunet: Dice and IoU as nnunetv2 2.8.1" in out
    assert "hd95 of an empty mask: both empty nan, missed inf, invented inf" in out
    assert "percentile bootstrap over cases" in out


def test_the_protocol_stands_below_the_table(folders, umamba_seg):
    out = evaluate(umamba_seg, folders, "--protocol", "segmamba_brats").succeeded().out
    assert "protocol segmamba_brats: ge-xing/SegMamba @cff3597" in out
    assert "* Dice is 0 and HD95 is 50 wherever a mask is empty" in out
    assert "hd95 (px)" in out
    assert json.loads((folders[1] / "metrics.json").read_text())["protocol"]["name"] == "segmamba_brats"


def test_another_name_for_the_summary(folders, umamba_seg, tmp_path):
    for name, metrics in (("summary_x.json", "metrics_x"), ("s.json", "s_metrics")):
        evaluate(umamba_seg, folders, "-o", tmp_path / name, "--metrics", "dice").succeeded()
        assert (tmp_path / f"{metrics}.json").is_file()
        assert (tmp_path / f"{metrics}.csv").is_file()


def test_processes_change_nothing(folders, umamba_seg):
    evaluate(umamba_seg, folders).succeeded()
    alone = (folders[1] / "metrics.json").read_text(), (folders[1] / "summary.json").read_text()
    umamba_seg("evaluate", *folders, "-np", 2).succeeded()
    assert ((folders[1] / "metrics.json").read_text(), (folders[1] / "summary.json").read_text()) == alone


def test_torch_is_not_loaded(folders):
    code = "import sys; from umamba_seg.__main__ import main; code = main(sys.argv[1:]); "
    code += "assert 'torch' not in sys.modules and 'nnunetv2' not in sys.modules; sys.exit(code)"
    words = ["evaluate", *map(str, folders), "-np", "1"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_pictures(tmp_path, umamba_seg):
    picture = np.zeros((20, 30), np.uint8)
    picture[5:10, 5:10] = 1
    for name in ("references", "predictions"):
        (tmp_path / name).mkdir()
        io.imsave(tmp_path / name / "a.png", picture, check_contrast=False)
    description = {"labels": {"background": 0, "x": 1}, "file_ending": ".png"}
    (tmp_path / "predictions" / "dataset.json").write_text(json.dumps(description))
    both = (tmp_path / "references", tmp_path / "predictions")
    assert evaluate(umamba_seg, both, "--json").succeeded().result["overall"]["assd"]["mean"] == 0
    io.imsave(both[1] / "a.png", np.dstack([picture] * 3), check_contrast=False)
    refused = evaluate(umamba_seg, both)
    assert refused.code == 2
    assert "a.png: has 3 channels; save labels with one number per voxel" in refused.err


def test_spacing_is_the_references_and_headers_that_differ_are_named(folders, umamba_seg):
    predictions = folders[1]
    array = np.asarray(nibabel.load(predictions / "a.nii.gz").dataobj)
    save(predictions / "a.nii.gz", array, spacing=(2, 2, 2), origin=(0, 0, 5))
    done = evaluate(umamba_seg, folders, "--metrics", "hd95").succeeded()
    assert "a (spacing 2×2×2 instead of 1×1×3, origin (0, 0, 5) instead of (0, 0, 0)" in done.err
    assert "headers of predictions differ from their references', whose spacing is used: a" in done.out
    assert json.loads((predictions / "metrics.json").read_text())["cases"][0]["classes"]["left"]["hd95"] == 1


def test_values_without_a_label_are_named(folders, umamba_seg):
    array = np.asarray(nibabel.load(folders[1] / "b.nii.gz").dataobj).copy()
    array[0, 0, 0] = 9
    save(folders[1] / "b.nii.gz", array)
    done = evaluate(umamba_seg, folders).succeeded()
    assert "values that dataset.json does not name count as background: b (9)" in done.err
    assert "values without a label count as background: b" in done.out


def broken_shape(references, predictions):
    save(predictions / "b.nii.gz", np.zeros((8, 9, 5)))


def broken_file(references, predictions):
    content = (references / "b.nii.gz").read_bytes()
    (references / "b.nii.gz").write_bytes(content[: len(content) // 2])


def broken_numbers(references, predictions):
    affine = np.diag([1.0, 1, 3, 1])
    nibabel.save(nibabel.Nifti1Image(np.full((8, 9, 4), 0.5, np.float32), affine), predictions / "b.nii.gz")


def missing(references, predictions):
    (predictions / "b.nii.gz").unlink()


def unknown(references, predictions):
    (references / "b.nii.gz").unlink()


def hidden(references, predictions):
    save(predictions / "._b.nii.gz", np.zeros((2, 2, 2)))


def none(references, predictions):
    for path in predictions.glob("*.nii.gz"):
        path.unlink()


def two(references, predictions):
    broken_shape(references, predictions)
    save(predictions / "a.nii.gz", np.zeros((1, 2, 3)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken_shape, "predictions/b.nii.gz: has the shape 5×9×8, its reference 4×9×8; compare segmentations of one"),
        (broken_file, "references/b.nii.gz: its compressed data is damaged or cut short"),
        (broken_numbers, "predictions/b.nii.gz: holds numbers that are not whole; give labels"),
        (missing, "predictions: predictions of b are missing; predict them, or --chill"),
        (unknown, "references: holds no reference for b"),
        (hidden, "predictions: nnU-Net would take hidden files for cases: ._b.nii.gz"),
        (none, "predictions: holds no files ending in .nii.gz"),
        (two, "predictions: 2 of 3 cases cannot be measured; mend these:\n  "),
    ],
)
def test_what_cannot_be_compared_is_refused(folders, umamba_seg, damage, message):
    damage(*folders)
    done = evaluate(umamba_seg, folders)
    assert done.code == 2
    assert message in done.err
    assert not (folders[1] / "metrics.json").exists()


def test_all_broken_cases_are_named(folders, umamba_seg):
    two(*folders)
    err = evaluate(umamba_seg, folders).err
    assert "a.nii.gz: has the shape 3×2×1" in err
    assert "b.nii.gz: has the shape 5×9×8" in err


def test_missing_cases_may_be_left_out(folders, umamba_seg):
    missing(*folders)
    done = evaluate(umamba_seg, folders, "--chill", "--json").succeeded()
    assert json.loads((folders[1] / "metrics.json").read_text())["counts"]["left"]["cases"] == 2
    assert done.result["mean"]["1"]["Dice"] == pytest.approx(2 / 3)
    assert json.loads((folders[1] / "metrics.json").read_text())["settings"]["missing"] == ["b"]
    assert "1 cases were not predicted and are left out: b" in done.err
    assert "1 cases were not predicted and left out: b" in evaluate(umamba_seg, folders, "--chill").succeeded().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--metrics", "dice,surface"), "--metrics surface: no such metric"),
        (("--protocol", "umamba_cells"), "--protocol umamba_cells: counts cells, not classes; add --instances"),
        (("--protocol", "umamba"), "--protocol umamba: no such protocol"),
        (("--protocol", "umamba_abdomen"), "--protocol umamba_abdomen: has no tolerance for left, right"),
        (("--protocol", "nnmamba", "--metrics", "dice"), "--metrics: the protocol nnmamba measures dice, nsd@0.5px"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_read(folders, umamba_seg, words, message):
    broken_file(*folders)
    done = evaluate(umamba_seg, folders, *words)
    assert done.code == 2
    assert message in done.err


def test_help_names_every_protocol(umamba_seg):
    shown = " ".join(umamba_seg("evaluate", "--help").out.split())
    assert all(name in shown for name in PROTOCOLS)


def test_a_worker_that_is_killed(monkeypatch):
    monkeypatch.setattr(folder, "_score", os._exit)
    message = "-np: one of 2 worker processes was killed, most likely for want of memory.*__name__ == '__main__'"
    with pytest.raises(UserError, match=message):
        list(folder._run([9, 9], 2))  # type: ignore[list-item]


def test_ctrl_c_gives_up_what_waits(monkeypatch):
    monkeypatch.setattr(folder, "_score", time.sleep)
    run = folder._run([0, *[0.5] * 20], 2)  # type: ignore[list-item]
    assert isinstance(run, Generator)
    next(run)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run.throw(KeyboardInterrupt)
    assert time.monotonic() - start < 2


def test_workers_leave_ctrl_c_to_their_parent(monkeypatch):
    monkeypatch.setattr(folder, "_score", signal.getsignal)
    assert list(folder._run([signal.SIGINT] * 2, 2)) == [signal.SIG_IGN] * 2  # type: ignore[list-item]


def test_an_image_is_no_segmentation(folders, umamba_seg):
    affine = np.diag([1.0, 1, 3, 1])
    image = np.arange(8 * 9 * 4, dtype=np.int16).reshape(8, 9, 4) * 3
    nibabel.save(nibabel.Nifti1Image(image, affine), folders[1] / "b.nii.gz")
    done = evaluate(umamba_seg, folders)
    assert done.code == 2
    assert "b.nii.gz: holds no labels: more than 20 values that have no name, such as " in done.err
    assert len(done.err) < 400


def test_without_a_description(folders, umamba_seg):
    references, predictions = folders
    description = predictions / "dataset.json"
    description.rename(references / "dataset.json")
    done = evaluate(umamba_seg, folders)
    assert done.code == 2
    assert f"predictions: holds no dataset.json, but {references} does: it looks as if the two were swapped" in done.err
    (references / "dataset.json").rename(references.parent / "dataset.json")
    done = evaluate(umamba_seg, folders)
    assert "holds no dataset.json; name that of the data set with `evaluate -djfile FILE`" in done.err
    evaluate(umamba_seg, folders, "-djfile", references.parent / "dataset.json").succeeded()


def test_an_empty_folder(folders, umamba_seg, tmp_path):
    (tmp_path / "empty").mkdir()
    done = evaluate(umamba_seg, (folders[0], tmp_path / "empty"))
    assert done.code == 2
    assert "empty: this folder is empty; name the folder of segmentations" in done.err


def test_the_interval_of_one_case_says_nothing(folders, umamba_seg):
    for name in "bc":
        (folders[1] / f"{name}.nii.gz").unlink()
    out = evaluate(umamba_seg, folders, "--metrics", "dice", "--chill").succeeded().out
    lines = [line.split() for line in out.splitlines()]
    assert ["dice", "left", "0.6667", "–", "–", "0.6667", "0.6667", "0.6667", "1", "0", "0"] in lines


def test_tiff_volumes_have_no_spacing(tmp_path, umamba_seg):
    for name in ("references", "predictions"):
        (tmp_path / name).mkdir()
        volume = np.zeros((4, 20, 30), np.uint8)
        volume[1:3, 5:10, 5:10] = 1
        tifffile.imwrite(tmp_path / name / "a.tif", volume, photometric="minisblack")
    description = {"labels": {"background": 0, "x": 1}, "file_ending": ".tif"}
    (tmp_path / "predictions" / "dataset.json").write_text(json.dumps(description))
    both, note = (tmp_path / "references", tmp_path / "predictions"), "TIFF volumes have no spacing: it is taken as 1"
    assert note in evaluate(umamba_seg, both).succeeded().out
    for place in both:
        tifffile.imwrite(place / "a.tif", volume[1])
    assert note not in evaluate(umamba_seg, both).succeeded().out


def test_from_python(folders):
    found = evaluate_segmentations(folders[0], folders[1], "dice", processes=1, output=folders[1] / "summary_x.json")
    assert found.metrics_file == folders[1] / "metrics_x.json"
    assert found.results["overall"]["dice"]["mean"] == pytest.approx(found.summary["foreground_mean"]["Dice"])
    read = read_case_metrics(found.metrics_file)
    assert (read.references, read.endings, read.missing) == (folders[0].resolve(), (".nii.gz",), ())
    both = {"left": 18, "right": 12}
    assert read.n_ref == {"a": both, "b": both, "c": {"left": 18, "right": 0}}
