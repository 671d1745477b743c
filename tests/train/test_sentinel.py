"""Who is blamed for numbers that are not finite, and what is done about them."""

import json
import math
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn

from umamba_seg.errors import UserError
from umamba_seg.networks import Topology, build
from umamba_seg.train.sentinel import (
    FLOAT32_ITERATIONS,
    Action,
    BadStep,
    Blame,
    Buffers,
    Kind,
    Recovery,
    find_blame,
    worst,
)

FLOAT16 = partial(torch.autocast, "cpu", torch.float16)
BFLOAT16 = partial(torch.autocast, "cpu", torch.bfloat16)
KEYS = ("a", "b")


class Times(nn.Module):
    """Multiplies by a number."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


class Guilty(torch.autograd.Function):
    """The identity, with an infinite gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.inf


class GuiltyBackward(nn.Module):
    def forward(self, x):
        return Guilty.apply(x)


class Residual(nn.Module):
    """x + inner(x), whose backward pass hands one and the same gradient to both sides."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class Between(nn.Module):
    """Overflows in its own forward, between two layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.second(self.first(x) / 0)


def layers(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(inplace=True), *between, nn.Linear(8, 3))


def mean(output, _target):
    return output.mean()


def blame_of(network, *, loss=mean, data=None, autocast=nullcontext, scale=1.0) -> Blame | None:
    data = torch.ones(2, 4) if data is None else data
    return find_blame(network, loss, data, None, KEYS, autocast, scale)


# ---------------------------------------------------------------------------------------------------------- the blame


def test_clean_step_has_no_blame():
    network = layers()
    for weight in network.parameters():
        weight.grad = torch.full_like(weight, math.nan)  # of the bad step
    assert blame_of(network) is None


def test_input_names_cases_and_channels():
    data = torch.ones(2, 3, 4, 4)
    data[1, 0, :2, 1] = math.nan
    data[1, 2, 0, 0] = -math.inf
    data[0, 1, 0, 0] = -7
    blame = blame_of(nn.Conv2d(3, 2, 1), data=data)
    assert (blame.kind, blame.module, blame.cases) == (Kind.INPUT, None, ("b",))
    assert (blame.bad, blame.total, blame.largest) == (3, 96, 7)
    assert blame.channels == (("b", 0, 2), ("b", 2, 1))
    assert str(blame) == (
        "the input is the first that is not finite: 3 of 96 values, in float32, the largest finite magnitude until "
        "there 7; cases b (2 in channel 0 of b, 1 in channel 2 of b)"
    )


def test_blame_is_plain_json():
    data = torch.full((2, 4), math.inf)
    plain = json.loads(json.dumps(blame_of(layers(), data=data).as_json(), allow_nan=False))
    assert plain == {
        "kind": "input",
        "place": "input",
        "module": None,
        "cases": ["a", "b"],
        "precision": "float32",
        "bad": 8,
        "total": 8,
        "largest": 0.0,
        "channels": [[case, channel, 1] for case in "ab" for channel in range(4)],
    }


def test_weights_are_named():
    network = layers()
    with torch.no_grad():
        network[2].weight[1, :2] = math.nan
    blame = blame_of(network)
    assert (blame.kind, blame.place, blame.module) == (Kind.WEIGHTS, "weight", "2 (Linear)")
    assert (blame.bad, blame.total, blame.cases) == (2, 24, KEYS)


def test_running_statistics_count_only_where_they_are_read():
    network = layers(nn.BatchNorm1d(8))
    network[2].running_var.fill_(math.nan)
    assert blame_of(network.train()) is None
    blame = blame_of(network.eval())
    assert (blame.kind, blame.place, blame.module) == (Kind.WEIGHTS, "running_var", "2 (BatchNorm1d)")


def test_activation_that_overflows_in_float16_alone():
    network = layers(nn.Sequential(Times(1e3), Times(1e4)))
    blame = blame_of(network, autocast=FLOAT16)
    assert (blame.kind, blame.place, blame.module) == (Kind.ACTIVATION, "output", "2.1 (Times)")
    assert (blame.precision, blame.cases, blame.total) == ("float16", KEYS, 16)
    assert 100 < blame.largest < 65504
    assert str(blame).startswith(
        f"the output of 2.1 (Times) is the first that is not finite: {blame.bad} of 16 values, in float16, "
    )
    assert blame_of(network, autocast=BFLOAT16) is None
    assert blame_of(network) is None


