"""Pix2Cap described before it exists: known when a recipe is planned, and as large as the real one when it trains."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.artifacts import Checkpoint, Shards, Tokenizer
from orchestrator.training.config import EngineConfig, OptimConfig, TrainConfig
from orchestrator.world import World
from stages.pix2cap.config import Pix2CapConfig, SegmenterConfig
from stages.pix2cap.stages import CATEGORIES, SEGMENTS, Pix2CapTraining

TRAIN = TrainConfig(
    steps=2, global_batch=4, optim=OptimConfig(lr=1e-3),
    engine=EngineConfig(name="torch", precision="fp32", bucket_elements=500_000),
)  # fmt: skip
BAR = {"id": 1, "name": "bar", "thing": True}
TOLERANCE = 0.10


def training(model: Pix2CapConfig | None) -> Pix2CapTraining:
    inputs = Pix2CapTraining.Inputs(shards={"a": Shards(Path("a"))}, tokenizer=Tokenizer(Path("t")))
    outputs = Pix2CapTraining.Outputs(model=Checkpoint(Path("out/train/model")))
    return Pix2CapTraining(Pix2CapTraining.Config(train=TRAIN, model=model), inputs, outputs)


def told(stage: Pix2CapTraining, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    sketch = stage.sketch(facts)
    assert sketch is not None
    return sketch.plain


def test_a_model_is_known_as_soon_as_its_words_are_and_its_classes_pass_for_cocos() -> None:
    stage, words = training(Pix2CapConfig()), {"tokenizer": {"tokens": 300}}
    panoptic = {**words, "shards.a": {"categories": [BAR]}}

    assert stage.sketch({}) is None
    assert (told(stage, words)["segments"], len(told(stage, words)["model"]["categories"])) == (SEGMENTS, CATEGORIES)
    assert told(stage, panoptic)["model"]["categories"] == [BAR]
    assert stage.foresee(words) == {"model": {"family": "pix2cap"}}  # what only passes for it is not passed on
    assert stage.foresee(panoptic)["model"]["model"] == told(stage, panoptic)["model"]


def test_who_goes_on_from_a_checkpoint_has_its_model() -> None:
    known = training(Pix2CapConfig()).foresee({"tokenizer": {"tokens": 300}, "shards.a": {"categories": [BAR]}})

    assert told(training(None), known)["model"]["captioner"]["vocab_size"] == 300
    assert training(None).sketch({"model": {"family": "pix2cap"}}) is None
    assert (
        training(Pix2CapConfig(segmenter=SegmenterConfig(path=Path("none")))).sketch({"tokenizer": {"tokens": 3}})
        is None
    )


@pytest.mark.slow
@pytest.mark.needs("torch")
@pytest.mark.parametrize("learning", [Pix2CapTraining.trainable, pytest.param(("*",), marks=pytest.mark.long)])
def test_training_takes_the_memory_that_was_predicted(learning: tuple[str, ...]) -> None:
    from orchestrator.training.engine import make_engine
    from orchestrator.training.memory.measure import Request, measure
    from orchestrator.training.memory.zero import footprint, setting_of
    from stages.pix2cap.task import Pix2CapTask, Start
    from tests.allocations import allocated
    from tests.stages.pix2cap_models import LOSSES, STILL, batch_of, sample, tiny_blueprint, vocabulary
    from tests.toysitting import GROUPING

    words = vocabulary()
    samples = [sample(number, size=(32, 32)) for number in range(TRAIN.global_batch)]
    batch = batch_of(words, samples)
    blueprint = replace(tiny_blueprint(words), max_tokens=batch.ids_SL.shape[1])
    task = Pix2CapTask(blueprint, words, start=Start(), losses=LOSSES, augment=STILL)

    def work() -> Any:
        engine = make_engine(task, TRAIN, trainable=learning, world=World.alone(), seed=1)
        for _ in range(TRAIN.steps):
            engine.backward(task.loss(engine.module, batch_of(words, samples)).total)
            engine.step()
        return engine

    engine, most = allocated(work)
    request = Request(
        opener="stages.pix2cap.sitting:open_sitting",
        plain={"model": blueprint.to_plain(), "losses": asdict(LOSSES), "segments": 3}, learning=learning,
        precision="fp32", recomputes=False, eager=False, on_gpu=False, optim=GROUPING,
    )  # fmt: skip
    said = footprint(measure(request), setting_of(TRAIN, 1, on_gpu=False))

    assert sum(t.nbytes for t in (*engine.model.parameters(), *engine.model.buffers())) == said.weights
    assert most == pytest.approx(said.total, rel=TOLERANCE)
