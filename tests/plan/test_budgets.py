"""What the budgets allow, and what they are called."""

import pytest

from umamba_seg.errors import UserError
from umamba_seg.plan.budgets import Yardstick, cpu_budget, gpu_budget, vram_budget
from umamba_seg.plan.options import TrainingOptions


def test_memory_target_is_measured_by_nnunets_own_network():
    budget = gpu_budget(8)
    assert (budget.name, budget.device_type) == ("8gb", "cuda")
    assert budget.meaning == "as much memory as nnU-Net's own U-Net takes where nnU-Net plans for 8 GB"
    assert budget.limit == Yardstick("plain_conv_unet", {2: 85e6, 3: 560e6}, {2: 12, 3: 2})
    assert (budget.base_features, budget.max_features) == (32, {2: 512, 3: 320})
    assert budget.training == TrainingOptions()


def test_memory_target_scales_the_references_and_not_the_samples():
    assert gpu_budget(24).limit == Yardstick("plain_conv_unet", {2: 3 * 85e6, 3: 3 * 560e6}, {2: 12, 3: 2})
    assert gpu_budget(4.5).name == "4.5gb"


def test_memory_of_a_gpu_is_a_limit_in_bytes_below_all_that_it_has():
    budget = vram_budget(8)
    assert (budget.name, budget.device_type) == ("vram8gb", "cuda")
    assert budget.meaning == "a GPU of 8 GiB; 0.6 GiB are left to CUDA, and a tenth of the rest to gaps"
    assert budget.limit == pytest.approx(0.9 * (8 - 0.6) * 2**30)
    assert (budget.base_features, budget.training) == (32, TrainingOptions())
    assert vram_budget(0.7).limit == pytest.approx(0.09 * 2**30)


@pytest.mark.parametrize("gigabytes", [0.5, 0.6])
def test_a_gpu_that_cuda_fills_alone_is_refused(gigabytes):
    with pytest.raises(UserError, match=rf"--vram-gb {gigabytes}: CUDA itself takes about 0.6 GiB; .* --budget cpu"):
        vram_budget(gigabytes)


def test_the_budget_of_a_cpu_is_narrow_and_short():
    budget = cpu_budget()
    assert (budget.name, budget.device_type) == ("cpu", "cpu")
    assert "a second per iteration on two cores" in budget.meaning
    assert isinstance(budget.limit, Yardstick)
    assert budget.limit.network == "umamba_bot"
    assert (budget.base_features, budget.max_features) == (8, {2: 64, 3: 64})
    assert budget.training.optimizer == "AdamW"
    assert budget.training.epochs < TrainingOptions().epochs


def test_budgets_do_not_share_a_name():
    names = [budget.name for budget in (gpu_budget(8), vram_budget(8), cpu_budget())]
    assert len(set(names)) == len(names)
