"""A PixCLIP with EVA-02's tower: masks beside pixels, begun with released weights, trained, exported, and asked."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from orchestrator.artifacts import Export
from orchestrator.errors import InputError
from stages.eva import EvaVisionModel
from stages.pixclip.config import Blueprint, PixClipConfig, VisionConfig
from stages.pixclip.family import PixClipFamily
from stages.pixclip.model import PixClip
from stages.pixclip.pretrained import fill_from_published
from stages.pixclip.sitting import PixClipSitting
from stages.pixclip.task import Start
from stages.predict import Asked, predict
from stages.vision import decode_image
from tests.stages.learning import learn_by_heart
from tests.stages.pixclip_models import TINY, blueprint_of, drawn_of, tiny_model, tiny_task, write_checkpoint
from tests.stages.released_eva import released
from tests.stages.scenes import scene

EVA = replace(
    TINY, vision=VisionConfig(kind="eva02", image_size=16, patch_size=4, hidden_size=16, layers=2, heads=2, mlp_size=24)
)
BOXES = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.25, 0.25, 1.0, 1.0]])
FAMILY = PixClipFamily(device="cpu")


def squares(seed: int = 0) -> Tensor:
    return torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def llm2clip() -> dict[str, Tensor]:
    """Draws all that an LLM2CLIP's EVA02 has, in the names of its code."""
    generator = torch.Generator().manual_seed(6)
    shapes: dict[str, tuple[int, ...]] = {}
    for block in range(EVA.adapter_blocks):
        shapes |= {f"{block}.fn.0.weight": (32, 16), f"{block}.fn.0.bias": (32,), f"{block}.fn.3.weight": (16, 32),
                   f"{block}.fn.3.bias": (16,), f"{block}.ln.weight": (16,), f"{block}.ln.bias": (16,)}  # fmt: skip
    shapes |= {"2.weight": (16,), "2.bias": (16,), "3.weight": (12, 16), "3.bias": (12,)}
    adapter = {f"text.text_adaptor.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**released(EVA.vision, grid=4, head=EVA.embedding_size), **adapter, "logit_scale": torch.tensor(2.0)}


def test_a_checkpoint_that_does_not_say_whose_tower_it_has_has_clips() -> None:
    plain = blueprint_of().to_plain()
    del plain["vision_kind"]

    assert Blueprint.from_plain(plain) == blueprint_of()
    assert Blueprint.from_plain(blueprint_of(EVA).to_plain()) == blueprint_of(EVA)
    assert isinstance(tiny_model(config=EVA).vision_model, EvaVisionModel)


def test_a_fresh_mask_changes_nothing_and_a_learnt_one_does() -> None:
    fresh, learnt = tiny_model(sees_masks=False, config=EVA), tiny_model(config=EVA)
    one, other = squares(), squares()
    other[:, 3] = -other[:, 3]

    assert torch.equal(fresh.look((one, BOXES))[0], fresh.look((other, BOXES))[0])
    assert not torch.allclose(learnt.look((one, BOXES))[0], learnt.look((other, BOXES))[0], atol=1e-3)


def test_a_released_tower_is_taken_whole_and_begins_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "EVA02_CLIP.pt"
    torch.save(released(EVA.vision, grid=4), path)
    config = replace(EVA, vision=replace(EVA.vision, path=path))
    task = tiny_task(blueprint=blueprint_of(config), start=Start(folders=config))
    model = task.build_model()
    assert isinstance(model, PixClip)

    task.load_weights(model)

    facts = task.describe()["published"]
    assert facts["sources"] == {str(path): "EVA02's image tower"}
    assert facts["newly_initialised"]["vision_model"] == 1  # the mask's own weights
    assert facts["newly_initialised"]["visual_projection"] == 2
    assert not model.vision_model.embeddings.patch_embedding.alpha.weight.any()
    bias = torch.load(path)["visual.patch_embed.proj.bias"]
    assert torch.equal(model.vision_model.embeddings.patch_embedding.bias, bias)


def test_positions_of_another_grid_are_resized(tmp_path: Path) -> None:
    torch.save(released(EVA.vision, grid=2), tmp_path / "eva.pt")
    config = replace(EVA, vision=replace(EVA.vision, path=tmp_path / "eva.pt"))
    model = PixClip(blueprint_of(config))

    fill_from_published(model, config)

    table = torch.load(tmp_path / "eva.pt")["visual.pos_embed"][0]
    ours = model.vision_model.embeddings.position_embedding.weight
    assert ours.shape == (17, 16)
    torch.testing.assert_close(ours[1:].mean(0), table[1:].mean(0), atol=1e-3, rtol=0)


def test_an_llm2clip_fills_tower_projection_and_text_adapter(tmp_path: Path) -> None:
    path, stored = tmp_path / "LLM2CLIP-EVA02.pt", llm2clip()
    torch.save(stored, path)
    config = replace(EVA, weights=path)
    model = PixClip(blueprint_of(config))

    loaded, facts = fill_from_published(model, config)

    ours = dict(model.named_parameters())
    fresh = {name for name in ours if name not in loaded and not name.startswith("text_model.")}
    assert fresh == {"vision_model.embeddings.patch_embedding.alpha.weight", "logit_scale"}
    assert facts["sources"] == {str(path): "LLM2CLIP"}
    assert torch.equal(ours["visual_projection.weight"], stored["visual.head.weight"])
    assert torch.equal(ours["visual_projection.bias"], stored["visual.head.bias"])
    assert torch.equal(ours["text_adapter.layers.1.narrow.weight"], stored["text.text_adaptor.1.fn.3.weight"])


def test_a_head_of_another_common_space_is_refused(tmp_path: Path) -> None:
    torch.save({**llm2clip(), **released(EVA.vision, grid=4, head=5)}, tmp_path / "other.pt")
    config = replace(EVA, weights=tmp_path / "other.pt")

    with pytest.raises(
        InputError, match=r"visual_projection\.weight has the shape \(5, 16\), the model needs \(12, 16\)"
    ):
        fill_from_published(PixClip(blueprint_of(config)), config)


def test_it_learns_which_text_belongs_to_which_mask() -> None:
    task, model = tiny_task(blueprint=blueprint_of(EVA)), tiny_model(sees_masks=False, config=EVA).train()
    batch = task.collate([one._replace(seed=seed) for seed in range(8) for one in drawn_of([scene(1)])])
    assert batch.texts.ids_BL is not None
    texts = [tuple(row.tolist()) for row in batch.texts.ids_BL]

    losses = [one["total"] for one in learn_by_heart(task, model, batch, steps=60, lr=5e-3)]

    found = model(batch)
    best = (found["masked"] @ found["texts"].T).argmax(dim=1).tolist()
    assert losses[-1] < losses[0]
    assert len(set(texts)) == 2
    assert [texts[place] for place in best] == texts
    assert model.vision_model.embeddings.patch_embedding.alpha.weight.any()


def test_its_export_embeds_as_its_checkpoint_does(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model", tiny_model(7, config=EVA))
    folder = tmp_path / "export"
    folder.mkdir()
    facts = FAMILY.export(checkpoint.path, folder, card="# A card")
    Export(folder).commit("e" * 64, facts={**facts, "family": "pixclip"})
    (tmp_path / "scene.png").write_bytes(scene(1).image)

    one, other = FAMILY.load(checkpoint.path), FAMILY.load_export(folder)
    answer = predict(folder, tmp_path / "scene.png", Asked(texts=("the green bar", "the blue bar")))

    image = decode_image(scene(1).image)
    assert isinstance(other.network.vision_model, EvaVisionModel)
    np.testing.assert_allclose(one.embed_images([image], [None]), other.embed_images([image], [None]), atol=1e-6)
    assert len(answer["ranked"][0]["texts"]) == 2


def test_the_planner_of_memory_sees_a_step_and_what_a_recipe_lacks_is_named(tmp_path: Path) -> None:
    sitting = PixClipSitting(blueprint_of(EVA), crops=True, images_at_once=None)

    with torch.device("meta"):
        model = sitting.build_model()
    losses = sitting.loss(sitting.build_model(), sitting.batch(2))

    assert torch.isfinite(losses.total)
    assert all(parameter.is_meta for parameter in model.parameters())
    lacking = PixClipConfig(vision=replace(EVA.vision, path=tmp_path / "none.pt", heads=3))
    assert set(lacking.faults()) == {"vision.path", "vision.heads"}
