"""The contrast of three branches: what each stands against, the same on one and two ranks, and what it learns."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel

from orchestrator.errors import InputError
from orchestrator.training.config import OptimConfig
from orchestrator.training.engine import make_engine
from orchestrator.world import World
from stages.pixclip.config import PixClipConfig, VisionConfig
from stages.pixclip.model import PixClip
from stages.pixclip.pretrained import fill_from_published
from stages.pixclip.sitting import PixClipSitting
from stages.pixclip.task import Branches, Start, branch_losses
from tests.ranks import run_ranks
from tests.stages.learning import learn_by_heart
from tests.stages.pixclip_models import BRANCHES, TINY, blueprint_of, drawn_of, tiny_model, tiny_task
from tests.stages.scenes import scene
from tests.toys import toy_engine, toy_train

SAMPLES = [scene(number) for number in range(4)]


def info_nce(one_BD: Tensor, other_BD: Tensor, scale: Tensor) -> Tensor:
    logits = scale * one_BD @ other_BD.T
    targets = torch.arange(len(logits))
    return (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2


@pytest.mark.parametrize("against", ["crop", "masked", "text"])
def test_the_loss_is_the_weighted_sum_of_its_branches(against: str) -> None:
    batch = tiny_task().collate(drawn_of(SAMPLES))
    found = tiny_model()(batch)
    branches = Branches(masked=1.0, crop=0.5, roi=0.25, roi_against=against, conflict=None)  # type: ignore[arg-type]
    other = {"crop": "crops", "masked": "masked", "text": "texts"}[against]

    losses = branch_losses(found, branches)

    masked, crop = (info_nce(found[name], found["texts"], found["scale"]) for name in ("masked", "crops"))
    roi = info_nce(found["regions"], found[other], found["scale"])
    torch.testing.assert_close(losses.total, masked + 0.5 * crop + 0.25 * roi)
    assert set(losses.terms) == {"masked", "crop", "roi"}


def test_crops_are_made_only_where_a_branch_looks_at_them() -> None:
    against_text = replace(BRANCHES, crop=0.0, roi_against="text")

    assert BRANCHES.crops
    assert not against_text.crops
    assert tiny_task(branches=against_text).collate(drawn_of(SAMPLES)).crops_B4SS is None
    loss = tiny_task(branches=against_text).loss(
        tiny_model(), tiny_task(branches=against_text).collate(drawn_of(SAMPLES))
    )
    assert set(loss.terms) == {"masked", "roi"}


class Noting:
    """Accepts every update, and keeps the gradients of the first one of this rank's engine."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self.gradients: list[float] = []

    def __call__(self, norm: float) -> bool:
        found = [p.grad for p in self._model.parameters()]
        self.gradients = [value for one in found if one is not None for value in one.flatten().tolist()]
        return norm >= 0


def _learnt(world: World) -> tuple[float, list[float]]:
    """Learns from this rank's share of four samples; returns the mean loss, and the gradients that the step took."""
    torch.set_num_threads(1)
    task = tiny_task(images_at_once=3)
    train = toy_train(1, global_batch=4, engine=toy_engine(), optim=OptimConfig(lr=1e-3, clip_norm=None))
    engine = make_engine(task, train, trainable=("*",), world=world, seed=3)
    batch = task.collate(drawn_of(SAMPLES)[world.rank :: world.size])
    loss = task.loss(engine.module, batch).total
    engine.backward(loss)
    noting = Noting(engine.model)
    engine.step(noting)
    return world.mean({"loss": loss.item()})["loss"], noting.gradients


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns_from_the_whole_batch(tmp_path: Path) -> None:
    expected, gradients = _learnt(World.alone())

    for loss, theirs in run_ranks(2, _learnt, directory=tmp_path):
        assert loss == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(torch.tensor(theirs), torch.tensor(gradients), rtol=1e-3, atol=1e-6)


def test_a_model_learns_which_text_belongs_to_which_mask_of_one_image() -> None:
    task = tiny_task()
    model = tiny_model(sees_masks=False).train()
    batch = task.collate([one._replace(seed=seed) for seed in range(8) for one in drawn_of(SAMPLES[1:2])])
    texts = [tuple(row.tolist()) for row in batch.texts.ids_BL] if batch.texts.ids_BL is not None else []

    learn_by_heart(task, model, batch, steps=60, lr=5e-3)

    found = model(batch)

    best = (found["masked"] @ found["texts"].T).argmax(dim=1).tolist()
    assert len(set(texts)) == 2
    assert [texts[place] for place in best] == texts


def published(folder: Path) -> CLIPVisionModel:
    torch.manual_seed(2)
    settings = CLIPVisionConfig(
        image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    clip = CLIPVisionModel(settings)
    clip.save_pretrained(folder)
    return clip.eval()


def test_a_published_tower_is_taken_whole_and_begins_as_it_was(tmp_path: Path) -> None:
    clip = published(tmp_path)
    config = replace(TINY, vision=VisionConfig(path=tmp_path))
    task = tiny_task(blueprint=blueprint_of(config), start=Start(folders=config))
    model = task.build_model()
    assert isinstance(model, PixClip)

    task.load_weights(model)

    squares = torch.randn(2, 4, 16, 16)
    seen = model.eval().vision_model(squares).pooler_output
    torch.testing.assert_close(seen, clip(squares[:, :3]).pooler_output, atol=1e-5, rtol=1e-4)
    facts = task.describe()["published"]
    assert list(facts["sources"].values()) == ["CLIP's image tower"]
    assert facts["newly_initialised"]["vision_model"] == 1  # the mask's own weights


def test_a_tower_with_weights_lacking_is_refused(tmp_path: Path) -> None:
    published(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = {name: weight for name, weight in load_file(path).items() if "layers.1.mlp.fc1" not in name}
    save_file(weights, path, metadata={"format": "pt"})
    config = replace(TINY, vision=VisionConfig(path=tmp_path))

    with pytest.raises(InputError, match="2 weights of parts that they fill are lacking"):
        fill_from_published(PixClip(blueprint_of(config)), config)


def test_model_folders_that_are_not_there_are_faults(tmp_path: Path) -> None:
    config = PixClipConfig(vision=VisionConfig(path=tmp_path / "none"), weights=tmp_path / "nothing")

    assert set(config.faults()) == {"vision.path", "weights"}
    assert config.stamps() == {}


@pytest.mark.parametrize("crops", [True, False])
def test_the_planner_of_memory_sees_a_step(crops: bool) -> None:  # noqa: FBT001 - a case of the test
    sitting = PixClipSitting(blueprint_of(), crops=crops, images_at_once=None)

    losses = sitting.loss(sitting.build_model(), sitting.batch(2))

    assert torch.isfinite(losses.total)
    assert "text_model" in sitting.parts
