"""The model: masks that begin without effect, texts read both ways, parts that give what the whole gives."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel

from stages.pixclip.batches import Texts
from stages.pixclip.config import ScaleConfig
from stages.pixclip.initial import draw_weights
from stages.pixclip.model import PixClip, mean_state
from stages.pixclip.texts import tokens_of
from tests.stages.pixclip_models import PIECES, TEXTS, TINY, blueprint_of, drawn_of, tiny_model, tiny_task
from tests.stages.scenes import scene

BOXES = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.25, 0.25, 1.0, 1.0]])


def squares(seed: int = 0) -> Tensor:
    return torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def other_masks(squares_B4SS: Tensor) -> Tensor:
    changed = squares_B4SS.clone()
    changed[:, 3] = -changed[:, 3]
    return changed


def test_a_fresh_mask_changes_nothing_and_a_learnt_one_does() -> None:
    fresh, learnt = tiny_model(sees_masks=False), tiny_model()
    one, other = squares(), other_masks(squares())

    assert torch.equal(fresh.look((one, BOXES))[0], fresh.look((other, BOXES))[0])
    assert not torch.allclose(learnt.look((one, BOXES))[0], learnt.look((other, BOXES))[0], atol=1e-3)


def test_a_mask_is_added_to_the_patches_before_class_token_and_positions() -> None:
    embeddings = tiny_model().vision_model.embeddings
    one, other = squares(), other_masks(squares())

    difference_BNC = embeddings(one) - embeddings(other)

    own = embeddings.patch_embedding.alpha(one[:, 3:]) - embeddings.patch_embedding.alpha(other[:, 3:])
    assert not difference_BNC[:, 0].any()
    torch.testing.assert_close(difference_BNC[:, 1:], own.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-4)


def test_without_a_learnt_mask_the_tower_is_clips() -> None:
    model = tiny_model(sees_masks=False)
    clip = CLIPVisionModel(CLIPVisionConfig(**model.blueprint.vision)).eval()
    stored = {name: weight for name, weight in model.vision_model.state_dict().items() if "alpha" not in name}
    clip.load_state_dict(stored)

    seen = model.look((squares(), BOXES))[0]

    expected = model.visual_projection(clip(squares()[:, :3]).pooler_output)
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-4)


def test_a_region_is_pooled_from_the_normed_patches_in_its_box() -> None:
    model = tiny_model()
    halves = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]])
    out = model.vision_model(squares())
    patches_BRowsColsC = model.vision_model.post_layernorm(out.last_hidden_state[:, 1:]).reshape(2, 4, 4, -1)

    regions = model.look((squares(), halves))[1]

    # samples at -1/4 (the border), 1/4, 3/4 and 5/4 of a patch from the middle of the first: 2, 7/4 and 1/4 of four
    weights = torch.tensor([0.5, 0.4375, 0.0625, 0.0])
    own = (patches_BRowsColsC[0].mean(0) * weights[:, None]).sum(0, keepdim=True)
    assert regions.shape == (2, 12)
    torch.testing.assert_close(regions[:1], model.visual_projection(own), atol=1e-4, rtol=1e-3)


def test_a_text_means_the_same_alone_and_beside_a_longer_one() -> None:
    model = tiny_model()
    assert model.text_model is not None
    short, long = "the red bar", TEXTS[0]

    alone = mean_state(model.text_model, tokens_of(PIECES, [short], 24))
    together = mean_state(model.text_model, tokens_of(PIECES, [short, long], 24))

    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-4)


def test_the_first_token_of_a_text_sees_the_last() -> None:
    model = tiny_model()
    assert model.text_model is not None
    texts = tokens_of(PIECES, ["the red bar"], 24)
    assert texts.ids_BL is not None
    changed = texts.ids_BL.clone()
    changed[0, -1] = PIECES.end_id

    first, second = (
        model.text_model(input_ids=ids, attention_mask=texts.attention_BL) for ids in (texts.ids_BL, changed)
    )

    assert not torch.allclose(first.last_hidden_state[0, 0], second.last_hidden_state[0, 0], atol=1e-4)


def test_the_adapter_looks_at_directions_only() -> None:
    model = tiny_model()
    vectors = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))

    torch.testing.assert_close(model.text_adapter(vectors), model.text_adapter(vectors * 7), atol=1e-5, rtol=1e-4)


def test_a_scale_beyond_its_bound_is_held_there_and_can_come_back() -> None:
    model = tiny_model()
    torch.nn.init.constant_(model.logit_scale, math.log(1000))

    scale = model.similarity_scale()
    scale.backward()

    assert scale.item() == pytest.approx(100.0, rel=1e-4)
    assert model.logit_scale.grad is not None
    assert model.logit_scale.grad.item() > 0


def test_a_fixed_scale_is_no_weight() -> None:
    config = replace(TINY, scale=ScaleConfig(initial=100.0, learns=False))
    model = PixClip(blueprint_of(config))

    assert "logit_scale" not in dict(model.named_parameters())
    assert model.similarity_scale().item() == 100.0


@pytest.mark.parametrize("at_once", [1, 3, 4])
def test_parts_of_a_batch_give_the_loss_and_gradients_of_the_whole(at_once: int) -> None:
    whole, parts = tiny_task(), tiny_task(images_at_once=at_once)
    batch = whole.collate(drawn_of([scene(number) for number in range(3)]))
    models = [tiny_model(), tiny_model()]

    losses = [task.loss(model, batch).total for task, model in zip((whole, parts), models, strict=True)]
    for loss in losses:
        loss.backward()

    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=1e-5)
    for (name, one), two in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert one.grad is not None, name
        torch.testing.assert_close(one.grad, two.grad, atol=1e-6, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}")


def test_embeddings_have_unit_length_and_fresh_weights_follow_from_the_seed() -> None:
    batch = tiny_task().collate(drawn_of([scene(0), scene(1)]))
    first, again, other = tiny_model(3), tiny_model(3), tiny_model(4)

    found = first(batch)

    for name in ("masked", "regions", "crops", "texts"):
        torch.testing.assert_close(functional.normalize(found[name], dim=-1), found[name])
        assert torch.equal(found[name], again(batch)[name])
        assert not torch.allclose(found[name], other(batch)[name])


def test_weights_that_were_loaded_are_kept() -> None:
    model = tiny_model()
    before = model.visual_projection.weight.detach().clone()

    draw_weights(model, 9, keep={"visual_projection.weight"})

    assert torch.equal(model.visual_projection.weight, before)
    assert not model.vision_model.embeddings.patch_embedding.alpha.weight.any()


def test_a_batch_moves_with_all_it_holds() -> None:
    batch = tiny_task().collate(drawn_of([scene(0)]))

    moved = batch.to("meta")

    assert moved.whole_B4SS.is_meta
    assert moved.crops_B4SS is not None
    assert moved.crops_B4SS.is_meta
    assert moved.texts.embeddings_BE is None
    assert Texts(embeddings_BE=torch.zeros(1, 2)).to("meta").embeddings_BE is not None
