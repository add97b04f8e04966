"""The arithmetic of ZeRO on a model small enough to reckon by hand."""

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.training.config import AverageConfig, EngineConfig, Offload, OptimConfig, TrainConfig, ZeroPlusPlus
from orchestrator.training.memory.anatomy import Anatomy, Line
from orchestrator.training.memory.zero import GPU_RESERVE_BYTES, Footprint, footprint, setting_of

FROZEN, LEARNING, SMALL = 1_000_000, 400_000, 10  # elements; the small one learns too
ANATOMY = Anatomy(
    numels=(FROZEN, LEARNING, SMALL), parts=("a", "b", "b"), groups=(-1, 0, 0), moments=(0, 8, 8), buffers={"a": 64},
    uses=((0,), (1, 2), (1, 2)), released=(Line(fixed=1000, per_sample=500_000),),
    kept=(Line(fixed=1000, per_sample=600_000),), at_peak={}, flops=Line(fixed=0, per_sample=1),
)  # fmt: skip


def needed(*, ranks: int = 4, on_gpu: bool = True, average: AverageConfig | None = None, **engine: Any) -> Footprint:
    train = TrainConfig(
        steps=1, global_batch=32, optim=OptimConfig(lr=1e-3), average=average,
        engine=EngineConfig(**{"bucket_elements": 1000, "persistence_threshold": 100, **engine}),
    )  # fmt: skip
    return footprint(ANATOMY, setting_of(train, ranks, on_gpu=on_gpu))


def test_zero_3_cuts_everything_but_what_is_small() -> None:
    said = needed(zero_stage=3)

    assert said.weights == 2 * ((FROZEN + LEARNING) / 4 + 3 + SMALL) + 64  # in bf16, the last piece padded
    assert said.gradients == 4 * (LEARNING / 4 + 3)
    assert said.optimizer == 12 * (LEARNING / 4 + 3)
    assert said.buckets == 2 * 1000
    assert said.activations == 1000 + 500_000 * 8
    assert said.gathered == 2 * (FROZEN + LEARNING + LEARNING)  # all of it, and for a moment what came at one go again
    assert said.reserve == GPU_RESERVE_BYTES


def test_zero_2_keeps_weights_whole_and_cuts_masters_and_moments() -> None:
    said = needed(zero_stage=2)

    assert said.weights == 2 * (FROZEN + LEARNING + SMALL + 6) + 64  # to a multiple of twice the ranks
    assert said.optimizer == pytest.approx(12 * (LEARNING + SMALL + 6) / 4)
    assert said.buckets == 2 * 2 * 1000  # two, as communication overlaps on a GPU
    assert said.gathered == 0


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_what_is_off_loaded_is_not_on_the_gpu(zero_stage: int) -> None:
    here, away = needed(zero_stage=zero_stage), needed(zero_stage=zero_stage, offload=Offload(optimizer="cpu"))

    assert away.optimizer == 0
    assert away.total < here.total
    assert away.weights == here.weights


def test_off_loaded_weights_are_there_while_they_are_used() -> None:
    said = needed(zero_stage=3, offload=Offload(optimizer="cpu", parameters="cpu"))

    assert said.weights == 2 * SMALL + 64
    assert said.gathered == needed(zero_stage=3).gathered


def test_without_a_gpu_nothing_is_away() -> None:
    offload = Offload(optimizer="cpu", parameters="cpu")

    assert needed(on_gpu=False, offload=offload) == needed(on_gpu=False)


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_an_average_is_four_bytes_an_element_of_a_ranks_share(zero_stage: int) -> None:
    more = needed(zero_stage=zero_stage, average=AverageConfig()).optimizer - needed(zero_stage=zero_stage).optimizer

    assert more == pytest.approx(4 * (LEARNING + SMALL) / 4, rel=1e-4)


def test_a_second_copy_of_the_weights_is_shared_by_the_ranks_of_a_node() -> None:
    more = needed(zero_stage=3, zeropp=ZeroPlusPlus(node_ranks=2)).weights - needed(zero_stage=3).weights

    assert more == 2 * (FROZEN + LEARNING + SMALL) // 2


def test_gradients_that_add_up_stay_on_a_replica() -> None:
    train = TrainConfig(
        steps=1, global_batch=8, optim=OptimConfig(lr=1e-3), engine=EngineConfig(name="torch", precision="fp32")
    )
    once = footprint(ANATOMY, setting_of(train, 1, on_gpu=False))
    twice = footprint(ANATOMY, setting_of(replace(train, micro_batch=4), 1, on_gpu=False))

    assert (once.gradients, twice.gradients) == (0, 4 * (LEARNING + SMALL))  # of one micro-batch they are at the peak
    assert once.activations == 1000 + 600_000 * 8
    assert twice.activations == 1000 + 500_000 * 4
