"""What training says when memory runs out."""

from types import SimpleNamespace

import pytest
import torch

from umamba_seg.errors import UserError
from umamba_seg.train import run

PLANS = {
    "dataset_name": "Dataset004_Hippocampus",
    "plans_name": "umamba_enc_8gb",
    "umamba_seg": {"network": "umamba_enc", "budget": "8gb"},
    "configurations": {
        "3d_fullres": {
            "patch_size": [40, 56, 40],
            "batch_size": 7,
            "planning": {"estimated_bytes": 3 * 2**30},
        }
    },
}


def train_on(monkeypatch, tmp_path, error: Exception):
    """Train a fold whose training ends with ``error``."""

    class Trainer:
        output_folder, progress = str(tmp_path), 0.0

        def __init__(self, *_):
            pass

        def run_training(self):
            raise error

    monkeypatch.setattr(run, "UMambaSegTrainer", Trainer)
    run.train_fold(PLANS, "3d_fullres", 0, {}, torch.device("cpu"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_names_the_plan_what_was_in_use_and_what_to_do(monkeypatch, tmp_path, error):
    with pytest.raises(UserError) as caught:
        train_on(monkeypatch, tmp_path, error)
    message = str(caught.value)
    assert message.startswith("plans umamba_enc_8gb, 3d_fullres: memory ran out at patch 40×56×40, batch 7: ")
    assert "GiB of this machine were in use; the plan's estimate is 3.00 GiB; close what else uses it" in message
    assert "`umamba-seg plan_and_preprocess -d Dataset004_Hippocampus --network umamba_enc --budget cpu`" in message


def test_on_a_gpu_the_smaller_plan_is_one_for_what_could_be_had(monkeypatch):

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA T4")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 11.4 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=15 * 2**30))
    message = str(run._out_of_memory(PLANS, "3d_fullres", torch.device("cuda")))
    assert "11.40 GiB of the 15.00 GiB of NVIDIA T4 were in use" in message
    assert "--vram-gb 11`" in message


def test_there_is_no_smaller_plan_for_a_cpu_than_the_one_for_cpus():
    plans = PLANS | {"umamba_seg": {"network": "umamba_enc", "budget": "cpu"}}
    assert "--network NAME --budget cpu`" in str(run._out_of_memory(plans, "3d_fullres", torch.device("cpu")))


def test_other_errors_are_not_taken_for_it(monkeypatch, tmp_path):
    with pytest.raises(RuntimeError, match="shape mismatch"):
        train_on(monkeypatch, tmp_path, RuntimeError("shape mismatch"))
