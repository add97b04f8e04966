"""What a recipe may say about training, and how it is told that it may not."""

from typing import Any, cast

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orchestrator.errors import InputError
from orchestrator.training.config import BestRule, EngineConfig, OptimConfig, SaveConfig, TrainConfig


def typed(**given: Any) -> TrainConfig:
    merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), {"steps": 4, "global_batch": 8, **given})
    return cast("TrainConfig", OmegaConf.to_object(merged))


def test_omegaconf_types_every_field() -> None:
    train = typed(
        optim={"lr": 1e-3, "betas": [0.8, 0.9], "schedule": "linear", "clip_norm": None, "lr_scales": {"head*": 0.1}},
        engine={"name": "torch", "precision": "fp32"},
        trainable=["head", "blocks.*.norm"],
        save={"every_steps": 7},
    )

    assert train.optim.betas == (0.8, 0.9)
    assert train.optim.lr_scales == {"head*": 0.1}
    assert train.optim.clip_norm is None
    assert train.trainable == ("head", "blocks.*.norm")
    assert train.save == SaveConfig(every_steps=7, keep_last=2)


@pytest.mark.parametrize(
    "given",
    [{"optim": {"lr": 1e-3, "schedule": "sudden"}}, {"optim": {"lr": 1e-3}, "engine": {"name": "horovod"}}],
)
def test_omegaconf_refuses_words_that_are_not_allowed(given: dict[str, Any]) -> None:
    with pytest.raises(OmegaConfBaseException):
        typed(**given)


@pytest.mark.parametrize(
    ("kind", "given", "field"),
    [
        (OptimConfig, {"lr": 0.0}, "lr"),
        (OptimConfig, {"lr": 1.0, "betas": (0.9, 1.0)}, "betas"),
        (OptimConfig, {"lr": 1.0, "eps": 0.0}, "eps"),
        (OptimConfig, {"lr": 1.0, "weight_decay": -1.0}, "weight_decay"),
        (OptimConfig, {"lr": 1.0, "warmup_steps": -1}, "warmup_steps"),
        (OptimConfig, {"lr": 1.0, "min_lr_ratio": 1.5}, "min_lr_ratio"),
        (OptimConfig, {"lr": 1.0, "clip_norm": 0.0}, "clip_norm"),
        (OptimConfig, {"lr": 1.0, "lr_scales": {"head": -1.0}}, "lr_scales"),
        (EngineConfig, {"zero_stage": 4}, "zero_stage"),
        (EngineConfig, {"persistence_threshold": -1}, "persistence_threshold"),
        (EngineConfig, {"bucket_elements": 0}, "bucket_elements"),
        (SaveConfig, {"every_steps": 0}, "every_steps"),
        (SaveConfig, {"keep_last": 0}, "keep_last"),
        (SaveConfig, {"keep_every": 0}, "keep_every"),
        (SaveConfig, {"node_mtbf_hours": 0.0}, "node_mtbf_hours"),
        (BestRule, {"metric": "loss", "count": 0}, "count"),
        (TrainConfig, {"steps": 0}, "steps"),
        (TrainConfig, {"global_batch": 0}, "global_batch"),
        (TrainConfig, {"micro_batch": 0}, "micro_batch"),
        (TrainConfig, {"trainable": ()}, "trainable"),
        (TrainConfig, {"log_every": 0}, "log_every"),
        (TrainConfig, {"workers": -1}, "workers"),
    ],
)
def test_a_wrong_value_is_refused_with_the_name_of_its_field(kind: type, given: dict[str, Any], field: str) -> None:
    fine = {"steps": 1, "global_batch": 1, "optim": OptimConfig(lr=1.0)} if kind is TrainConfig else {}

    with pytest.raises(ValueError, match=rf"^{field} must "):
        kind(**{**fine, **given})


@pytest.mark.parametrize(
    ("micro_batch", "world_size", "expected"), [(None, 2, (4, 1)), (2, 2, (2, 2)), (2, 1, (2, 4)), (100, 4, (2, 1))]
)
def test_a_rank_takes_its_share_in_micro_batches(
    micro_batch: int | None, world_size: int, expected: tuple[int, int]
) -> None:
    train = TrainConfig(steps=1, global_batch=8, micro_batch=micro_batch, optim=OptimConfig(lr=1.0))

    assert (train.micro_batch_on(world_size), train.accumulation_on(world_size)) == expected


def test_a_batch_that_does_not_divide_over_the_ranks_is_refused() -> None:
    train = TrainConfig(steps=1, global_batch=8, optim=OptimConfig(lr=1.0))

    with pytest.raises(
        InputError, match=r"train\.global_batch: 8 samples do not divide evenly over 3 ranks; allowed: "
    ):
        train.micro_batch_on(3)


def test_a_share_that_does_not_divide_into_micro_batches_is_refused_with_what_would() -> None:
    train = TrainConfig(steps=1, global_batch=12, micro_batch=4, optim=OptimConfig(lr=1.0))

    with pytest.raises(InputError, match=r"share of 6 samples is no multiple of 4; allowed: 1, 2, 3, 6"):
        train.micro_batch_on(2)
