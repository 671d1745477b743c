"""Trainings in processes of their own, to be killed and broken."""

import copy
import json
import multiprocessing
import multiprocessing.dummy
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from umamba_seg.train.trainer import UMambaSegTrainer


class Run:
    """A training that was started."""

    def __init__(self, zygote: "Zygote", pid: int, err: Path):
        self.pid, self._zygote, self._err, self._code = pid, zygote, err, None

    @property
    def err(self) -> str:
        """What it has printed."""
        return self._err.read_text() if self._err.is_file() else ""

    def signal(self, signum: int) -> None:
        if self._code is None:
            os.kill(self.pid, signum)

    def wait(self) -> int:
        """Its exit code; the negative number of the signal that killed it."""
        if self._code is None:
            self._code = self._zygote.ask(wait=self.pid)
        return self._code

    def ended(self) -> bool:
        """Whether it has, without waiting."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True


class Zygote:
    """See zygote.py."""

    def __init__(self, folder: Path):
        self._folder, self._runs = folder, 0
        variables = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        script = Path(__file__).with_name("zygote.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
        )

    def ask(self, **request) -> int:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(self, *argv: object, prepare: dict | None = None, env: dict | None = None) -> Run:
        self._runs += 1
        err = self._folder / f"{self._runs}.log"
        pid = self.ask(argv=[str(word) for word in argv], err=str(err), prepare=prepare or {}, env=env or {})
        return Run(self, pid, err)

    def run(self, *argv: object, **how) -> tuple[int, str]:
        """Start, wait, and tell exit code and what was printed."""
        run = self.start(*argv, **how)
        return run.wait(), run.err

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="session")
def zygote(tmp_path_factory) -> Iterator[Zygote]:
    if not hasattr(os, "fork"):
        pytest.skip("there is no fork here")
    zygote = Zygote(tmp_path_factory.mktemp("zygote"))
    yield zygote
    zygote.close()


@pytest.fixture
def make_trainer(tmp_path, monkeypatch):
    """``make_trainer(root, plans, configuration, fold)``: one of the tiny data set that writes below ``tmp_path``."""

    def make(root: Path, plans: dict, configuration: str, fold: int | str) -> "UMambaSegTrainer":
        import torch

        from umamba_seg.paths import resolve
        from umamba_seg.train.mirroring import inference_axes
        from umamba_seg.train.trainer import UMambaSegTrainer

        preprocessed = resolve(root).export().preprocessed / plans["dataset_name"]
        monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))  # a trainer makes its folder at once
        description = json.loads((preprocessed / "dataset.json").read_text())
        plans = copy.deepcopy(plans) | {"continue_training": True}
        trainer = UMambaSegTrainer(plans, configuration, fold, description, torch.device("cpu"))
        trainer.initialize()
        trainer.inference_allowed_mirroring_axes = inference_axes(trainer.mirroring)  # as when training begins
        trainer.output_folder_base = str(tmp_path / "model")
        trainer.output_folder = str(tmp_path / "model" / f"fold_{fold}")
        trainer.print_to_log_file = lambda *_, **__: None
        return trainer

    return make


@pytest.fixture
def nnunets_validation(monkeypatch, single_precision):
    """``nnunets_validation(trainer)``: nnU-Net's own, with threads where it would start processes."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    threads = torch.get_num_threads()
    monkeypatch.setattr(multiprocessing, "get_context", lambda *_: multiprocessing.dummy)
    yield lambda trainer: nnUNetTrainer.perform_actual_validation(trainer, save_probabilities=True)
    torch.set_num_threads(threads)


@pytest.fixture
def fold(trained, tmp_path, zygote) -> SimpleNamespace:
    """The tiny data set, to be trained on anew: ``train(*words)`` starts, ``folder`` is where fold 0 is written."""
    root = tmp_path / "root"
    root.mkdir()
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        (root / name).symlink_to(trained.root / name)
    common = ("-d", 901, "--root", root, "-c", "3d_fullres", "-f", 0, "-device", "cpu")

    def train(*words: object, verb: str = "train", **how) -> Run:
        return zygote.start(verb, *common, *words, **how)

    model = root / "nnUNet_results" / trained.model.relative_to(trained.root / "nnUNet_results")
    return SimpleNamespace(train=train, root=root, model=model, folder=model / "fold_0")