def test_what_a_module_computes_itself_is_the_input_of_the_next():
    blame = blame_of(nn.Sequential(Between()))
    assert (blame.kind, blame.place, blame.module) == (Kind.ACTIVATION, "input", "0.second (Linear)")


def test_case_that_is_in_the_batch_twice_is_named_once():
    blame = find_blame(layers(Times(math.inf)), mean, torch.ones(3, 4), None, ("b", "a", "b"), nullcontext)
    assert blame.cases == ("b", "a")


def test_outputs_in_lists_are_looked_at():
    class Heads(nn.Module):
        def forward(self, x):
            return [x, {"coarse": x * math.inf}]

    blame = blame_of(nn.Sequential(nn.Linear(4, 4), Heads()), loss=lambda outputs, _: outputs[0].mean())
    assert (blame.place, blame.module) == ("output", "1 (Heads)")


def test_loss_is_blamed_if_the_network_is_fine():
    blame = blame_of(layers(), loss=lambda output, _: output.mean() / 0, autocast=BFLOAT16)
    assert (blame.kind, blame.module, blame.precision) == (Kind.LOSS, None, "bfloat16")
    assert 0 < blame.largest < 10
    assert str(blame).startswith("the loss is the first that is not finite: 1 of 1 values, in bfloat16")


@pytest.mark.parametrize(
    ("network", "module"),
    [
        (layers(GuiltyBackward(), nn.LeakyReLU(inplace=True)), "2 (GuiltyBackward)"),
        (layers(nn.Sequential(nn.Linear(8, 8), nn.LeakyReLU(inplace=True), GuiltyBackward())), "2.2 (GuiltyBackward)"),
        (layers(Residual(nn.Linear(8, 8)), GuiltyBackward()), "3 (GuiltyBackward)"),
    ],
)
def test_gradient_names_the_module_that_made_it(network, module):
    blame = blame_of(network)
    assert (blame.kind, blame.place, blame.module) == (Kind.GRADIENT, "gradient of the input", module)


def test_gradient_of_the_loss_itself():
    blame = blame_of(layers(), loss=lambda output, _: (output * 0).sqrt().mean())
    assert (blame.kind, blame.place, blame.module) == (Kind.GRADIENT, "gradient of the output", "network (Sequential)")


def test_gradient_of_a_weight():
    """A weight's gradient is a sum over the batch: it overflows where what is passed on does not."""
    blame = blame_of(nn.Linear(4, 1), data=torch.full((2, 4), 1e38), loss=lambda output, _: output.sum() * 3)
    assert (blame.kind, blame.place) == (Kind.GRADIENT, "gradient of the weight")
    assert (blame.module, blame.bad, blame.total) == ("network (Linear)", 4, 4)


def test_gradient_scale_that_is_too_large():
    """The gradient of an activation is in float16 like the activation."""
    sensitive = partial(blame_of, layers(), loss=lambda output, _: output.float().sum() * 4, autocast=FLOAT16)
    blame = sensitive(scale=65536)
    assert (blame.kind, blame.place, blame.module) == (Kind.GRADIENT, "gradient of the output", "network (Sequential)")
    assert sensitive(scale=1024) is None


def test_gradient_magnitudes_are_those_without_the_scale():
    network = nn.Sequential(GuiltyBackward(), nn.Linear(4, 1))
    data = torch.ones(2, 4, requires_grad=True)
    blame = blame_of(network, data=data, loss=lambda output, _: output.sum() / 4, scale=1024)
    assert (blame.module, blame.largest) == ("0 (GuiltyBackward)", 0.5)  # of the bias: 1/4 for each sample


def test_norm_of_gradients_overflows_before_they_do():
    blame = blame_of(layers(), loss=lambda output, _: output.mean() * 1e25, scale=8)
    assert (blame.kind, blame.place, blame.module) == (Kind.GRADIENT, "norm of all gradients", None)
    assert 1e24 < blame.largest < 1e26
    assert blame_of(layers(), loss=lambda output, _: output.mean() * 1e17, scale=2.0**16) is None


