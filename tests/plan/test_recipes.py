"""Recipes of papers: presets, files of one's own, and what they do to a plan's options."""

import pytest

from umamba_seg.errors import UserError
from umamba_seg.plan.budgets import cpu_budget, gpu_budget
from umamba_seg.plan.options import TrainingOptions
from umamba_seg.plan.recipes import read_recipe, recipes

GPU, CPU = gpu_budget(8).training, cpu_budget().training


@pytest.fixture
def file(tmp_path):
    """``file(text)`` writes a recipe and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return str(path)

    return write


def test_presets():
    assert recipes() == ["lightmunet", "nnmamba", "nnunet", "segmamba", "umamba"]


@pytest.mark.parametrize("name", recipes())
def test_a_preset_names_its_source_and_fits_every_budget(name):
    recipe = read_recipe(name)
    assert "nnUNetTrainer.py" in recipe.source or "https://github.com/" in recipe.source
    for options in (GPU, CPU):
        applied = recipe.applied(options)
        assert (applied.recipe, applied.epochs) == (name, recipe.training["epochs"])


def test_nnunets_recipe_gives_the_defaults():
    assert read_recipe("nnunet").applied(CPU) == TrainingOptions(recipe="nnunet")


def test_segmamba_differs_from_nnunet_in_its_loss():
    assert read_recipe("segmamba").applied(GPU) == TrainingOptions(recipe="segmamba", loss="ce")


def test_umamba_trains_as_nnunet():
    assert read_recipe("umamba").applied(GPU) == TrainingOptions(recipe="umamba")


def test_nnmamba_differs_from_nnunet_in_its_rate():
    assert read_recipe("nnmamba").applied(GPU) == TrainingOptions(recipe="nnmamba", initial_lr=1e-4)


def test_lightmunet_takes_adam_in_float32_for_100_epochs():
    assert read_recipe("lightmunet").applied(GPU) == TrainingOptions(
        recipe="lightmunet", optimizer="Adam", eps=1e-5, initial_lr=1e-4, weight_decay=1e-5, epochs=100,
        precision="float32",
    )  # fmt: skip


def test_what_a_recipe_does_not_give_is_the_budgets(file):
    path = file('source = "a paper"\n[training]\ninitial_lr = 0.5')
    recipe = read_recipe(path)
    assert (recipe.name, recipe.stem, recipe.source) == (path, "mine", "a paper")
    assert recipe.applied(CPU).model_dump() == CPU.model_dump() | {"recipe": path, "initial_lr": 0.5}


def test_a_recipe_that_does_not_fit_the_budget_is_refused(file):
    """Alone it would do: nnU-Net's 1000 epochs are more than the budget's 60."""
    recipe = read_recipe(file('source = "a paper"\n[training]\nwarmup_epochs = 100'))
    with pytest.raises(UserError, match=r"recipe .*mine\.toml: .*warmup_epochs is 100, and epochs 60"):
        recipe.applied(CPU)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[training]", r"mine\.toml: source = .*Field required"),
        ('source = "a paper"\ntraining = 1', r"mine\.toml: training = 1"),
        ('source = "a paper"\n[training]\nlr = 1', r"mine\.toml: lr = 1: Extra inputs are not permitted"),
        ('source = "a paper"\n[training]\ninitial_lr = 0', r"mine\.toml: initial_lr = 0"),
        ("source = ", r"mine\.toml: not TOML"),
    ],
)
def test_files_that_are_no_recipe_are_refused(file, text, message):
    with pytest.raises(UserError, match=message):
        read_recipe(file(text))


def test_a_recipe_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="recipe unet: there is none of this name; choose one of lightmunet, nnmamba"):
        read_recipe("unet")
    with pytest.raises(UserError, match=r"unet\.toml: no such file"):
        read_recipe("unet.toml")
