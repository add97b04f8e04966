"""Which parameters learn, how fast, and how the rate moves."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import nn

from orchestrator.errors import InputError
from orchestrator.training.config import LayerDecay, OptimConfig
from orchestrator.training.optim import (
    clip,
    freeze,
    layer_scales,
    learning_rate,
    make_optimizer,
    matches,
    parameter_groups,
    whole_norm,
)


def model() -> nn.ModuleDict:
    return nn.ModuleDict({"tower": nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), "head": nn.Linear(3, 1)})


def test_the_rate_warms_up_then_falls_as_a_cosine() -> None:
    optim = OptimConfig(lr=1.0, warmup_steps=4, schedule="cosine", min_lr_ratio=0.1)

    rates = [learning_rate(optim, step, 12) for step in range(12)]

    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[8] == pytest.approx(0.55)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_a_linear_rate_falls_evenly_and_a_constant_one_stays() -> None:
    linear, constant = OptimConfig(lr=2.0, schedule="linear"), OptimConfig(lr=2.0, schedule="constant")

    assert [learning_rate(linear, step, 4) for step in range(4)] == [2.0, 1.5, 1.0, 0.5]
    assert [learning_rate(constant, step, 4) for step in range(4)] == [2.0] * 4


@given(
    schedule=some.sampled_from(["linear", "cosine", "constant"]),
    warmup_steps=some.integers(0, 30),
    steps=some.integers(1, 50),
    min_lr_ratio=some.floats(0, 1),
)
def test_the_rate_never_leaves_its_bounds(schedule: str, warmup_steps: int, steps: int, min_lr_ratio: float) -> None:
    optim = OptimConfig(lr=3.0, schedule=schedule, warmup_steps=warmup_steps, min_lr_ratio=min_lr_ratio)  # type: ignore[arg-type]  # hypothesis draws plain text

    rates = [learning_rate(optim, step, steps) for step in range(steps)]

    assert all(0 < rate <= 3.0 + 1e-12 for rate in rates[:warmup_steps])
    assert all(3.0 * min_lr_ratio - 1e-12 <= rate <= 3.0 + 1e-12 for rate in rates[warmup_steps:])


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("head", True),
        ("head.weight", True),
        ("*weight", True),
        ("h*", True),
        ("hea", False),
        ("tower", False),
        ("*bias", False),
    ],
)
def test_a_pattern_is_a_glob_over_the_name_or_over_a_whole_prefix(pattern: str, meant: bool) -> None:  # noqa: FBT001
    assert matches("head.weight", pattern) is meant


def test_exactly_the_named_parameters_learn() -> None:
    net = model()

    freeze(net, ("head", "tower.*.bias"))

    assert [name for name, p in net.named_parameters() if p.requires_grad] == [
        "tower.0.bias", "tower.1.bias", "head.weight", "head.bias",
    ]  # fmt: skip


def test_a_pattern_that_names_nothing_is_refused_with_what_there_is() -> None:
    with pytest.raises(
        InputError, match=r"train\.trainable: 'haed' names no parameter of the model; there are head\.bias"
    ):
        freeze(model(), ("head", "haed"))


def test_a_rate_scale_that_names_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"train\.optim\.lr_scales: 'tail' names no parameter"):
        parameter_groups(model(), OptimConfig(lr=1.0, lr_scales={"tail": 0.5}))


def test_groups_differ_in_rate_and_vectors_never_decay() -> None:
    optim = OptimConfig(lr=2.0, weight_decay=0.1, lr_scales={"head.weight": 0.5, "head": 0.25})

    groups = parameter_groups(model(), optim)

    assert [(group["lr"], group["weight_decay"], len(group["params"])) for group in groups] == [
        (2.0, 0.1, 1),  # tower.0.weight
        (2.0, 0.0, 3),  # tower.0.bias, tower.1.*
        (1.0, 0.1, 1),  # head.weight: the first match counts
        (0.5, 0.0, 1),  # head.bias
    ]


def test_frozen_parameters_are_in_no_group() -> None:
    net = model()
    freeze(net, ("head",))

    groups = parameter_groups(net, OptimConfig(lr=1.0))

    assert sum(len(group["params"]) for group in groups) == 2


def test_the_rate_falls_from_layer_to_layer_and_once_more_below_them() -> None:
    names = ["embed.weight", "layers.0.weight", "layers.1.weight", "layers.2.bias", "head.weight"]

    scales = layer_scales(names, LayerDecay(factor=0.5, stack="layers", below=("embed",)))

    assert scales == dict(zip(names, [0.125, 0.25, 0.5, 1.0, 1.0], strict=True))


def test_a_stack_that_is_none_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"train\.optim\.layer_decay\.stack: no parameter of the model is called towers\.0"
    ):
        parameter_groups(model(), OptimConfig(lr=1.0, layer_decay=LayerDecay(factor=0.5, stack="towers")))


def test_layer_decay_and_named_scales_multiply() -> None:
    optim = OptimConfig(lr=2.0, lr_scales={"tower.0": 0.1}, layer_decay=LayerDecay(factor=0.5, stack="tower", below=()))

    groups = parameter_groups(model(), optim)

    assert [(group["lr_scale"], len(group["params"])) for group in groups] == [(0.05, 2), (1.0, 4)]


def test_muon_takes_the_matrices_of_hidden_layers_alone() -> None:
    net = model()

    groups = parameter_groups(net, OptimConfig(lr=1.0, name="muon"))

    assert [p is net.tower[0].weight for group in groups if group["muon"] for p in group["params"]] == [True]  # type: ignore[index, union-attr]  # torch types modules loosely
    assert sum(len(group["params"]) for group in groups) == 6


def test_gradients_are_scaled_down_to_a_norm_but_never_up() -> None:
    gradients = [torch.full((2,), 3.0), torch.full((1, 2), 4.0)]

    norms = [clip(gradients, whole_norm(gradients), limit) for limit in (1.0, 5.0)]

    assert norms == pytest.approx([50**0.5, 1.0], rel=1e-5)


def test_muon_moves_a_matrix_by_as_much_as_adamw_would() -> None:
    torch.manual_seed(1)
    ours, theirs = nn.Linear(24, 96, bias=False), nn.Linear(24, 96, bias=False)
    theirs.load_state_dict(ours.state_dict())
    optim = OptimConfig(lr=0.01, name="muon", weight_decay=0.1)
    optimizer = make_optimizer(parameter_groups(ours, optim), optim)
    reference = torch.optim.Muon(theirs.parameters(), lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    before = ours.weight.detach().clone()

    for _ in range(3):
        ours.weight.grad = torch.randn(96, 24)
        theirs.weight.grad = ours.weight.grad.clone()
        optimizer.step()
        reference.step()

    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)
    assert (
        0.1 < float((ours.weight.detach() - before).square().mean().sqrt()) / 0.03 < 0.3
    )  # AdamW's steps are 0.2 to 0.4
