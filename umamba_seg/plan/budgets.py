"""What a network may cost: the memory of a GPU, or the patience of a CPU."""

from __future__ import annotations

from dataclasses import dataclass

from umamba_seg.plan.options import TrainingOptions


@dataclass(frozen=True)
class Budget:
    """Targets of the planner's search for patch, depth and batch.

    nnU-Net's search counts the voxels of all feature maps of one sample and compares them with a reference count for
    so many samples; it shrinks the patch until two samples fit, then grows the batch.

    Args:
        name: ``cpu`` or e.g. ``8gb``; it stands in the plans' name.
        base_features, max_features: Channels of the first stage, and their cap for 2-D and 3-D.
        reference: Feature-map voxels for 2-D and 3-D.
        reference_batch: Samples that the reference stands for, for 2-D and 3-D.
        training: Options that fit the budget.
    """

    name: str
    base_features: int
    max_features: dict[int, int]
    reference: dict[int, float]
    reference_batch: dict[int, int]
    training: TrainingOptions


def gpu_budget(gigabytes: float) -> Budget:
    """nnU-Net's memory target: its references stand for 8 GB and are scaled in proportion."""
    return Budget(
        name=f"{gigabytes:g}gb",
        base_features=32,
        max_features={2: 512, 3: 320},
        reference={2: 85e6 * gigabytes / 8, 3: 560e6 * gigabytes / 8},
        reference_batch={2: 12, 3: 2},
        training=TrainingOptions(),
    )


# Voxels of feature maps (nnU-Net's count for a plain U-Net of the same features) that U-Mamba_Bot trains on in a second
# on two AVX2 cores, augmentation included. Measured: 5.0e6 a sample at 40x56x40 took 0.23 s, 5.3e6 at 256x256 took
# 0.17 s. A constant instead of a stopwatch keeps plans the same whatever else the machine was doing. In 2-D it stands
# for half a second: batches of half the size, twice as many, gave a Dice of 0.767 (median 0.908) in nine minutes on
# Sunnybrook, against 0.772 and 0.731 (0.900 and 0.881) in ten.
_CPU_VOXELS = {2: 17e6, 3: 20e6}


def cpu_budget() -> Budget:
    """About one second per iteration on two cores: a quarter of nnU-Net's features, a short schedule, AdamW."""
    return Budget(
        name="cpu",
        base_features=8,
        max_features={2: 64, 3: 64},
        reference=dict(_CPU_VOXELS),
        reference_batch={2: 1, 3: 1},
        training=TrainingOptions(
            optimizer="AdamW", initial_lr=3e-3, epochs=60, iterations_per_epoch=50, val_iterations_per_epoch=5
        ),
    )
