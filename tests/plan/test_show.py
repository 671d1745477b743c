"""A plan explains itself: every reason, for plans that are made up."""

import pytest

from umamba_seg.plan.show import as_text

GIB = 2**30


def configuration(**changed) -> dict:
    """A 3-D configuration whose patch was shrunk and whose batch memory limits; ``planning`` is merged."""
    planning = {
        "limit_bytes": 8 * GIB,
        "estimated_bytes": 7 * GIB,
        "batch_by_memory": 2.4,
        "batch_by_data": 31.25,
        "data_voxels": 1e9,
        "fixed_depth": False,
        "largest_patch": [256, 256, 256],
        "tried": [
            {"patch_size": [192, 192, 192], "bytes": 12 * GIB},
            {"patch_size": [128, 128, 128], "bytes": 6 * GIB},
            {"patch_size": [144, 128, 128], "bytes": 9 * GIB},
        ],
    }
    plan = {
        "spacing": [1.0, 0.8, 0.8],
        "median_image_size_in_voxels": [320.0, 320.0, 320.5],
        "patch_size": [128, 128, 128],
        "batch_size": 2,
        "topology": {
            "strides": [[1, 1, 1], [2, 2, 2], [1, 2, 2]],
            "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
            "features": [32, 64, 128],
        },
    }
    return plan | changed | {"planning": planning | changed.get("planning", {})}


def text_of(**configurations: dict) -> str:
    """The explanation, with runs of blanks as one."""
    plans = {
        "dataset_name": "Dataset004_Hippocampus",
        "plans_name": "p",
        "configurations": configurations,
        "umamba_seg": {"network": "umamba_bot", "budget": "vram8gb", "budget_meaning": "a GPU of 8 GiB"},
    }
    return "\n".join(" ".join(line.split()) for line in as_text(plans).splitlines())


def fitting(*patch: int) -> dict:
    """The largest patch fits."""
    return {"tried": [{"patch_size": list(patch), "bytes": 6 * GIB}]}


def test_network_data_set_and_budget_come_first():
    assert text_of(fullres=configuration()).startswith(
        "umamba_bot for Dataset004_Hippocampus, plans p\nbudget vram8gb: a GPU of 8 GiB\n\nfullres\n"
    )


def test_every_number_of_a_configuration_is_told():
    lines = text_of(**{"3d_fullres": configuration()}).splitlines()
    for line in (
        "spacing 1×0.8×0.8 mm: the median of the data set; along a far coarser axis the 10th percentile",
        "images 320×320×320.5 voxels, the median at this spacing",
        "strides 1×1×1 2×2×2 1×2×2: an axis is halved while it has 8 voxels and its spacing is less than twice the "
        "finest",
        "kernels 1×3×3 3×3×3 3×3×3",
        "features 32-64-128",
        "memory 7.00 GiB estimated for a training step, 8.00 GiB allowed",
    ):
        assert line in lines


def test_a_patch_that_was_shrunk_names_the_next_larger_one():
    text = text_of(**{"3d_fullres": configuration()})
    assert "patch 128×128×128: the largest of which two samples fit; 144×128×128 takes 9.00 GiB" in text.splitlines()


def test_what_was_tried_is_listed_in_order():
    assert text_of(**{"3d_fullres": configuration()}).endswith(
        "192×192×192 12.00 GiB too much\n128×128×128 6.00 GiB fits\n144×128×128 9.00 GiB too much"
    )


def test_a_patch_may_be_the_median_image():
    plan = configuration(
        median_image_size_in_voxels=[36, 50, 35], patch_size=[40, 56, 40], planning=fitting(40, 56, 40)
    )
    assert "patch 40×56×40: the median image, as the strides divide it" in text_of(**{"3d_fullres": plan})


def test_a_network_of_fixed_depth_may_cut_the_median_image_to_the_nearest_multiple():
    strides = [[1, 1, 1], *[[2, 2, 2]] * 4]
    plan = configuration(
        median_image_size_in_voxels=[36, 50, 35],
        patch_size=[32, 48, 32],
        topology={"strides": strides, "kernel_sizes": [[3, 3, 3]] * 5, "features": [48, 48, 96, 192, 384]},
        planning=fitting(32, 48, 32) | {"fixed_depth": True},
    )
    text = text_of(**{"3d_fullres": plan})
    assert "patch 32×48×32: the median image, as the strides divide it" in text
    assert "strides 1×1×1 2×2×2 2×2×2 2×2×2 2×2×2: fixed by the network" in text


