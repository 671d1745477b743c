"""A folder of cases: stages overlap, no case stops the others, and however a run ends, nothing is half done."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import CasesFailed, Stopped, UserError
from umamba_seg.predict.cases import PreparedCase
from umamba_seg.predict.folder import predict_folder
from umamba_seg.predict.mirroring import Exchange, Flip
from umamba_seg.predict.results import Prediction

GEOMETRY = {"spacing": (1.0, 1.0, 2.0), "origin": (0.0, 0.0, 0.0), "direction": tuple(np.eye(3).ravel())}
DESCRIPTION = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
STAGES = ("prepare", "segment", "write")
OUT_OF_MEMORY = r"case2: memory ran out \(stage: {}\); [\d.]+ GiB of [\d.]+ GiB are free now; .*--ram-gb"
PATIENCE = 20  # seconds, after which something hangs


class Fake:
    """Has the attributes and methods of a predictor; the hook is called with stage and case in every stage."""

    def __init__(self):
        self.model_folder, self.folds, self.configuration_name = Path("models/Fake"), ["0"], "3d_fullres"
        self.dataset_json, self.file_ending = DESCRIPTION, ".nii.gz"
        self.plans = {"dataset_name": "Dataset001_Fake", "image_reader_writer": "SimpleITKIO"}
        self.plans["umamba_seg"] = {"network": "umamba_bot"}
        self.labels = Labels.from_json(DESCRIPTION, Path("dataset.json"))
        self.model_hash, self.previous_stage = "ab" * 32, None
        self.flips, self.step_size, self.device = [Flip(), Flip((1,))], 0.5, torch.device("cpu")
        self.hook, self.ram_gb = lambda stage, name: None, None
        self.previous: dict = {}

    def prepare(self, images, *, name, previous=None):
        self.hook("prepare", name)
        self.previous[name] = previous
        return PreparedCase(name, tuple(images), np.zeros((1, 2, 3, 4), np.float32), {"sitk_stuff": GEOMETRY})

    def segment(self, case, *, probabilities, uncertainty, scratch):
        assert scratch.is_dir()
        assert threading.current_thread() is threading.main_thread()
        self.hook("segment", case.name)
        labels = np.full((2, 3, 4), int(case.name[-1]) % 2, np.uint8)
        prediction = Prediction(case.name, case.files, labels, Written(self, case.name, case.properties))
        if probabilities:
            prediction.probabilities = np.zeros((2, 2, 3, 4), np.float16)
        if uncertainty:
            prediction.entropy = np.zeros((2, 3, 4), np.float16)
        return prediction


class Written(dict):
    """Properties that tell when they are used, which is when the segmentation is written."""

    def __init__(self, fake: Fake, name: str, properties: dict):
        super().__init__(properties)
        self._told = lambda: fake.hook("write", name)

    def __getitem__(self, key):
        self._told()
        self._told = lambda: None
        return super().__getitem__(key)


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def images(tmp_path) -> Path:
    return images_of(tmp_path / "images", 5)


def images_of(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"case{number}_0000.nii.gz").touch()
    return folder


def names_in(output: Path) -> list[str]:
    return sorted(path.name.removesuffix(".nii.gz") for path in output.glob("*.nii.gz"))


def manifest_of(output: Path, name: str = "manifest.json") -> dict:
    return json.loads((output / name).read_text())


def states(output: Path) -> dict[str, str]:
    return {name: entry["status"] for name, entry in manifest_of(output)["cases"].items()}


def counting(fake: Fake) -> list[str]:
    """The cases that are segmented from now on."""
    segmented = []
    fake.hook = lambda stage, name: segmented.append(name) if stage == "segment" else None
    return segmented


def test_everything_is_written_and_listed(fake, images, tmp_path, caplog):
    output = tmp_path / "deep" / "out"
    (images / "overview.nii.gz").touch()
    with caplog.at_level("INFO"):
        outcome = predict_folder(fake, images, output, precision="uint8", uncertainty=True)
    assert outcome.segmentations == [output / f"case{number}.nii.gz" for number in range(5)]
    assert outcome.skipped == []
    assert "left alone, as they are not named CASE_0000.nii.gz: overview.nii.gz" in caplog.text
    assert "(5 of 5)" in caplog.text  # a line per case where nobody sees the bar
    assert json.loads((output / "dataset.json").read_text()) == DESCRIPTION
    assert sorted(path.name for path in output.iterdir() if path.name.startswith(".")) == []
    manifest = manifest_of(output)
    assert set(manifest) == {"schema", "model", "settings", "versions", "started", "ended", "cases"}
    assert manifest["model"] == {
        "folder": "Fake",
        "hash": "ab" * 32,
        "folds": ["0"],
        "configuration": "3d_fullres",
        "network": "umamba_bot",
        "checkpoint": "checkpoint_final.pth",
    }
    assert manifest["settings"] == {
        "step_size": 0.5,
        "mirrored_axes": [1],
        "swapped_classes": None,
        "probabilities": "uint8",
        "uncertainty": True,
    }
    assert set(manifest["versions"]) == {"umamba_seg", "nnunetv2", "torch", "python"}
    assert manifest["started"] <= manifest["ended"]
    entry = manifest["cases"]["case3"]
    assert entry["status"] == "done"
    assert entry["files"] == ["case3.nii.gz", "case3.npz", "entropy/case3.nii.gz"]
    assert set(entry["seconds"]) == {"prepare", "segment", "write"}
    assert entry["device"] == "cpu"


class Stage:
    """A stage of a case that tells when it was begun, and waits until it may go on."""

    def __init__(self):
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.thread = ""

    def __call__(self) -> None:
        self.thread = threading.current_thread().name
        self.begun.set()
        assert self.may_end.wait(PATIENCE)


def test_three_cases_are_on_their_way_at_once_and_no_more(fake, images, tmp_path):
    stages = {(stage, number): Stage() for stage in STAGES for number in range(5)}
    fake.hook = lambda stage, name: stages[stage, int(name[-1])]()
    found = []

    def watch() -> None:
        for number in range(3):  # the first three may be prepared, the first may be segmented
            stages["prepare", number].may_end.set()
        stages["segment", 0].may_end.set()
        together = [stages["write", 0], stages["segment", 1], stages["prepare", 2]]
        found.append(all(stage.begun.wait(PATIENCE) for stage in together))
        stages["segment", 1].may_end.set()  # it waits for case 0 to be written
        time.sleep(0.3)
        found.append(stages["segment", 2].begun.is_set() or stages["prepare", 3].begun.is_set())
        for stage in stages.values():
            stage.may_end.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    predict_folder(fake, images, tmp_path / "out")
    watcher.join()
    assert found == [True, False]
    assert {stages["prepare", number].thread[:7] for number in range(5)} == {"prepare"}
    assert {stages["write", number].thread[:5] for number in range(5)} == {"write"}


def test_where_memory_is_limited_the_next_case_waits_until_this_one_is_segmented(fake, images, tmp_path):
    order, images_there = [], []

    def hook(stage: str, name: str) -> None:
        if stage != "write":  # which goes on meanwhile
            order.append(f"{stage} {name[-1]}")

    def prepare(*files, **how):
        images_there.append(sum(image() is not None for image in references))
        case = Fake.prepare(fake, *files, **how)
        references.append(weakref.ref(case.data))
        return case

    references: list = []
    fake.hook, fake.prepare, fake.ram_gb = hook, prepare, 6.0
    predict_folder(fake, images, tmp_path / "out")
    assert order == [f"{stage} {number}" for number in range(5) for stage in ("prepare", "segment")]
    assert images_there == [0] * 5


def failing(fake: Fake, stage: str, case: str, error: BaseException) -> None:
    def hook(now: str, name: str) -> None:
        if (now, name) == (stage, case):
            raise error

    fake.hook = hook


@pytest.mark.parametrize(
    ("stage", "error", "cause"),
    [
        *((stage, UserError("case2", "is bad", "mend it"), "case2: is bad; mend it") for stage in STAGES),
        *((stage, MemoryError(), OUT_OF_MEMORY.format(stage)) for stage in STAGES),
        ("segment", torch.OutOfMemoryError("CUDA out of memory"), OUT_OF_MEMORY.format("segment")),
        ("segment", RuntimeError("DefaultCPUAllocator: can't allocate memory"), OUT_OF_MEMORY.format("segment")),
    ],
)
def test_a_case_that_fails_does_not_stop_the_others(fake, images, tmp_path, stage, error, cause):
    failing(fake, stage, "case2", error)
    with pytest.raises(CasesFailed, match=cause) as failed:
        predict_folder(fake, images, tmp_path / "out")
    assert names_in(tmp_path / "out") == ["case0", "case1", "case3", "case4"]
    assert list(failed.value.failures) == ["case2"]
    assert set(failed.value.result) == {"segmentations", "failed", "skipped", "manifest"}
    entry = manifest_of(tmp_path / "out")["cases"]["case2"]
    assert entry["status"] == "failed"
    assert entry["cause"] == failed.value.failures["case2"]
    assert manifest_of(tmp_path / "out")["ended"]


def test_a_missing_channel_is_the_failure_of_its_case(fake, images, tmp_path):
    (images / "case1_0000.nii.gz").rename(images / "case1_0001.nii.gz")
    with pytest.raises(CasesFailed, match=r"case1_0000.nii.gz missing"):
        predict_folder(fake, images, tmp_path / "out")
    assert states(tmp_path / "out")["case1"] == "failed"


def test_no_case_that_can_be_segmented(fake, images, tmp_path):
    def refuse(stage: str, name: str) -> None:
        raise UserError(name, "is broken", "mend it")

    fake.hook = refuse
    with pytest.raises(UserError, match="none of the cases could be segmented") as failed:
        predict_folder(fake, images, tmp_path / "out")
    assert not isinstance(failed.value, CasesFailed)
    assert failed.value.result["failed"]["case4"] == "case4: is broken; mend it"


@pytest.mark.parametrize("stage", STAGES)
def test_a_bug_ends_the_run_with_its_traceback(fake, images, tmp_path, stage):
    before = threading.active_count()
    failing(fake, stage, "case2", ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        predict_folder(fake, images, tmp_path / "out")
    assert threading.active_count() == before
    assert {"case0", "case1"} <= set(names_in(tmp_path / "out"))
    found = {name for name, state in states(tmp_path / "out").items() if state == "done"}
    assert found == set(names_in(tmp_path / "out"))
    assert manifest_of(tmp_path / "out")["ended"] is None
    assert not list((tmp_path / "out").glob(".*"))


def test_a_full_disk_ends_the_run(fake, images, tmp_path):
    failing(fake, "write", "case2", OSError(28, "No space left on device", "case2.nii.gz"))
    with pytest.raises(OSError, match="No space left"):
        predict_folder(fake, images, tmp_path / "out")
    assert states(tmp_path / "out")["case2"] == "waiting"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_once_the_last_case_is_written(fake, images, tmp_path, signum):
    written = threading.Event()

    def hook(stage: str, name: str) -> None:
        if (stage, name) == ("write", "case0"):
            time.sleep(0.3)
            written.set()
        if (stage, name) == ("segment", "case1"):
            signal.raise_signal(signum)
            time.sleep(PATIENCE)

    fake.hook = hook
    with pytest.raises(Stopped) as stop:
        predict_folder(fake, images, tmp_path / "out")
    assert stop.value.signum == signum
    assert written.is_set()
    assert names_in(tmp_path / "out") == ["case0"]
    assert states(tmp_path / "out") == {"case0": "done"} | {f"case{number}": "waiting" for number in range(1, 5)}
    assert not list((tmp_path / "out").glob(".*"))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_parts_are_every_nth_case(fake, images, tmp_path):
    for part, cases in ((0, ["case0", "case3"]), (1, ["case1", "case4"]), (2, ["case2"])):
        outcome = predict_folder(fake, images, tmp_path / "out", part=part, parts=3)
        assert [path.name for path in outcome.segmentations] == [f"{case}.nii.gz" for case in cases]
        assert list(manifest_of(tmp_path / "out", f"manifest_part_{part}_of_3.json")["cases"]) == cases
    assert len(names_in(tmp_path / "out")) == 5
    assert not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(
        UserError, match="-part_id 3: of 3 parts, the last is number 2; give a smaller one, or more -num_parts"
    ):
        predict_folder(fake, images, tmp_path / "out", part=3, parts=3)


def test_a_part_without_cases_is_no_error(fake, images, tmp_path):
    assert predict_folder(fake, images, tmp_path / "out", part=6, parts=7).segmentations == []


def test_resuming_does_what_is_missing_and_nothing_else(fake, images, tmp_path):
    output = tmp_path / "out"
    failing(fake, "segment", "case1", UserError("case1", "is broken", "mend it"))
    with pytest.raises(CasesFailed):
        predict_folder(fake, images, output, precision="float16")
    (output / "case2.nii.gz").unlink()
    (output / "case3.npz").unlink()
    (output / "case4.nii.gz").write_bytes((output / "case4.nii.gz").read_bytes()[:-9])
    (output / ".manifest.killed.part").mkdir()
    (output / ".manifest.killed.part" / "half.nii.gz").touch()
    (output / ".manifest_part_1_of_2.living.part").mkdir()
    untouched = (output / "case0.nii.gz").stat().st_mtime_ns
    segmented = counting(fake)
    outcome = predict_folder(fake, images, output, precision="float16", resume=True)
    assert segmented == ["case1", "case2", "case3", "case4"]
    assert outcome.skipped == ["case0"]
    assert (output / "case0.nii.gz").stat().st_mtime_ns == untouched
    assert set(states(output).values()) == {"done"}
    assert [path.name for path in output.glob(".*")] == [".manifest_part_1_of_2.living.part"]


def test_without_resume_everything_is_done_again(fake, images, tmp_path):
    predict_folder(fake, images, tmp_path / "out")
    segmented = counting(fake)
    predict_folder(fake, images, tmp_path / "out")
    assert len(segmented) == 5


def test_resuming_in_an_empty_folder_begins(fake, images, tmp_path):
    assert len(predict_folder(fake, images, tmp_path / "out", resume=True).segmentations) == 5


def test_what_was_done_in_parts_counts_for_all(fake, images, tmp_path):
    predict_folder(fake, images, tmp_path / "out", part=1, parts=2)
    segmented = counting(fake)
    assert predict_folder(fake, images, tmp_path / "out", resume=True).skipped == ["case1", "case3"]
    assert segmented == ["case0", "case2", "case4"]
    assert set(states(tmp_path / "out").values()) == {"done"}


@pytest.mark.parametrize(
    ("change", "how", "message"),
    [
        ({"model_hash": "cd" * 32}, {}, "model was abababababab, is cdcdcdcdcdcd"),
        ({"step_size": 0.25}, {}, "step_size was 0.5, is 0.25"),
        ({"flips": [Flip()]}, {}, r"mirrored_axes was \[1\], is \[\]"),
        ({"flips": [Flip(), Flip((1,), Exchange((0,), (1, 0)))]}, {}, r"swapped_classes was None, is \[1, 0\]"),
        ({}, {"precision": "uint8"}, "probabilities was None, is uint8"),
        ({}, {"uncertainty": True}, "uncertainty was False, is True"),
    ],
)
def test_resuming_with_another_model_or_settings_is_refused(fake, images, tmp_path, change, how, message):
    predict_folder(fake, images, tmp_path / "out")
    vars(fake).update(change)
    with pytest.raises(UserError, match=f"{message}; empty the folder, or name another with -o"):
        predict_folder(fake, images, tmp_path / "out", resume=True, **how)


def test_a_manifest_of_others_is_not_guessed_at(fake, images, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(UserError, match="was not written by this version"):
        predict_folder(fake, images, tmp_path / "out", resume=True)


def test_cascades_are_given_the_stage_before(fake, images, tmp_path):
    with pytest.raises(UserError, match="Fake is not the second stage of a cascade; leave it out"):
        predict_folder(fake, images, tmp_path / "out", previous=tmp_path)
    fake.previous_stage = "3d_lowres"
    with pytest.raises(UserError, match="needs segmentations of 3d_lowres beside the images"):
        predict_folder(fake, images, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    before = tmp_path / "before"
    before.mkdir()
    for name in ("case0", "case1", "case2", "case3"):
        (before / f"{name}.nii.gz").touch()
    with pytest.raises(CasesFailed, match=r"case4.nii.gz: no such file.*; predict it with 3d_lowres first"):
        predict_folder(fake, images, tmp_path / "out", previous=before)
    assert fake.previous["case3"] == before / "case3.nii.gz"


@pytest.fixture
def model(tmp_path) -> Path:
    """A model folder with as much as is needed to find out that the request makes no sense."""
    folder = tmp_path / "model"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "fold_0" / "checkpoint_final.pth").touch()
    (folder / "dataset.json").write_text(json.dumps(DESCRIPTION))
    plans = {"dataset_name": "Dataset007_Small", "plans_name": "p", "configurations": {}, "umamba_seg": {}}
    (folder / "plans.json").write_text(json.dumps(plans))
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("-num_parts", 3, "-part_id", 3),
            "-part_id 3: of 3 parts, the last is number 2; give a smaller one, or more -num_parts",
        ),
        (("-part_id", 1), "-part_id 1: of 1 parts, the last is number 0"),
        (("--workers", 2), "--workers 2: there is no cluster; give --cluster too, or leave it out"),
        (("--cluster", "cloud"), "--cluster cloud: no such kind of cluster"),
        (("-prev_stage_predictions", "nowhere"), "nowhere: no such folder"),
        (("--swap-labels", "kidney"), "'kidney' is not LEFT:RIGHT, such as kidney_left:kidney_right"),
        (("--save-probabilities", "float8"), "invalid choice: 'float8'"),
        (("--ram-gb", "0"), "'0' is not a positive number"),
    ],
)
def test_options_that_make_no_sense(umamba_seg, model, images, tmp_path, words, message):
    done = umamba_seg("predict", "-i", images, "-o", tmp_path / "out", "-m", model, *words)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "out").exists()


def test_requests_that_make_no_sense_are_answered_without_torch(model, images, tmp_path):
    words = ["predict", "-i", images, "-o", tmp_path / "out", "-m", model, "-part_id", 1]
    code = f"from umamba_seg.__main__ import main; main({[str(word) for word in words]})"
    check = f"{code}\nimport sys; print(*{{'torch', 'nnunetv2', 'SimpleITK', 'distributed'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert "-part_id 1" in done.stderr
    assert done.stdout.split() == []


class Processes:
    """Runs the command line in processes of its own, which are forked from one that has loaded torch and nnU-Net.

    See tests/train/zygote.py.
    """

    def __init__(self, log: Path):
        script = Path(__file__).parents[1] / "train" / "zygote.py"
        self._log = log
        self._zygote = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def ask(self, **request) -> int:
        assert self._zygote.stdin
        assert self._zygote.stdout
        self._zygote.stdin.write(json.dumps(request) + "\n")
        return int(self._zygote.stdout.readline())

    def start(self, *words: object) -> int:
        """The number of the process."""
        return self.ask(argv=[str(word) for word in words], err=str(self._log), prepare={}, env={})

    def wait(self, pid: int) -> int:
        """Its exit code; the negative number of the signal that killed it."""
        return self.ask(wait=pid)

    def log(self) -> str:
        return self._log.read_text()

    def close(self) -> None:
        self._zygote.communicate()


def has_ended(pid: int) -> bool:
    """Without waiting for it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.fixture
