"""A step of GLaMM: sources to batches, the loss and its parts, weights that every batch touches."""

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from orchestrator.data.stream import Drawn
from orchestrator.errors import InputError
from stages.glamm.batches import IGNORED, GlammBatch
from stages.glamm.decoder import mask_losses
from stages.glamm.initial import draw_weights
from stages.glamm.model import Glamm
from stages.glamm.task import GlammTask, Start, Weights
from stages.mask_sizes import masks_at_image_size
from stages.point_rule import PointRule
from stages.samples import Caption, Region, Sample, Turn
from stages.vision import rle_from_mask
from tests.stages.glamm_models import tiny_blueprint, tiny_checkpoint, vocabulary
from tests.stages.scenes import scene

WORDS = vocabulary()
BLUEPRINT = tiny_blueprint(WORDS)
KINDS = {
    "captions": "caption", "boxes": "region", "group": "region_group", "grounded": "gcg", "segments": "region_mask",
    "expressions": "referring", "classes": "semantic",
}  # fmt: skip


def task_of(start: Start | None = None, weights: Weights | None = None) -> GlammTask:
    return GlammTask(BLUEPRINT, WORDS, KINDS, start=start or Start(), weights=weights or Weights(), max_regions=4)


def drawn(source: str, number: int, seed: int = 1) -> Drawn:
    sample = scene(number)
    return Drawn(source=source, key=sample.key, members=sample.to_members(), seed=seed, place=number)


def batch_of(source: str, *numbers: int) -> GlammBatch:
    return task_of().collate([drawn(source, number) for number in numbers])


def fresh(seed: int = 1) -> Glamm:
    model = Glamm(BLUEPRINT)
    draw_weights(model, seed)
    return model


def tensors_of(batch: GlammBatch) -> Mapping[str, Tensor]:
    found = {name: getattr(batch, name) for name in batch.__slots__}
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}


def touched(source: str) -> dict[str, bool]:
    """Says of every weight that got a gradient whether it is more than zeros."""
    model = fresh()
    task_of().loss(model, batch_of(source, 0, 1)).total.backward()
    return {name: bool(p.grad.any()) for name, p in model.named_parameters() if p.grad is not None}


def test_the_tokens_of_a_batch_are_what_the_language_model_reads_without_padding() -> None:
    alone = [task_of().tokens_of(batch_of("captions", number)) for number in (0, 1)]
    together = batch_of("captions", 0, 1)

    assert task_of().tokens_of(together) == sum(alone) <= together.ids_BL.numel()
    assert min(alone) > int(together.is_image_BL[0].sum())


def test_each_of_several_captions_has_its_turn_by_the_seed_of_the_draw() -> None:
    sample = replace(scene(0), more_captions=(Caption(text="Two bars."),))

    def said(seed: int) -> str:
        drawn = Drawn(source="captions", key=sample.key, members=sample.to_members(), seed=seed, place=0)
        conversation = task_of().example(drawn).conversation
        (start, end), = conversation.answers  # fmt: skip
        return conversation.text[start:end].removesuffix(WORDS.end).strip()

    assert {said(seed) for seed in range(12)} == {scene(0).caption, "Two bars."}
    assert said(3) == said(3)


@pytest.mark.parametrize(("source", "boxes", "masks"), [("captions", 0, 0), ("boxes", 4, 0), ("grounded", 0, 4)])
def test_each_kind_brings_what_it_speaks_of(source: str, boxes: int, masks: int) -> None:
    batch = batch_of(source, 0, 1)

    assert len(batch.boxes_R4) == int(batch.is_box_BL.sum()) == boxes
    assert sum(len(mask) for mask in batch.masks) == len(batch.seg_place_N) == masks


def test_a_segment_is_asked_for_by_its_box_and_answered_with_its_own_mask() -> None:
    batch = batch_of("segments", 0)

    for box, mask in zip(batch.boxes_R4, batch.masks[0], strict=True):
        rows, columns = mask.nonzero(as_tuple=True)
        height, width = mask.shape
        found = [columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height]
        assert box.tolist() == pytest.approx([float(edge) for edge in found])


