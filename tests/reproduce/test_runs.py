"""A table resolved into jobs: networks, data sets, seeds, twins, and what the user changed."""

import pytest

from umamba_seg.errors import UserError
from umamba_seg.reproduce.runs import changed, jobs_of

TWO_SEEDS = "seeds = [0, 1]"


def test_one_job_for_every_network_and_seed(small_table, folders):
    jobs = jobs_of(small_table(training=TWO_SEEDS), folders)
    assert [(job.network, job.key, job.seed) for job in jobs] == [
        ("umamba_bot", "liver", 0),
        ("umamba_bot", "liver", 1),
    ]
    assert [job.plans for job in jobs] == ["small_umamba_bot_cpu_quick_seed0", "small_umamba_bot_cpu_quick_seed1"]
    assert len({job.model for job in jobs}) == 2


def test_twins_follow_their_network_and_take_its_plan(small_table, folders):
    table, _ = changed(small_table(), with_noscan=True)
    assert [row.method for row in table.rows] == [
        "nnU-Net",
        "U-Mamba_Bot",
        "U-Mamba_Bot without the scan",
        "nnU-Net ResEnc",
    ]
    jobs = {job.network: job for job in jobs_of(table, folders)}
    assert jobs["umamba_bot_noscan"].like == jobs["umamba_bot"].plans
    assert jobs["umamba_bot"].like is None
    assert jobs["residual_encoder_unet"].like is None
    order = list(jobs)
    assert order.index("umamba_bot") < order.index("umamba_bot_noscan")


def test_a_twin_that_the_table_has_is_not_added(small_table):
    own = '[[rows]]\nmethod = "Base"\nnetwork = "umamba_bot_noscan"'
    table, _ = changed(small_table(rows=own), with_noscan=True)
    assert [row.network for row in table.rows].count("umamba_bot_noscan") == 1


def test_a_network_without_these_dimensions_is_not_run(small_table, folders):
    flat = small_table(dataset='configuration = "2d"', rows='[[rows]]\nmethod = "S"\nnetwork = "segmamba"')
    assert {job.network for job in jobs_of(flat, folders)} == {"umamba_bot"}


def test_what_the_user_changes_is_said_and_has_another_name(small_table, folders):
    table, remarks = changed(small_table(), seeds=[3], epochs=7, folds=[1, 2])
    assert remarks == [
        "seeds 3 instead of the table's 0",
        "7 epochs instead of those of budget and recipe",
        "liver: folds 1, 2 instead of the table's 0",
    ]
    [job] = jobs_of(table, folders, epochs_given=True)
    assert (job.seed, job.training.epochs, job.dataset.folds) == (3, 7, (1, 2))
    assert job.plans == "small_umamba_bot_cpu_quick_7epochs_seed3"


def test_what_is_as_in_the_table_is_no_change(small_table):
    assert changed(small_table(), seeds=[0], folds=[0])[1] == []


def test_only_some_networks(small_table, folders):
    table, remarks = changed(small_table(), only=["residual_encoder_unet"], with_noscan=True)
    assert {job.network for job in jobs_of(table, folders)} == {"residual_encoder_unet"}
    assert table.rows[1].published  # the others keep their numbers
    assert remarks == ["only residual_encoder_unet were asked for"]


def test_a_network_that_the_table_does_not_have(small_table):
    with pytest.raises(UserError, match=r"the table small does not run segmamba; choose among umamba_bot"):
        changed(small_table(), only=["segmamba"])


def test_fold_all_cannot_be_exchanged(small_table):
    with pytest.raises(UserError, match="liver is trained on all cases"):
        changed(small_table(dataset='folds = ["all"]\nscored = "test"'), folds=[0])


def test_what_the_user_gives_reaches_rows_of_their_own_training(small_table, folders):
    own = '[[rows]]\nmethod = "S"\nnetwork = "segmamba"\ntraining = { epochs = 9 }'
    table, _ = changed(small_table(rows=own), epochs=2)
    assert {job.training.epochs for job in jobs_of(table, folders)} == {2}


@pytest.mark.parametrize("option", ["seeds", "folds"])
def test_the_same_twice_is_refused(small_table, option):
    with pytest.raises(UserError, match=f"--{option} 0 0: names one twice"):
        changed(small_table(), **{option: [0, 0]})


def test_a_twin_is_not_run_without_the_network_whose_plan_it_takes(small_table):
    with pytest.raises(UserError, match="umamba_bot_noscan takes patch and batch of umamba_bot"):
        changed(small_table(), only=["umamba_bot_noscan"], with_noscan=True)