@pytest.mark.parametrize("wrong", [False, True])
def test_the_whole_step_runs_whatever_is_wrong(wrong):
    """Other processes wait in the loss and in the backward pass."""
    calls = []

    def loss(output, _target):
        calls.append("loss")
        output.register_hook(lambda _: calls.append("backward"))
        return output.mean()

    data = torch.full((2, 4), math.nan if wrong else 1.0)
    assert (blame_of(layers(), loss=loss, data=data) is not None) is wrong
    assert calls == ["loss", "backward"]


def fails(_output, _target):
    raise RuntimeError("out of memory")


@pytest.mark.parametrize("loss", [mean, lambda output, _: output.mean() / 0, fails])
def test_network_is_left_as_it_was(loss):
    network = layers(nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Dropout(0.5).eval())
    mean(network(torch.ones(2, 4)), None).backward()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    random = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="out of memory") if loss is fails else nullcontext():
        blame_of(network, loss=loss)
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(weight.grad is None for weight in network.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert not any(weight._backward_hooks for weight in network.parameters())


def test_dropout_repeats():
    network, losses = layers(nn.Dropout(0.5)), []

    def loss(output, _target):
        losses.append(output.mean())
        return losses[-1]

    torch.manual_seed(5)
    loss(network(torch.ones(2, 4)), None)
    torch.manual_seed(5)
    blame_of(network, loss=loss)
    assert losses[0] == losses[1]


def test_compiled_network_is_searched_by_its_own_names():
    network = layers(Times(math.inf))
    assert blame_of(torch.compile(network, backend="eager")).module == "2 (Times)"


@pytest.mark.parametrize(("name", "stages", "size"), [("umamba_enc", 2, 8), ("nnmamba", 4, 16)])
def test_real_network(name, stages, size, one_thread):
    """With activations in place, the scan's own ops, and several outputs."""
    torch.manual_seed(0)
    strides = ((1, 1, 1), *((2, 2, 2),) * (stages - 1))
    topology = Topology((size,) * 3, strides, ((3, 3, 3),) * stages, (4, 8, 16, 32)[:stages])
    network = build(name, input_channels=1, num_classes=2, topology=topology, deep_supervision=True)
    data = torch.randn(2, 1, size, size, size)

    def loss(outputs, _target):
        return sum(output.square().mean() for output in outputs)

    assert blame_of(network, data=data, loss=loss) is None
    path, layer = [item for item in network.named_modules() if isinstance(item[1], nn.Conv3d)][2]
    with torch.no_grad():
        layer.weight.fill_(3e38)
    blame = blame_of(network, data=data, loss=loss)
    assert (blame.kind, blame.place, blame.module) == (Kind.ACTIVATION, "output", f"{path} (Conv3d)")


def test_buffers_of_a_step_that_is_not_applied():
    network = layers(nn.BatchNorm1d(8))
    buffers = Buffers(network)
    network(torch.randn(2, 4))
    buffers.keep()
    good = [buffer.clone() for buffer in network.buffers()]
    network(torch.full((2, 4), math.nan))
    assert network[2].running_mean.isnan().all()
    buffers.restore()
    assert all(torch.equal(buffer, kept) for buffer, kept in zip(network.buffers(), good, strict=True))


# ------------------------------------------------------------------------------------------------------- the recovery


def blame(kind: Kind | None, precision: str = "float32") -> Blame | None:
    return None if kind is None else Blame(kind, "output", "net (Net)", KEYS, precision, 1, 10, 5.0)


def step(kind: Kind | None, precision: str = "float32", iteration: int = 7, scale: float | None = None) -> BadStep:
    return BadStep(2, iteration, precision, 0.01, scale, blame(kind, precision))


def test_processes_agree_on_the_worst():
    blames = [None, blame(Kind.GRADIENT), blame(Kind.ACTIVATION), blame(Kind.LOSS), None]
    assert worst(blames) is blames[2]
    assert worst([None, None]) is None
    assert sorted(Kind) == [Kind.GRADIENT, Kind.LOSS, Kind.ACTIVATION, Kind.WEIGHTS, Kind.INPUT]


HALF = [
    (kind, precision, scale)
    for kind in (Kind.GRADIENT, Kind.LOSS, Kind.ACTIVATION)
    for precision, scale in (("bfloat16", None), ("float16", 512.0))
    if (kind, precision) != (Kind.GRADIENT, "float16")
]


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32"])
def test_input_gives_up_at_once(precision):
    recovery = Recovery()
    assert recovery.decide(step(Kind.INPUT, precision, scale=512.0)) is Action.GIVE_UP
    with pytest.raises(UserError, match=r"tried before: nothing; look at the raw images of these cases"):
        raise recovery.error("fold_0", step(Kind.INPUT, precision))


@pytest.mark.parametrize(("kind", "precision", "scale"), HALF)
def test_half_precision_is_retried_in_float32(kind, precision, scale):
    recovery = Recovery()
    assert not recovery.needs_float32(7)
    assert recovery.decide(step(kind, precision, 7, scale)) is Action.RETRY
    assert recovery.needs_float32(7)
    assert recovery.needs_float32(6 + FLOAT32_ITERATIONS)
    assert not recovery.needs_float32(7 + FLOAT32_ITERATIONS)
    assert recovery.learning_rate_factor == 1


def test_third_turn_to_float32_is_for_good():
    recovery = Recovery()
    for iteration in (100, 1000, 3000):
        assert not recovery.needs_float32(iteration)
        assert recovery.decide(step(Kind.LOSS, "bfloat16", iteration)) is Action.RETRY
    assert recovery.needs_float32(10**9)
    assert [event["done"].rsplit(" until ")[1] for event in recovery.events] == [
        "iteration 600",
        "iteration 1500",
        "the end of the training",
    ]


def test_gradients_in_float16_are_left_to_the_scaler_for_a_while():
    recovery = Recovery()
    for iteration in range(10):
        assert recovery.decide(step(Kind.GRADIENT, "float16", iteration, 512.0)) is Action.SKIP
    assert recovery.decide(step(Kind.GRADIENT, "float16", 10, 512.0)) is Action.RETRY
    assert recovery.needs_float32(10)
    assert (recovery.skipped, len(recovery.events)) == (10, 1)


def test_good_step_ends_the_row_of_batches_left_out():
    recovery = Recovery()
    for iteration in (*range(10), *range(11, 21)):
        assert recovery.decide(step(Kind.GRADIENT, "float16", iteration, 512.0)) is Action.SKIP
    assert (recovery.skipped, recovery.skips_in_a_row) == (20, 10)


@pytest.mark.parametrize(("scale", "action"), [(1.0, Action.SKIP), (0.5, Action.RETRY), (None, Action.RETRY)])
def test_smallest_scale_and_no_scaler(scale, action):
    assert Recovery().decide(step(Kind.GRADIENT, "float16", 7, scale)) is action


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        (Kind.GRADIENT, "float32"),
        (Kind.LOSS, "float32"),
        (Kind.ACTIVATION, "float32"),
        (Kind.WEIGHTS, "float32"),
        (Kind.WEIGHTS, "float16"),
        (Kind.WEIGHTS, "bfloat16"),
    ],
)
def test_rewinds_halve_the_rate_and_end(kind, precision):
    recovery = Recovery()
    for factor in (0.5, 0.25, 0.125):
        assert recovery.decide(step(kind, precision)) is Action.REWIND
        assert recovery.learning_rate_factor == factor
    assert not recovery.needs_float32(7)
    assert recovery.decide(step(kind, precision)) is Action.GIVE_UP
    assert recovery.learning_rate_factor == 0.125