def processes(tmp_path):
    if not hasattr(os, "fork"):
        pytest.skip("there is no fork here")
    processes = Processes(tmp_path / "log")
    yield processes
    processes.close()


@pytest.fixture
def command(trained, tmp_path) -> tuple:
    """Predicts seven cases; the output folder is missing."""
    images = tmp_path / "images"
    images.mkdir()
    for path in [*trained.raw.glob("imagesTr/*.nii.gz"), *trained.raw.glob("imagesTs/*.nii.gz")]:
        (images / path.name).symlink_to(path)
    assert len(list(images.iterdir())) == 7
    return ("predict", "-i", images, "-m", trained.model, "-device", "cpu", "--save-probabilities", "--disable_tta")


def files_of(output: Path) -> dict[str, tuple]:
    """What has its name, and that it is the same file as before."""
    status = {path.name: (path, path.stat()) for path in output.glob("*.nii.gz")}
    return {name: (path.read_bytes(), found.st_ino, found.st_mtime_ns) for name, (path, found) in status.items()}


def scratch_of(output: Path) -> set[Path]:
    """Hidden folders; the newest is that of a run that goes on."""
    return set(output.glob(".manifest.*.part"))


def is_at(moment: str, scratch: set[Path]) -> bool:
    """Whether a run has begun with the cases, or writes one, each of which has a folder of its own."""
    return bool(scratch) and (moment == "segmenting" or any(any(folder.glob("tmp*/*")) for folder in scratch))


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_does_every_case_once(command, processes, tmp_path):
    output, reference = tmp_path / "out", tmp_path / "reference"
    assert processes.wait(processes.start(*command, "-o", reference)) == 0, processes.log()
    wanted = {name: content for name, (content, *_) in files_of(reference).items()}
    assert len(wanted) == 7
    moments, longest = random.Random(7), {"starting": 0.3, "segmenting": 0.1, "writing": 0.15}
    found: dict[str, tuple] = {}
    kills = dict.fromkeys(longest, 0)
    for moment in 8 * tuple(longest):
        before = scratch_of(output)
        pid = processes.start(*command, "-o", output, "--resume")
        if moment != "starting":
            while not is_at(moment, scratch_of(output) - before) and not has_ended(pid):
                time.sleep(0.001)
        time.sleep(moments.uniform(0, longest[moment]))
        os.kill(pid, signal.SIGKILL)
        code = processes.wait(pid)
        kills[moment] += 1
        now = files_of(output)
        assert {name: now[name] for name in found} == found  # none was written twice
        assert {name: content for name, (content, *_) in now.items()}.items() <= wanted.items()  # none is cut short
        found = now
        if code == 0:
            break
        assert code == -signal.SIGKILL, processes.log()
    assert min(kills.values()) >= 2, kills
    assert found  # or every run was killed too early to tell anything
    assert processes.wait(processes.start(*command, "-o", output, "--resume")) == 0, processes.log()
    assert found.items() <= files_of(output).items()
    assert {name: content for name, (content, *_) in files_of(output).items()} == wanted
    for path in reference.glob("*.npz"):
        with np.load(path) as one, np.load(output / path.name) as other:
            assert (one["probabilities"] == other["probabilities"]).all()
    assert set(states(output).values()) == {"done"}
    assert not list(output.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_command_within_seconds(command, processes, tmp_path, signum, code):
    pid = processes.start(*command, "-o", tmp_path / "out")
    while not scratch_of(tmp_path / "out"):
        assert not has_ended(pid), processes.log()
        time.sleep(0.002)
    asked = time.monotonic()
    os.kill(pid, signum)
    assert processes.wait(pid) == code, processes.log()
    assert time.monotonic() - asked < PATIENCE
    assert f"{signal.Signals(signum).name}: finishing what is being written" in processes.log()
    assert f"stopped by {signal.Signals(signum).name}; continue with --resume" in processes.log()
    assert not list((tmp_path / "out").glob(".*"))
    done = {name for name, state in states(tmp_path / "out").items() if state == "done"}
    assert done == set(names_in(tmp_path / "out"))
