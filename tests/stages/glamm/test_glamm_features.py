"""What the frozen image encoders see is kept once and read instead: the same loss, and no encoder that runs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.artifacts import Checkpoint, Shards
from orchestrator.data.reader import ShardSet
from orchestrator.data.stream import Drawn
from orchestrator.errors import InputError, Preempted
from orchestrator.training.config import OptimConfig, TrainConfig
from orchestrator.world import World
from stages.glamm.caching import GlammFeatures
from stages.glamm.config import GlammConfig
from stages.glamm.encoders import require_features
from stages.glamm.features import MEMBER
from stages.glamm.foresight import BatchShape
from stages.glamm.learning import learning_encoders
from stages.glamm.model import Glamm
from stages.glamm.sitting import GlammSitting
from stages.glamm.stages import GcgTuning
from stages.glamm.task import GlammTask, Start, Weights
from tests.stages.conversion import context_in
from tests.stages.glamm_models import talkative, tiny_blueprint, tiny_checkpoint, vocabulary
from tests.stages.scenes import scene, write_shards

WORDS = vocabulary()
BLUEPRINT = tiny_blueprint(WORDS)
KINDS = {"captions": "caption", "boxes": "region", "grounded": "gcg", "segments": "region_mask"}
SCENES = 5
ENCODERS = ("vision_tower", "sam.vision_encoder")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "model", seed=1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    samples = [scene(number) for number in range(SCENES)]
    return write_shards(tmp_path_factory.mktemp("plain") / "shards", samples, samples_per_shard=2)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, model: Checkpoint, plain: Shards) -> Shards:
    return keep(tmp_path_factory.mktemp("kept"), model, plain)


def keep(
    directory: Path, model: Checkpoint, plain: Shards, *, world: World | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Shards:  # fmt: skip
    """Runs the stage in fp32 and commits what it wrote, on the first rank."""
    shards = Shards(directory / "shards")
    config = GlammFeatures.Config(precision="fp32", images_at_once=2)
    stage = GlammFeatures(config, GlammFeatures.Inputs(model=model, shards=plain), GlammFeatures.Outputs(shards=shards))
    context = context_in(directory / "stage", world=world, stop=stop)
    facts = dict(stage.run(context)["shards"])
    if context.world.is_main:
        sha256 = facts.pop("sha256")
        shards.commit("c" * 64, facts=facts, sha256=sha256)
    return shards


def task_of(*, features: bool) -> GlammTask:
    return GlammTask(
        BLUEPRINT, WORDS, KINDS, start=Start(), weights=Weights(), max_regions=4, features=features
    )  # fmt: skip


def drawn(shards: Shards, kinds: Sequence[str]) -> list[Drawn]:
    with ShardSet(shards.path) as samples:
        found = [samples.read(number) for number in range(len(kinds))]
    return [
        Drawn(source=kind, key=key, members=members, seed=3, place=place)
        for place, (kind, (key, members)) in enumerate(zip(kinds, found, strict=True))
    ]


def learnt(shards: Shards, kinds: Sequence[str], *, features: bool) -> tuple[float, dict[str, torch.Tensor], int]:
    """Returns the loss, the gradients of what is not an encoder, and how often the encoders ran."""
    model = talkative(Glamm(BLUEPRINT), WORDS, 1)
    ran = []
    for name in ENCODERS:
        model.get_submodule(name).requires_grad_(requires_grad=False)
        model.get_submodule(name).register_forward_hook(lambda *_: ran.append(1))
    task = task_of(features=features)
    loss = task.loss(model, task.collate(drawn(shards, kinds))).total
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, len(ran)


@pytest.mark.parametrize("kinds", [list(KINDS), ["captions", "captions"]], ids=["all kinds", "no masks"])
def test_features_give_the_loss_and_gradients_of_pixels_and_no_encoder_runs(
    plain: Shards, kept: Shards, kinds: list[str]
) -> None:
    expected, theirs, often = learnt(plain, kinds, features=False)
    loss, gradients, never = learnt(kept, kinds, features=True)

    assert (often, never) == (2, 0)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert gradients.keys() == theirs.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, theirs[name], rtol=1e-3, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_samples_keep_their_order_keys_and_members(plain: Shards, kept: Shards) -> None:
    with ShardSet(plain.path) as before, ShardSet(kept.path) as after:
        for number in range(SCENES):
            key, members = before.read(number)
            same_key, more = after.read(number)
            assert (same_key, {**members, MEMBER: more[MEMBER]}) == (key, more)
    facts = kept.facts()
    assert facts["samples_per_tar"] == [2, 2, 1]
    assert facts["features"]["precision"] == "fp32"
    assert kept.damage(deep=True) == []


def test_an_attempt_goes_on_after_the_tars_of_the_one_before(
    tmp_path: Path, model: Checkpoint, plain: Shards, kept: Shards
) -> None:
    with pytest.raises(Preempted, match="1 of 3 tars"):
        keep(tmp_path, model, plain, stop=lambda: True)
    first = (tmp_path / "shards/shard-000000.tar").stat().st_mtime_ns
    (tmp_path / "shards/shard-000001.tar").write_bytes(b"half")

    shards = keep(tmp_path, model, plain)

    assert (shards.path / "shard-000000.tar").stat().st_mtime_ns == first
    assert shards.digest() == kept.digest()


def test_ranks_share_the_tars(tmp_path: Path, model: Checkpoint, plain: Shards, kept: Shards) -> None:
    keep(tmp_path, model, plain, world=World.alone(rank=1, size=2))
    there = sorted(path.name for path in (tmp_path / "shards").glob("*.tar"))

    shards = keep(tmp_path, model, plain, world=World.alone(rank=0, size=2))

    assert there == ["shard-000001.tar"]
    assert shards.digest() == kept.digest()


def test_shards_without_features_and_those_of_other_encoders_are_refused(
    tmp_path: Path, model: Checkpoint, plain: Shards, kept: Shards
) -> None:
    other = tiny_checkpoint(tmp_path / "other", seed=2)

    require_features(model, {"grounded": kept}, World.alone())
    with pytest.raises(InputError, match=r"inputs\.shards\.grounded: .* has no features: let glamm_features keep some"):
        require_features(model, {"grounded": plain}, World.alone())
    with pytest.raises(InputError, match="features are of other image encoders than the model's"):
        require_features(other, {"grounded": kept}, World.alone())


def test_a_sample_without_features_and_one_with_a_damaged_one_are_named(plain: Shards, kept: Shards) -> None:
    task = task_of(features=True)
    whole = drawn(kept, ["grounded"])[0]
    broken = whole._replace(members={**whole.members, MEMBER: whole.members[MEMBER][:100]})

    with pytest.raises(InputError, match=r"sample 'scene0000' of grounded has no features\.safetensors"):
        task.collate(drawn(plain, ["grounded"]))
    with pytest.raises(InputError, match=r"sample 'scene0000' of grounded: its features\.safetensors cannot be read"):
        task.collate([broken])


def tuning(**config: Any) -> GcgTuning:
    train = TrainConfig(steps=1, global_batch=1, optim=OptimConfig(lr=1e-3), trainable=config.pop("trainable", None))
    inputs = GcgTuning.Inputs(
        model=None if "model" in config else Checkpoint(Path("model")), shards={"grounded": Shards(Path("a"))}
    )
    outputs = GcgTuning.Outputs(model=Checkpoint(Path("out")))
    return GcgTuning(GcgTuning.Config(train=train, features=True, **config), inputs, outputs)


def test_features_of_encoders_that_learn_or_of_a_model_that_begins_are_faults() -> None:
    assert tuning().faults() == {}
    assert "may learn by vision_tower" in tuning(trainable=("vision_tower", "projector")).faults()["config.features"]
    assert "has begun" in tuning(model=GlammConfig()).faults()["config.features"]
    assert learning_encoders(["sam", "*", "sam.mask_decoder", "projector", "vision*", "language_model.*lora_*"]) == [
        "sam", "*", "vision*",
    ]  # fmt: skip


def test_the_planner_of_memory_knows_that_no_encoder_runs() -> None:
    shape = BatchShape(tokens=120, predicted=60, boxes=3, masks=2, image_px=(40, 40))
    sitting = GlammSitting(BLUEPRINT, replace(shape, features=True), words=False)

    losses = sitting.loss(talkative(Glamm(BLUEPRINT), WORDS, 1), sitting.batch(2))

    assert torch.isfinite(losses.total)
    assert not sitting.batch(2).clip_pixels_BCHW.numel()