@pytest.mark.parametrize("image", [320, 400, 512])
def test_a_patch_may_be_the_largest_that_is_tried(image):
    plan = configuration(
        median_image_size_in_voxels=[image] * 3, patch_size=[256, 256, 256], planning=fitting(256, 256, 256)
    )
    reason = "the largest that is tried, 256³ voxels (2-D: 2048²) in the shape of a cube in mm"
    assert f"patch 256×256×256: {reason}" in text_of(**{"3d_fullres": plan})


@pytest.mark.parametrize(
    ("batch", "by_memory", "by_data", "reason"),
    [
        (2, 2.4, 31.25, "memory has room for 2.4 samples, 5 % of the data set's voxels are 31.2 patches"),
        (9, 40.0, 9.26, "memory has room for 40.0 samples, 5 % of the data set's voxels are 9.3 patches"),
        (2, 3.0, 0.5, "memory has room for 3.0 samples, 5 % of the data set's voxels are 0.5 patches; 2 at least"),
    ],
    ids=["memory", "data", "two at least"],
)
def test_what_limits_the_batch_is_told(batch, by_memory, by_data, reason):
    plan = configuration(batch_size=batch, planning={"batch_by_memory": by_memory, "batch_by_data": by_data})
    assert f"batch {batch}: {reason}" in text_of(**{"3d_fullres": plan}).splitlines()


def test_a_low_resolution_says_why_it_is_as_coarse_as_it_is():
    text = text_of(**{"3d_lowres": configuration()})
    assert "1×0.8×0.8 mm: as coarse as it takes for a patch to cover a quarter of the image" in text


def test_a_second_stage_tells_what_it_sees_and_what_it_shares():
    cascade = configuration(previous_stage="3d_lowres", planning={"as_in": "3d_fullres"})
    text = text_of(**{"3d_cascade_fullres": cascade})
    lines = text.splitlines()
    assert "input the image, and the result of 3d_lowres label by label" in lines
    assert "patch 128×128×128: that of 3d_fullres, as nnU-Net keeps it" in lines
    assert "batch 2: that of 3d_fullres, as nnU-Net keeps it" in lines
    assert "memory 7.00 GiB estimated for a training step, 8.00 GiB allowed" in lines
    assert "tried" not in text


def test_a_plan_like_another_names_it():
    shown = text_of(fullres=configuration(planning={"like": "first"}))
    assert "patch 128×128×128: that of plans first" in shown
    assert "batch 2: that of plans first" in shown


def test_a_second_stage_that_was_planned_smaller_tells_what_was_tried():
    text = text_of(**{"3d_cascade_fullres": configuration(previous_stage="3d_lowres")})
    assert "input the image, and the result of 3d_lowres label by label" in text
    assert "patch 128×128×128: the largest of which two samples fit; 144×128×128 takes 9.00 GiB" in text
    assert text.endswith("144×128×128 9.00 GiB too much")


def test_what_was_measured_is_told():
    measured = {"device": "NVIDIA A100", "bytes": round(6.5 * GIB), "seconds": 0.314}
    text = text_of(**{"3d_fullres": configuration(planning={"measured": measured})})
    assert "8.00 GiB allowed; measured: 6.50 GiB, 0.31 s a step on NVIDIA A100" in text


def test_configurations_that_were_not_searched_are_left_out():
    text = text_of(mine={"patch_size": [8, 8]}, **{"2d": configuration()})
    assert "mine" not in text
    assert "\n2d\n" in text


@pytest.mark.parametrize(
    ("axes", "swap", "shown"),
    [
        ([0, 1, 2], None, "axes 0 1 2"),
        ([], None, "no axis"),
        ([0, 2], {"axis": 2, "pairs": [[1, 2], [4, 5]]}, "axes 0 2, axis 2 with the labels 1↔2, 4↔5"),
    ],
    ids=["all", "none", "exchanged"],
)
def test_mirroring_is_told_with_its_reason(axes, swap, shown):
    plan = configuration(mirroring={"axes": axes, "swap": swap, "reason": "because"})
    assert f"mirroring {shown}: because" in text_of(**{"3d_fullres": plan}).splitlines()


def test_plans_without_a_word_on_mirroring_are_shown():
    assert "mirroring" not in text_of(**{"3d_fullres": configuration()})
