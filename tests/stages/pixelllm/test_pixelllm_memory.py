"""What the planner reckons of PixelLLM: bytes as training takes them, from the largest batch that sources may bring."""

from collections.abc import Collection
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator.training.config import TrainConfig
from orchestrator.training.memory.measure import Request, measure
from orchestrator.training.memory.zero import Footprint, footprint, setting_of
from orchestrator.world import World
from stages.pixelllm.batches import IGNORED, PixelBatch
from stages.pixelllm.collate import Limits
from stages.pixelllm.config import (
    Blueprint,
    DetectorConfig,
    ExtractorConfig,
    LanguageConfig,
    LocalizationConfig,
    LocationConfig,
    MaskAdapterConfig,
    MaskConfig,
    PixelLLMConfig,
    SemanticConfig,
    draw_blueprint,
)
from stages.pixelllm.foresight import OPENER, BatchShape, Most, largest
from stages.pixelllm.task import PixelLLMTask, Start, Weights
from stages.pixelllm.tasks import Rules
from tests.allocations import train_a_little, train_config
from tests.ranks import run_ranks
from tests.stages.pixelllm_models import KINDS, drawn, narrated, pieces
from tests.toysitting import GROUPING

TOLERANCE = 0.10
# large enough that its own bytes are more than what torch and the data take beside them
SMALL = PixelLLMConfig(
    language=LanguageConfig(hidden_size=64, layers=2, heads=4, mlp_size=192, dropout=0.0),
    semantic=SemanticConfig(patch_size=8, hidden_size=64, layers=3, heads=4, mlp_size=128),
    localization=LocalizationConfig(
        patch_size=8, hidden_size=32, layers=2, heads=2, mlp_size=64, window_size=4, global_layers=(1,), channels=32
    ),
    extractor=ExtractorConfig(width=64, layers=2, heads=4, mlp_size=128, tokens=8, token_size=64),
    location=LocationConfig(hidden_size=64, layers=4),
    detector=DetectorConfig(channels=16, layers=1),
    masks=MaskConfig(layers=2, heads=4, mlp_size=64, adapter=MaskAdapterConfig(layers=1, heads=4, mlp_size=64)),
    canvas_px=96,
)


def test_a_batch_is_reckoned_with_the_most_of_all_its_sources() -> None:
    most = Most(regions=32, expressions=16, context=8, text=40)

    parts = ("detector", "masks")
    assert largest({"trace", "caption"}, most) == BatchShape(
        rows=1, context=8, text=40, speaks=True, masks=0, boxes=0, idle=parts
    )
    assert largest({"refer"}, most) == BatchShape(
        rows=16, context=8, text=40, speaks=False, masks=0, boxes=0, idle=parts
    )
    assert largest({"segment", "dense"}, most) == BatchShape(
        rows=32, context=8, text=40, speaks=True, masks=16, boxes=32
    )


def blueprint_of(config: PixelLLMConfig) -> Blueprint:
    return draw_blueprint(config, pieces().size)


def task_of(blueprint: Blueprint) -> PixelLLMTask:
    parts: dict[str, Any] = {"start": Start(), "weights": Weights(), "rules": Rules()}
    return PixelLLMTask(blueprint, pieces(), KINDS, limits=Limits(), **parts)


def batch_of(task: PixelLLMTask, source: str, samples: int) -> PixelBatch:
    return task.collate([drawn(source, narrated(number)) for number in range(samples)])


def shape_of(batch: PixelBatch) -> BatchShape:
    """Reads the sizes off a real batch, which the planner can only bound."""
    samples = len(batch.inside_B2)
    return BatchShape(
        rows=len(batch.image_N) // samples,
        context=batch.context_NM.shape[1],
        text=batch.ids_NL.shape[1] - 1,
        speaks=bool((batch.targets_NL != IGNORED).any()),
        masks=len(batch.drawn_S) // samples,
        boxes=len(batch.boxes_G4) // samples,
    )


def predicted(
    blueprint: Blueprint, shape: BatchShape, train: TrainConfig, learning: tuple[str, ...], ranks: int = 1
) -> Footprint:
    engine = train.engine
    request = Request(
        opener=OPENER, plain={"model": blueprint.to_plain(), "batch": asdict(shape)}, learning=learning,
        precision=engine.precision, recomputes=engine.activation_checkpointing, eager=False, on_gpu=False,
        optim=GROUPING,
    )  # fmt: skip
    return footprint(measure(request), setting_of(train, ranks, on_gpu=False))


def trained(
    world: World, blueprint: Blueprint, train: TrainConfig, source: str, learning: tuple[str, ...]
) -> tuple[int, BatchShape]:
    """Trains three steps; returns the most bytes that were alive, and the sizes of a batch."""
    task = task_of(blueprint)
    batch = partial(batch_of, task, source, train.micro_batch_on(world.size))

    _, most = train_a_little(task, train, world, learning, batch)
    return most, shape_of(batch())


MASKS_ONLY = ("masks.adapter", "location")


@pytest.mark.slow
@pytest.mark.parametrize(("source", "learning"), [("segments", MASKS_ONLY), ("boxes", ("*",)), ("traces", ("*",))])
def test_training_takes_the_memory_that_was_predicted(source: str, learning: Collection[str]) -> None:
    blueprint, train = blueprint_of(SMALL), train_config(6)

    most, shape = trained(World.alone(), blueprint, train, source, tuple(learning))

    assert most == pytest.approx(predicted(blueprint, shape, train, tuple(learning)).total, rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.long
def test_on_two_ranks_too(tmp_path: Path) -> None:
    blueprint, train = blueprint_of(SMALL), train_config(8, name="deepspeed")

    for most, shape in run_ranks(2, trained, blueprint, train, "segments", ("*",), directory=tmp_path):
        assert most == pytest.approx(predicted(blueprint, shape, train, ("*",), 2).total, rel=TOLERANCE)
