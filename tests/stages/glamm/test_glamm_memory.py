"""GLaMM described before it exists: passed on through a recipe, and as large as the real one when it trains."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data.stream import Drawn
from orchestrator.drafts import Catalog
from orchestrator.plan import Plan, plan_recipe
from orchestrator.training.config import EngineConfig, OptimConfig, TrainConfig
from orchestrator.training.memory.measure import Request, measure
from orchestrator.training.memory.zero import Footprint, footprint, setting_of
from orchestrator.world import World
from stages import FAMILIES, STAGES
from stages.glamm.batches import IGNORED, GlammBatch
from stages.glamm.config import (
    Blueprint,
    GlammConfig,
    GroundingConfig,
    LanguageConfig,
    LoraConfig,
    RegionConfig,
    VisionConfig,
    draw_blueprint,
)
from stages.glamm.foresight import OPENER, BatchShape, of_a_rank
from stages.glamm.stages import GcgTuning
from stages.glamm.task import GlammTask, Start, Weights
from tests.allocations import train_a_little, train_config
from tests.published_sizes import FULL
from tests.ranks import run_ranks
from tests.stages.glamm_models import vocabulary
from tests.stages.scenes import scene
from tests.toysitting import GROUPING

ROOT = Path(__file__).parents[3]
TOLERANCE = 0.10
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")  # of transformers 6
KINDS = {"captions": "caption", "grounded": "gcg", "segments": "region_mask"}
SMALL = GlammConfig(
    language=LanguageConfig(hidden_size=64, layers=4, heads=4, mlp_size=192, max_positions=512),
    vision=VisionConfig(image_size=48, patch_size=6, hidden_size=48, layers=3, heads=4, mlp_size=96),
    grounding=GroundingConfig(
        image_size=64, patch_size=4, hidden_size=32, layers=3, heads=4, mlp_size=64, window_size=8, global_layers=(2,),
        channels=32, decoder_mlp_size=64, decoder_heads=4,
    ),
    region=RegionConfig(layers=(2, 3), upsample=(2, 1), channels=16, rounds=1, groups=4, roi_size=3, position_size=16),
    max_tokens=300,
)  # fmt: skip


def tuned(*, lora: bool) -> GlammConfig:
    return replace(SMALL, lora=LoraConfig(rank=4, alpha=8, dropout=0.0) if lora else None)


def task_of(blueprint: Blueprint) -> GlammTask:
    return GlammTask(blueprint, vocabulary(), KINDS, start=Start(), weights=Weights(), max_regions=4)


def batch_of(task: GlammTask, source: str, samples: int) -> GlammBatch:
    scenes = [scene(number) for number in range(samples)]
    return task.collate(
        [Drawn(source=source, key=s.key, members=s.to_members(), seed=1, place=n) for n, s in enumerate(scenes)]
    )


def shape_of(batch: GlammBatch) -> BatchShape:
    """Reads the sizes off a real batch, which the planner can only bound."""
    samples = len(batch.ids_BL)
    height, width = batch.masks[0].shape[-2:]
    return BatchShape(
        tokens=batch.ids_BL.shape[1],
        predicted=round(int((batch.labels_BL[:, 1:] != IGNORED).sum()) / samples),
        boxes=len(batch.boxes_R4) // samples,
        masks=len(batch.masks[0]),
        image_px=(width, height),
    )


def predicted(
    blueprint: Blueprint, shape: BatchShape, train: TrainConfig, learning: tuple[str, ...], ranks: int = 1
) -> Footprint:
    engine = train.engine
    request = Request(
        opener=OPENER, plain={"model": blueprint.to_plain(), "batch": asdict(shape), "words": False}, learning=learning,
        precision=engine.precision, recomputes=engine.activation_checkpointing, eager=False, on_gpu=False,
        optim=GROUPING,
    )  # fmt: skip
    return footprint(measure(request), setting_of(train, ranks, on_gpu=False))


def trained(
    world: World, blueprint: Blueprint, train: TrainConfig, source: str, learning: tuple[str, ...]
) -> tuple[int, int, int, BatchShape]:
    """Trains three steps; returns the bytes of weights, of moments, the most of all that were alive, and the sizes."""
    task = task_of(blueprint)
    batch = partial(batch_of, task, source, train.micro_batch_on(world.size))

    engine, most = train_a_little(task, train, world, learning, batch)
    weights = sum(t.nbytes for t in (*engine.model.parameters(), *engine.model.buffers()))
    moments = 0
    if train.engine.name == "torch":
        states = engine._optimizer.state.values()
        moments = sum(state[name].nbytes for state in states for name in ("exp_avg", "exp_avg_sq"))
    return weights, moments, most, shape_of(batch())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "lora", "learning", "recomputes"),
    [
        ("grounded", False, ("*",), False),
        ("segments", True, GcgTuning.trainable, True),
        pytest.param("captions", False, ("*",), False, marks=pytest.mark.long),
        pytest.param("grounded", False, ("*",), True, marks=pytest.mark.long),
        pytest.param("segments", True, GcgTuning.trainable, False, marks=pytest.mark.long),
    ],
)
def test_training_takes_the_memory_that_was_predicted(
    source: str,
    lora: bool,  # noqa: FBT001 - a case of the table
    learning: tuple[str, ...],
    recomputes: bool,  # noqa: FBT001 - the same
) -> None:
    blueprint = draw_blueprint(tuned(lora=lora), vocabulary().size)
    train = train_config(6, activation_checkpointing=recomputes)

    weights, moments, most, shape = trained(World.alone(), blueprint, train, source, learning)
    said = predicted(blueprint, shape, train, learning)

    assert (weights, moments) == (said.weights, said.optimizer)
    assert most == pytest.approx(said.total, rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("pieces", [1, 2])
def test_on_two_ranks_too(pieces: int, tmp_path: Path) -> None:
    blueprint = draw_blueprint(tuned(lora=True), vocabulary().size)
    train = train_config(8, name="deepspeed", activation_checkpointing=True, tensor_parallel=pieces)
    share = of_a_rank(blueprint, pieces)

    for _, _, most, shape in run_ranks(
        2, trained, blueprint, train, "segments", GcgTuning.trainable, directory=tmp_path
    ):
        assert most == pytest.approx(predicted(share, shape, train, GcgTuning.trainable, 2).total, rel=TOLERANCE)


def planned(recipe: Path, *overrides: str) -> Plan:
    return plan_recipe(recipe, overrides, Catalog(stages=STAGES, families=FAMILIES))


def test_what_a_model_will_be_is_passed_on_from_stage_to_stage_of_a_recipe() -> None:
    plan = planned(ROOT / "recipes" / "quickstart.yaml")
    sketches = {stage.name: stage.foresight.sketch for stage in plan.stages}

    told = {name for name, sketch in sketches.items() if sketch is not None}
    assert told == {"words", "align", "region", "gcg", "sft"}
    plain: Any = sketches["sft"].plain  # type: ignore[union-attr]
    assert plain["model"]["lora"]["rank"] == 8
    assert plain["model"]["vocabulary_size"] == 600
    assert plain["batch"] == {
        "tokens": 400,
        "predicted": 383,
        "boxes": 10,
        "masks": 10,
        "image_px": (640, 480),
        "images": 1,
        "mask_side_px": None,
        "mask_points": None,
        "features": False,
    }
    assert sketches["align"].plain["model"]["lora"] is None  # type: ignore[union-attr]
    assert not any("lora_" in pattern for pattern in sketches["region"].learning)  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_model_of_full_size_is_looked_at_without_a_weight() -> None:
    blueprint = draw_blueprint(replace(FULL, lora=LoraConfig()), 32_007)
    shape = BatchShape(tokens=1536, predicted=900, boxes=0, masks=10)
    train = TrainConfig(
        steps=1, global_batch=32 * 5, micro_batch=5, optim=OptimConfig(lr=1e-4),
        engine=EngineConfig(activation_checkpointing=True),
    )  # fmt: skip

    said = predicted(blueprint, shape, train, GcgTuning.trainable, 32)

    assert 0.4e9 < said.weights < 1.2e9  # 8 billion parameters in bf16 over 32 ranks, small ones whole
    assert said.total < 80e9
