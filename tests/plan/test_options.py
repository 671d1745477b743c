"""Training options from the plans and from the command line."""

import pytest

from umamba_seg.errors import UserError
from umamba_seg.plan.options import TrainingOptions


def test_defaults_are_nnunets():
    options = TrainingOptions()
    assert (options.optimizer, options.initial_lr, options.weight_decay) == ("SGD", 1e-2, 3e-5)
    assert (options.epochs, options.iterations_per_epoch, options.val_iterations_per_epoch) == (1000, 250, 50)


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
        ({"optimizer": "Adam"}, "'SGD' or 'AdamW'"),
    ],
)
def test_impossible_options_are_named(values, message):
    with pytest.raises(UserError, match=message):
        TrainingOptions.read(values, "plans.json")
