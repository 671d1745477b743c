"""Training options from the plans and from the command line."""

import json

import pytest

from umamba_seg.errors import UserError
from umamba_seg.plan.options import TrainingOptions


def test_defaults_are_nnunets():
    options = TrainingOptions()
    assert (options.optimizer, options.initial_lr, options.weight_decay) == ("SGD", 1e-2, 3e-5)
    assert (options.epochs, options.iterations_per_epoch, options.val_iterations_per_epoch) == (1000, 250, 50)
    assert (options.momentum, options.nesterov) == (0.99, True)
    assert (options.schedule, options.poly_exponent, options.warmup_epochs) == ("poly", 0.9, 0)
    assert (options.loss, options.gradient_clip, options.oversample_foreground) == ("dice_ce", 12, 0.33)


def test_plans_of_older_versions_are_read():
    """They hold seven options."""
    old = {
        **{"optimizer": "AdamW", "initial_lr": 3e-3, "weight_decay": 3e-5, "epochs": 60, "iterations_per_epoch": 50},
        **{"val_iterations_per_epoch": 5, "max_minutes": None},
    }
    assert TrainingOptions.read(old, "plans.json").model_dump() == TrainingOptions().model_dump() | old


def test_options_survive_json():
    options = TrainingOptions(optimizer="Adam", betas=(0.8, 0.9), max_minutes=3.5)
    assert TrainingOptions.read(json.loads(json.dumps(options.model_dump())), "plans.json") == options


def test_command_line_wins_where_it_says_something():
    options = TrainingOptions(epochs=7, iterations_per_epoch=3)
    assert options.overridden(epochs=9, iterations_per_epoch=None) == TrainingOptions(epochs=9, iterations_per_epoch=3)
    assert options.overridden(epochs=2, max_minutes=2.5).epochs == 2


def test_validation_keeps_its_proportion():
    options = TrainingOptions(iterations_per_epoch=250, val_iterations_per_epoch=50)
    assert options.overridden(iterations_per_epoch=20).val_iterations_per_epoch == 4
    assert options.overridden(iterations_per_epoch=1).val_iterations_per_epoch == 1


def test_a_time_alone_replaces_the_epochs():
    options = TrainingOptions(epochs=7).overridden(epochs=None, max_minutes=2.5)
    assert (options.epochs, options.max_minutes) == (None, 2.5)


def test_training_has_to_end():
    with pytest.raises(UserError, match="would never end"):
        TrainingOptions.read({"epochs": None}, "plans.json")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs = 0"),
        ({"learning_rate": 1}, "learning_rate"),
        ({"optimizer": "Lion"}, "'SGD', 'Adam' or 'AdamW'"),
        ({"schedule": "step"}, "'poly', 'cosine' or 'constant'"),
        ({"loss": "focal"}, "'dice_ce' or 'ce'"),
        ({"precision": "half"}, "'auto', 'bfloat16', 'float16' or 'float32'"),
        ({"betas": [0.9, 1.0]}, r"betas\.1 = 1\.0"),
        ({"momentum": 0}, "nesterov is true and momentum 0"),
        ({"gradient_clip": 0}, "gradient_clip = 0"),
        ({"oversample_foreground": 1.5}, "oversample_foreground = 1.5"),
        ({"seed": -1}, "seed = -1"),
        ({"early_stop": 0}, "early_stop = 0"),
        ({"checkpoint_minutes": 0}, "checkpoint_minutes = 0"),
        ({"epochs": 5, "warmup_epochs": 5}, "warmup_epochs is 5, and epochs 5: give more epochs"),
        ({"epochs": None, "max_minutes": 9, "warmup_epochs": 1}, "warmup_epochs is 1, and epochs None"),
    ],
)
def test_impossible_options_are_named(values, message):
    with pytest.raises(UserError, match=message):
        TrainingOptions.read(values, "plans.json")