@pytest.mark.parametrize("source", KINDS)
def test_a_sample_is_measured_as_long_as_its_conversation_with_the_tokens_of_the_image(source: str) -> None:
    sample = drawn(source, 0)

    length = task_of().length_of(source, sample.key, sample.members)

    in_batches = {int(task_of().collate([drawn(source, 0, seed)]).attention_BL.sum()) for seed in range(20)}
    assert min(in_batches) <= length <= max(in_batches)
    assert length == task_of().length_of(source, sample.key, sample.members)


def test_sources_may_mix_inside_a_batch() -> None:
    mixed = task_of().collate([drawn(source, number) for number, source in enumerate(KINDS)])

    losses = task_of().loss(fresh(), mixed)

    assert torch.isfinite(losses.total)
    alone = {source: batch_of(source, number) for number, source in enumerate(KINDS)}
    assert int(mixed.is_box_BL.sum()) == sum(int(batch.is_box_BL.sum()) for batch in alone.values())
    assert [len(masks) for masks in mixed.masks] == [len(batch.masks[0]) for batch in alone.values()]


@pytest.mark.parametrize("source", KINDS)
def test_a_batch_is_a_function_of_the_seeds_of_its_samples(source: str) -> None:
    first, again = batch_of(source, 0, 1, 2), batch_of(source, 0, 1, 2)

    for name, tensor in tensors_of(first).items():
        assert torch.equal(tensor, tensors_of(again)[name]), name


def test_another_seed_chooses_other_words() -> None:
    texts = {task_of().example(drawn("grounded", 0, seed)).conversation.text for seed in range(20)}

    assert len(texts) > 1


def test_the_turns_of_a_sample_are_learnt_as_they_are() -> None:
    plain = scene(0)
    sample = Sample(
        key="k", image=plain.image, width_px=plain.width_px, height_px=plain.height_px,
        turns=(Turn(question="How many?", answer="Two."), Turn(question="Sure?", answer="Yes.")),
    )  # fmt: skip

    said = Drawn(source="captions", key="k", members=sample.to_members(), seed=1, place=0)
    text = task_of().example(said).conversation.text

    assert "How many? ASSISTANT: Two.</s>" in text
    assert "USER: Sure? ASSISTANT: Yes.</s>" in text


def test_the_loss_is_text_plus_twice_cross_entropy_plus_half_dice() -> None:
    model, batch = fresh(), batch_of("grounded", 0, 1)

    losses = task_of().loss(model, batch)

    hidden = model.read(batch)
    logits = model.language_model.lm_head(hidden)[:, :-1].flatten(0, 1)
    text = functional.cross_entropy(logits, batch.labels_BL[:, 1:].flatten(), ignore_index=IGNORED)
    low = model.point(hidden, batch)
    side = batch.masks[0].shape[-1]
    wide = masks_at_image_size(low, canvas=32, inside=(32, 32), image=(side, side))
    bce, dice = mask_losses(wide, torch.cat(batch.masks))
    torch.testing.assert_close(losses.total, text + 2 * bce.mean() + 0.5 * dice.mean())
    assert losses.terms["text"].item() == pytest.approx(text.item(), rel=1e-5)
    assert losses.terms["bce"].item() == pytest.approx(bce.mean().item(), rel=1e-5)
    assert losses.terms["dice"].item() == pytest.approx(dice.mean().item(), rel=1e-5)


def test_every_kind_of_batch_touches_the_same_weights_and_names_the_same_losses() -> None:
    weights = {source: touched(source) for source in KINDS}
    terms = {source: set(task_of().loss(fresh(), batch_of(source, 0)).terms) for source in KINDS}

    assert len({frozenset(names) for names in weights.values()}) == 1
    assert all(names == {"text", "bce", "dice"} for names in terms.values())


def test_what_a_batch_does_not_need_gets_a_gradient_of_nothing_but_zeros() -> None:
    caption, grounded, region = touched("captions"), touched("grounded"), touched("boxes")

    masks = [name for name in caption if name.startswith(("sam.mask_decoder", "sam.vision_encoder", "prompt_proj"))]
    boxes = [name for name in caption if name.startswith("region_encoder")]
    assert not any(caption[name] for name in masks + boxes)
    assert not any(region[name] for name in masks)
    assert not any(grounded[name] for name in boxes)
    assert any(grounded[name] for name in masks)
    assert all(region[name] for name in boxes if name.endswith("weight"))


