"""What a network may cost: the memory of a GPU, nnU-Net's memory target, or the patience of a CPU."""

from __future__ import annotations

from dataclasses import dataclass, field

from umamba_seg.errors import UserError
from umamba_seg.plan.options import TrainingOptions

_GIB = 2**30
_CONTEXT = 0.6 * _GIB  # of CUDA, with the libraries that torch loads; assumed
_USABLE = 0.9  # of the rest, as torch's allocator leaves gaps; assumed


@dataclass(frozen=True)
class Yardstick:
    """As much memory as another network takes in the plan that nnU-Net's own search finds for it.

    That search counts the voxels of all feature maps of a plain U-Net on one sample and compares them with a reference
    count for so many samples.

    Args:
        network: Name of the network whose memory is taken.
        reference: Voxels of feature maps, for 2-D and 3-D.
        samples: That the reference stands for, for 2-D and 3-D.
    """

    network: str
    reference: dict[int, float]
    samples: dict[int, int]


@dataclass(frozen=True)
class Budget:
    """What the search for patch, depth and batch has to keep to.

    Args:
        name: ``cpu`` or e.g. ``8gb``; it stands in the plans' name.
        meaning: The name in a sentence.
        device_type: Where the plan trains, "cuda" or "cpu"; precision and kernels follow from it.
        limit: Bytes that a training step may not exceed, or what they are measured by. A yardstick is a target: the
            batch is rounded to the nearest, as nnU-Net does.
        base_features, max_features: Channels of the first stage, and their cap for 2-D and 3-D.
        training: Options that fit the budget.
    """

    name: str
    meaning: str
    device_type: str
    limit: float | Yardstick
    base_features: int = 32
    max_features: dict[int, int] = field(default_factory=lambda: {2: 512, 3: 320})
    training: TrainingOptions = field(default_factory=TrainingOptions)


def gpu_budget(gigabytes: float) -> Budget:
    """nnU-Net's memory target: as much as its U-Net takes when nnU-Net plans for so many GB.

    Its references stand for 8 GB and are scaled in proportion.
    """
    scale = gigabytes / 8
    reference = {2: 85e6 * scale, 3: 560e6 * scale}
    meaning = f"as much memory as nnU-Net's own U-Net takes where nnU-Net plans for {gigabytes:g} GB"
    yardstick = Yardstick("plain_conv_unet", reference, samples={2: 12, 3: 2})
    return Budget(f"{gigabytes:g}gb", meaning, "cuda", yardstick)


def vram_budget(gigabytes: float) -> Budget:
    """All the memory of a GPU of so many GiB, less what CUDA and the gaps between tensors take.

    Raises:
        UserError: Nothing is left.
    """
    limit = (gigabytes * _GIB - _CONTEXT) * _USABLE
    if limit <= 0:
        raise UserError(f"--vram-gb {gigabytes:g}", "CUDA itself takes about 0.6 GiB", "give more, or --budget cpu")
    meaning = f"a GPU of {gigabytes:g} GiB; 0.6 GiB are left to CUDA, and a tenth of the rest to gaps"
    return Budget(f"vram{gigabytes:g}gb", meaning, "cuda", limit)


# Voxels of feature maps (nnU-Net's count for a plain U-Net of the same features) that U-Mamba_Bot trains on in a second
# on two AVX2 cores, augmentation included. Measured: 5.0e6 a sample at 40x56x40 took 0.23 s, 5.3e6 at 256x256 took
# 0.17 s. A constant instead of a stopwatch keeps plans the same whatever else the machine was doing. In 2-D it stands
# for half a second: batches of half the size, twice as many, gave a Dice of 0.767 (median 0.908) in nine minutes on
# Sunnybrook, against 0.772 and 0.731 (0.900 and 0.881) in ten.
_CPU_VOXELS = {2: 17e6, 3: 20e6}


def cpu_budget() -> Budget:
    """About one second per iteration on two cores: a quarter of nnU-Net's features, a short schedule, AdamW.

    The yardstick is U-Mamba_Bot, whose time was measured; time goes with the memory that a step touches.
    """
    return Budget(
        name="cpu",
        meaning="about a second per iteration on two cores (half a second in 2-D), as U-Mamba_Bot's memory goes",
        device_type="cpu",
        limit=Yardstick("umamba_bot", dict(_CPU_VOXELS), samples={2: 1, 3: 1}),
        base_features=8,
        max_features={2: 64, 3: 64},
        training=TrainingOptions(
            optimizer="AdamW", initial_lr=3e-3, epochs=60, iterations_per_epoch=50, val_iterations_per_epoch=5
        ),
    )
