"""A GLaMM whose language model is cut over two ranks learns as one that is whole."""

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.training import writing
from orchestrator.training.config import OptimConfig, TrainConfig
from orchestrator.training.elastic import WEIGHTS
from orchestrator.training.engine import Engine, make_engine
from orchestrator.training.weights import load_weights
from orchestrator.world import World
from stages.glamm.batches import GlammBatch
from stages.glamm.collate import Collator, Example
from stages.glamm.prompts import BBOX, GCG_QUESTIONS, PHRASE_END, PHRASE_START, SEG, make_conversation
from stages.glamm.stages import GcgTuning
from stages.glamm.task import GlammTask, Start, Weights
from stages.samples import Turn
from tests.ranks import run_ranks
from tests.stages.glamm_models import half, picture, tiny_blueprint, vocabulary
from tests.toys import toy_engine, toy_train

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch")]

STEPS = 3
ENGINES: dict[str, dict[str, Any]] = {
    "torch": {},
    "by_tokens": {"sequence_parallel": True},
    "zero3": {"name": "deepspeed", "zero_stage": 3},
}


def _train(engine: str, degree: int) -> TrainConfig:
    settings = toy_engine(**ENGINES[engine], tensor_parallel=degree)
    return toy_train(STEPS, global_batch=2, engine=settings, optim=OptimConfig(lr=1e-3, clip_norm=0.5))


def _task_and_batch() -> tuple[GlammTask, GlammBatch]:
    words = vocabulary()
    blueprint = tiny_blueprint(words, lora=True)
    task = GlammTask(blueprint, words, {}, start=Start(), weights=Weights(), max_regions=4)
    answer = f"{PHRASE_START} A red bar {PHRASE_END} {SEG}"
    turns = [Turn(question=f"{GCG_QUESTIONS[0]} {BBOX}", answer=answer)]
    conversation = make_conversation(turns, end=words.end, boxes_xyxy_px=[(1, 2, 20, 18)])
    images = [picture(number, (30, 20)) for number in range(2)]
    examples = [Example(image=image, conversation=conversation, masks=(half(image, left=True),)) for image in images]
    return task, Collator(blueprint, words).batch(examples)


def _learnt(world: World, engine: Engine, task: GlammTask, batch: GlammBatch, directory: Path) -> list[float]:
    """Learns one batch by heart; returns losses and norms, and saves."""
    found = []
    engine.module.eval()  # adapters drop nothing
    for _ in range(STEPS):
        loss = task.loss(engine.module, batch).total
        engine.backward(loss)
        engine.step()
        found += [loss.item(), engine.scalars()["grad_norm"]]
    writing.write(directory / WEIGHTS, engine.held()[WEIGHTS], world)
    return found


def _on_rank(world: World, directory: Path) -> dict[str, list[float]]:
    torch.set_num_threads(1)
    found = {}
    for name in ENGINES:
        task, batch = _task_and_batch()
        engine = make_engine(task, _train(name, 2), trainable=GcgTuning.trainable, world=world, seed=3)
        found[name] = _learnt(world, engine, task, batch, directory / name)
    return found


def test_a_glamm_cut_in_two_learns_as_a_whole_one(tmp_path: Path) -> None:
    task, batch = _task_and_batch()
    alone = World.alone()
    engine = make_engine(task, _train("torch", 1), trainable=GcgTuning.trainable, world=alone, seed=3)
    expected = _learnt(alone, engine, task, batch, tmp_path / "whole")

    first, second = run_ranks(2, _on_rank, tmp_path, directory=tmp_path)

    assert first == second
    assert all(found == pytest.approx(expected, rel=1e-4) for found in first.values())
    theirs = load_weights(tmp_path / "whole")
    for name in ENGINES:
        ours = load_weights(tmp_path / name)
        assert set(ours) == set(theirs)
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)
