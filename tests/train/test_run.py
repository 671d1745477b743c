"""What training says when memory runs out, and which checkpoint it goes on from."""

from types import SimpleNamespace

import pytest
import torch

from umamba_seg.errors import UserError
from umamba_seg.plan.options import TrainingOptions
from umamba_seg.train import run
from umamba_seg.train.checkpoints import write_checkpoint
from umamba_seg.train.distributed import Group
from umamba_seg.train.sentinel import Recovery
from umamba_seg.train.state import State

PLANNED = {"patch_size": [40, 56, 40], "batch_size": 7, "planning": {"estimated_bytes": 3 * 2**30}}
OURS = {"network": "umamba_enc", "budget": "8gb", "training": TrainingOptions().model_dump()}
PLANS = {
    "dataset_name": "Dataset004_Hippocampus",
    "plans_name": "umamba_enc_8gb",
    "configurations": {"3d_fullres": {"data_identifier": "1mm"}},
    "umamba_seg": OURS,
}


@pytest.fixture
def trainer(tmp_path):
    """What :func:`run._train` needs of one."""
    (tmp_path / "dataset_fingerprint.json").write_text("{}")
    (tmp_path / "model").mkdir()
    return SimpleNamespace(
        output_folder=str(tmp_path / "model" / "fold_0"),
        preprocessed_dataset_folder_base=str(tmp_path),
        dataset_json={},
        progress=0.0,
        group=Group(),
        device=torch.device("cpu"),
        options=TrainingOptions(),
        workers=0,
        on_train_start=lambda: (tmp_path / "model" / "fold_0").mkdir(),
        plans_manager=SimpleNamespace(plans=PLANS),
        configuration_manager=SimpleNamespace(configuration=PLANNED, next_stage_names=None),
        configuration_name="3d_fullres",
    )


def train(trainer, error: Exception) -> None:
    """Train a fold whose training ends with ``error``."""

    def fail():
        raise error

    trainer.run_training = fail
    run._train(trainer, PLANS, TrainingOptions(), None, None)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_names_the_plan_what_was_in_use_and_what_to_do(trainer, error):
    with pytest.raises(UserError) as caught:
        train(trainer, error)
    message = str(caught.value)
    assert message.startswith("plans umamba_enc_8gb, 3d_fullres: memory ran out at patch 40×56×40, batch 7: ")
    assert "GiB of this machine were in use; the plan's estimate is 3.00 GiB; close what else uses it" in message
    assert "`umamba-seg plan_and_preprocess -d Dataset004_Hippocampus --network umamba_enc --budget cpu`" in message


def test_on_a_gpu_the_smaller_plan_is_one_for_what_could_be_had(monkeypatch, trainer):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA T4")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 11.4 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=15 * 2**30))
    trainer.device = torch.device("cuda")
    message = str(run._out_of_memory(trainer))
    assert "11.40 GiB of the 15.00 GiB of NVIDIA T4 were in use" in message
    assert "--vram-gb 11`" in message


def test_there_is_no_smaller_plan_for_a_cpu_than_the_one_for_cpus(trainer):
    trainer.plans_manager.plans = PLANS | {"umamba_seg": OURS | {"budget": "cpu"}}
    assert "--network NAME --budget cpu`" in str(run._out_of_memory(trainer))


def test_other_errors_are_not_taken_for_it(trainer):
    with pytest.raises(RuntimeError, match="shape mismatch"):
        train(trainer, RuntimeError("shape mismatch"))


STATE = State(
    options={}, prediction={}, optimizer=[], grad_scaler={}, recovery=Recovery(), logging={}, best_ema=None,
    epoch=3, step=0, iterations=9, drawn=9, validated=3, losses=[], schedule_start=0,
    epoch_seconds=1.0, seconds_spent=9.0, closing_seconds=1.0, threads=1,
)  # fmt: skip


def test_the_first_whole_checkpoint_is_gone_on_from(tmp_path):
    damaged, whole = tmp_path / "checkpoint_latest.safetensors", tmp_path / "checkpoint_previous.safetensors"
    damaged.write_bytes(b"half")
    write_checkpoint(whole, {"weight": torch.ones(1)}, STATE.model_dump())
    found = run._first_whole([damaged, whole])
    assert found is not None
    assert (found.path, found.state, found.is_final, found.damaged) == (whole, STATE, False, (damaged,))
    assert run._first_whole([]) is None
    with pytest.raises(UserError, match=r"checkpoint_latest.safetensors: is damaged"):
        run._first_whole([damaged])


def test_only_what_is_finished_is_extended(tmp_path):
    options = TrainingOptions(epochs=None, max_minutes=5)
    final = run._Saved(tmp_path / "checkpoint_final.safetensors", {}, STATE)
    extended = run._extended(options, final, 4)
    assert (extended.epochs, extended.max_minutes) == (7, None)
    with pytest.raises(UserError, match=r"not finished; finish it with `umamba-seg train --c`"):
        run._extended(options, run._Saved(tmp_path / "checkpoint_latest.safetensors", {}, STATE), 4)


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({"epoch": "three"}, "epoch"),
        ({"recovery": {"evil": 1}}, "recovery"),
        ([1, 2], "it is no table"),
        ({"surplus": 1}, "surplus"),
    ],
)
def test_a_state_of_something_else_is_refused(tmp_path, state, named):
    whole = tmp_path / "checkpoint_latest.safetensors"
    write_checkpoint(whole, {}, state if isinstance(state, list) else STATE.model_dump() | state)
    with pytest.raises(UserError, match=rf"does not hold the state of a training of this version \({named}\)"):
        run._first_whole([whole])