class Waits(TorchDispatchMode):
    """Notes the operations for whose result a program waits, were they on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            leaf.dtype == torch.bool for leaf in tree_leaves(args[1]) if isinstance(leaf, Tensor)
        )
        if by_mask or name in {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"}:
            self.found.add(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("source", [*KINDS, "packed"])
@pytest.mark.parametrize("points", [None, PointRule(count=30)])
def test_a_step_never_waits_for_what_it_computes(source: str, points: PointRule | None) -> None:
    model, task = fresh(), task_of(weights=Weights(mask_points=points))
    shared = [drawn("boxes", 0), drawn("grounded", 1)._replace(place=0)]
    batch = task.collate(shared) if source == "packed" else batch_of(source, 0, 1)

    with Waits() as waits:
        task.loss(model, batch).total.backward()

    assert waits.found == set()


def test_tokens_hear_nothing_of_padding() -> None:
    model, alone, together = fresh().eval(), batch_of("boxes", 0), batch_of("boxes", 0)
    together.ids_BL = functional.pad(together.ids_BL, (0, 7), value=WORDS.end_id)
    together.labels_BL = functional.pad(together.labels_BL, (0, 7), value=IGNORED)
    for name in ("attention_BL", "is_image_BL", "is_box_BL"):
        setattr(together, name, functional.pad(getattr(together, name), (0, 7), value=False))

    first, second = task_of().loss(model, alone).total, task_of().loss(model, together).total

    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def test_a_task_goes_on_from_the_weights_of_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    task = task_of(Start(checkpoint=checkpoint.path))
    first, second = task.build_model(), task.build_model()

    torch.manual_seed(1)
    task.load_weights(first)
    torch.manual_seed(2)
    task.load_weights(second)

    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_tokenizer_of_another_size_is_refused_with_both_sizes() -> None:
    blueprint = tiny_blueprint(WORDS)
    plain = {**blueprint.to_plain(), "vocabulary_size": WORDS.size + 1}

    with pytest.raises(InputError, match=rf"{WORDS.size} tokens.*{WORDS.size + 1}"):
        GlammTask(type(blueprint).from_plain(plain), WORDS, KINDS, start=Start(), weights=Weights(), max_regions=4)


@pytest.mark.parametrize(
    ("size", "points"), [((1, 1), None), ((1, 1), PointRule(count=20)), ((1, 2000), None), ((2000, 1), None)]
)
def test_a_picture_of_one_pixel_teaches_like_any_other(size: tuple[int, int], points: PointRule | None) -> None:
    width, height = size
    picture = io.BytesIO()
    Image.new("RGB", size, "red").save(picture, "PNG")
    whole = rle_from_mask(np.ones((height, width), dtype=np.bool_))
    region = Region(box_xyxy_px=(0, 0, width, height), mask=whole, phrase="red", spans=((2, 5),))
    sample = Sample(
        key="dot", image=picture.getvalue(), width_px=width, height_px=height, caption="A red bar.", regions=(region,)
    )
    task = task_of(weights=Weights(mask_points=points))

    for source in ("grounded", "segments", "boxes"):
        one = Drawn(source=source, key="dot", members=sample.to_members(), seed=1, place=0)
        losses = task.loss(fresh(), task.collate([one]))

        assert torch.isfinite(losses.total)
        assert (losses.terms["dice"] > 0).item() is (source != "boxes")


def test_more_boxes_and_masks_than_tokens_are_left_out_and_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    plain = scene(0)
    many = replace(plain, regions=tuple(replace(plain.regions[0], caption="a red bar " * 8) for _ in range(40)))
    task = GlammTask(BLUEPRINT, WORDS, KINDS, start=Start(), weights=Weights(), max_regions=40)
    one = Drawn(source="segments", key=many.key, members=many.to_members(), seed=1, place=0)

    batches = [task.collate([one]) for _ in range(2)]

    for batch in batches:
        assert batch.ids_BL.shape == (1, BLUEPRINT.max_tokens)
        assert 0 < len(batch.boxes_R4) == int(batch.is_box_BL.sum()) < 40
        assert 0 < len(batch.masks[0]) == len(batch.seg_place_N) < 40
        assert torch.isfinite(task.loss(fresh(), batch).total)
    (told,) = [record.getMessage() for record in caplog.records if "max_tokens" in record.getMessage()]
    assert f"max_tokens, {BLUEPRINT.max_tokens}: {40 - len(batches[0].boxes_R4)} boxes and" in told