def test_failed_retry_in_float32_rewinds_and_stays_in_float32():
    recovery = Recovery()
    assert recovery.decide(step(Kind.LOSS, "float16", 900, 512.0)) is Action.RETRY
    assert recovery.decide(step(Kind.LOSS, "float32", 900)) is Action.REWIND
    assert recovery.needs_float32(700)
    assert recovery.needs_float32(900)


@pytest.mark.parametrize(("precision", "then"), [("bfloat16", Action.RETRY), ("float32", Action.REWIND)])
def test_transient_is_retried_once(precision, then):
    recovery = Recovery()
    assert recovery.decide(step(None, precision)) is Action.RETRY
    assert not recovery.needs_float32(7)
    assert recovery.decide(step(None, precision)) is then
    assert recovery.needs_float32(7) == (precision == "bfloat16")
    assert recovery.transients == 1


def test_too_many_transients_end_training():
    recovery = Recovery()
    for iteration in range(10):
        assert recovery.decide(step(None, iteration=iteration)) is Action.RETRY
    assert recovery.decide(step(None, iteration=10)) is Action.GIVE_UP
    with pytest.raises(UserError, match="check the device: its memory"):
        raise recovery.error("fold_0", step(None, iteration=10))


def test_state_survives_a_checkpoint():
    """Each decision after a round through JSON is that of a recovery that was never interrupted."""
    steps = [
        *(step(Kind.GRADIENT, "float16", iteration, 512.0) for iteration in range(11)),
        step(None, "float16", 600, 512.0),
        step(None, "float16", 600, 512.0),
        *(step(Kind.LOSS, "float32", iteration) for iteration in (600, 605, 605, 605)),
    ]
    whole, actions = Recovery(), []
    for bad in steps:
        resumed = Recovery()
        resumed.load_state_dict(json.loads(json.dumps(whole.state_dict(), allow_nan=False)))
        actions.append(whole.decide(bad))
        assert resumed.decide(bad) is actions[-1]
        assert resumed.needs_float32(1050) == whole.needs_float32(1050)
        assert resumed.learning_rate_factor == whole.learning_rate_factor
    assert actions == [*[Action.SKIP] * 10, *[Action.RETRY] * 3, *[Action.REWIND] * 3, Action.GIVE_UP]


