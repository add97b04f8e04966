"""What a CLOC computes: one encoding for all prompts, parts like the whole, and a loss as the paper writes it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from orchestrator.errors import InputError
from stages.cloc.collate import Collator
from stages.cloc.task import Weights, cloc_loss, distances
from stages.prompter import square_box
from stages.samples import Region, Sample
from tests.stages.cloc_models import drawn, scenes, tiny_blueprint, tiny_model, tiny_task, word_pieces
from tests.stages.scenes import scene

pytestmark = pytest.mark.needs("torch")

ALL_NEGATIVE = Weights(conflict=None)  # fresh weights put all texts close together, which would be conflicts


def gradients(chunk: int | None) -> tuple[float, dict[str, Tensor]]:
    """Computes loss and gradients of six scenes, some of them at a time."""
    task, model = tiny_task(), tiny_model()
    loss = cloc_loss(model, task.collate(scenes(6)), ALL_NEGATIVE, chunk=chunk).total
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_a_batch_in_chunks_gives_the_loss_and_the_gradients_of_the_whole() -> None:
    whole, chunks = gradients(None), gradients(2)

    assert whole[0] == pytest.approx(chunks[0], abs=1e-6)
    assert whole[1].keys() == chunks[1].keys() == dict(tiny_model().named_parameters()).keys()
    for name, slope in whole[1].items():
        assert torch.allclose(slope, chunks[1][name], atol=1e-6), name


def test_the_loss_is_that_of_the_paper() -> None:
    """L_CLIP + lambda (L_CLOC + L_grounding), lambda the share of images with described regions."""
    bare = replace(scene(3), regions=())
    batch = tiny_task().collate([*scenes(3), drawn(bare)])
    model = tiny_model()

    losses = cloc_loss(model, batch, ALL_NEGATIVE, chunk=None)

    out = model(batch)
    clip = both_ways(out["images_BD"] @ out["captions_BD"].T * out["scale"])
    real = batch.real_BM
    regions = both_ways(out["regions_BMD"][real] @ out["phrases_BMD"][real].T * out["region_scale"])
    grounding = functional.mse_loss(out["boxes_BM4"][real], batch.boxes_BM4[real])
    assert real.sum() == 6
    assert losses.total.item() == pytest.approx((clip + 0.75 * (regions + grounding)).item(), abs=1e-5)


def both_ways(logits: Tensor) -> Tensor:
    own = torch.arange(len(logits))
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


def test_a_batch_without_regions_costs_its_captions_alone_and_uses_every_weight() -> None:
    bare = [drawn(replace(scene(number), regions=())) for number in range(3)]
    model = tiny_model()

    losses = cloc_loss(model, tiny_task().collate(bare), Weights(), chunk=None)
    losses.total.backward()

    assert losses.total.item() == pytest.approx(losses.terms["clip"].item())
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_images_without_a_caption_teach_regions_only() -> None:
    silent = [drawn(replace(scene(number), caption="", regions=spanless(scene(number)))) for number in range(3)]

    losses = cloc_loss(tiny_model(), tiny_task().collate(silent), ALL_NEGATIVE, chunk=None)

    assert losses.terms["clip"].item() == 0
    assert losses.terms["regions"].item() > 0


def spanless(sample: Sample) -> tuple[Region, ...]:
    return tuple(replace(region, spans=()) for region in sample.regions)


def test_an_image_with_nothing_said_of_it_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"scene0001.*neither a caption nor a region"):
        tiny_task().collate([drawn(replace(scene(1), caption="", regions=()))])


def test_boxes_are_off_by_their_distance_or_its_square() -> None:
    errors_R4 = torch.tensor([[0.3, 0.0, 0.4, 0.0]])

    assert distances(errors_R4, squared=True).tolist() == pytest.approx([0.25])
    assert distances(errors_R4, squared=False).tolist() == pytest.approx([0.5])


def test_which_regions_take_part_follows_from_the_seed_alone() -> None:
    task = tiny_task(places=1)

    boxes = [task.collate([drawn(scene(2), seed=seed)]).boxes_BM4.flatten().tolist() for seed in (*range(8), 0)]

    assert boxes[0] == boxes[-1]
    assert len({tuple(box) for box in boxes}) == 2  # each of the two comes up for some seed


def test_boxes_stand_in_units_of_the_padded_square() -> None:
    assert square_box((10, 0, 40, 20), 40, 20) == (0.25, 0.0, 1.0, 0.5)


def test_texts_are_read_in_lower_case_and_cut_at_the_last_token() -> None:
    pieces = word_pieces()
    collator = Collator(tiny_blueprint(pieces), pieces, places=1)

    texts = collator.texts(["A RED bar", "a red bar", "a red bar " * 20])

    assert texts.ids[0].tolist() == texts.ids[1].tolist()
    assert texts.ids.shape[1] == 16
    assert texts.ids[2, texts.last[2]] == pieces.end_id
    assert texts.last[2] == 15


def test_what_stands_after_the_end_of_a_text_changes_nothing() -> None:
    pieces, model = word_pieces(), tiny_model()
    collator = Collator(tiny_blueprint(pieces), pieces, places=1)

    alone = model.embed_texts(collator.texts(["a red bar"]))
    padded = model.embed_texts(collator.texts(["a red bar", "the green disc is above a grey bar"]))

    assert torch.allclose(alone[0], padded[0], atol=1e-6)