def test_state_kept_in_a_checkpoint_does_not_change_later():
    recovery = Recovery()
    state = recovery.state_dict()
    recovery.decide(step(Kind.LOSS))
    assert state == Recovery().state_dict()


def test_giving_up_tells_the_whole_story():
    recovery = Recovery()
    recovery.decide(step(Kind.GRADIENT, "float16", 6, 512.0))
    recovery.decide(step(Kind.ACTIVATION, "float16", 7, 512.0))
    for _ in range(4):
        recovery.decide(step(Kind.ACTIVATION))
    assert str(recovery.error("fold_0", step(Kind.ACTIVATION))) == (
        "fold_0: training gave up in epoch 2, iteration 7, at a learning rate of 0.01: the output of net (Net) is the "
        "first that is not finite: 1 of 10 values, in float32, the largest finite magnitude until there 5; cases a, b; "
        "tried before: batches left out at halved gradient scales: 1, "
        "iteration 7: the same batch again in float32, and so on until iteration 507, "
        "iteration 7: back to the last checkpoint, at 0.5 times the planned learning rate, "
        "iteration 7: back to the last checkpoint, at 0.25 times the planned learning rate, "
        "iteration 7: back to the last checkpoint, at 0.125 times the planned learning rate; "
        "look at the images and labels of these cases, or lower umamba_seg.training.initial_lr in the plans, "
        "and train the fold again"
    )
    report = json.loads(json.dumps(recovery.report(), allow_nan=False))
    assert (report["skipped"], report["float32_turns"], report["rewinds"]) == (1, 1, 3)
    assert report["learning_rate_factor"] == 0.125
    assert [event["action"] for event in report["events"]] == ["retry", "rewind", "rewind", "rewind", "give up"]
    assert report["events"][0] == {
        "epoch": 2,
        "iteration": 7,
        "precision": "float16",
        "learning_rate": 0.01,
        "scale": 512.0,
        "blame": blame(Kind.ACTIVATION, "float16").as_json() | {"cases": ["a", "b"], "channels": []},
        "found": str(blame(Kind.ACTIVATION, "float16")),
        "action": "retry",
        "done": "the same batch again in float32, and so on until iteration 507",
    }


def test_nothing_is_silent(caplog):
    recovery = Recovery()
    with caplog.at_level("INFO", "umamba_seg"):
        recovery.decide(step(Kind.GRADIENT, "float16", 6, 512.0))
        recovery.decide(step(Kind.LOSS))
    skipped, rewound = (record.getMessage() for record in caplog.records)
    assert skipped.startswith("epoch 2, iteration 6: the output of net (Net) is the first that is not finite")
    assert skipped.endswith("cases a, b: left out; the gradient scale of 512 is halved")
    assert rewound.endswith("cases a, b: back to the last checkpoint, at 0.5 times the planned learning rate")
