"""Samples become rows and batches, and batches losses, each kind of source its own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from orchestrator.errors import InputError
from stages.pixelllm.batches import IGNORED, PixelBatch
from stages.pixelllm.initial import waves
from stages.pixelllm.losses import caption_loss, location_loss
from stages.pixelllm.model import PixelLLM
from stages.pixelllm.task import PixelLLMTask
from stages.pixelllm.tasks import LONG_REQUESTS, Rules, rows_of
from stages.samples import Sample
from tests.stages.learning import learn_by_heart
from tests.stages.pixelllm_models import KINDS, drawn, narrated, pieces, talkative, tiny_task
from tests.stages.scenes import SIDE_PX, png

CANVAS_PX = 32
SCALE = CANVAS_PX / SIDE_PX


@pytest.fixture(scope="module")
def task() -> PixelLLMTask:
    return tiny_task(pieces(), masks=True)


@pytest.fixture(scope="module")
def model(task: PixelLLMTask) -> PixelLLM:
    built = task.build_model()
    assert isinstance(built, PixelLLM)
    return talkative(built)


def batch_of(task: PixelLLMTask, source: str, count: int = 2) -> PixelBatch:
    return task.collate([drawn(source, narrated(number), number) for number in range(count)])


def test_tokens_of_a_narrated_caption_have_the_boxes_that_the_mouse_went_around(task: PixelLLMTask) -> None:
    batch = batch_of(task, "traces", 1)

    located = batch.corners_NL22[0][batch.is_located_NL[0]]
    first, last = (region.box_xyxy_px for region in narrated(0).regions)
    assert not batch.is_located_NL[0, 0]  # the start token is nowhere
    assert located[0].flatten().tolist() == pytest.approx([edge * SCALE for edge in first])
    assert located[-1].flatten().tolist() == pytest.approx([edge * SCALE for edge in last])


def test_an_expressions_box_is_known_only_one_token_before_its_end(task: PixelLLMTask) -> None:
    batch = batch_of(task, "expressions", 1)

    words = task.pieces
    for row, region in zip(range(2), narrated(0).regions, strict=True):
        length = len(words.encode(region.caption))
        assert batch.is_located_NL[row].nonzero().flatten().tolist() == [length]
        assert words.decode([int(batch.ids_NL[row, length])]) == "bar"  # its last word
        box = batch.corners_NL22[row, length].flatten().tolist()
        assert box == pytest.approx([edge * SCALE for edge in region.box_xyxy_px])
    assert (batch.targets_NL == IGNORED).all()  # its words are read and not learnt


def test_a_caption_is_predicted_from_its_first_token_to_its_end_mark(task: PixelLLMTask) -> None:
    batch = batch_of(task, "captions", 1)

    ids = task.pieces.encode(narrated(0).caption)
    assert batch.ids_NL[0].tolist() == [task.pieces.start_id, *ids]
    assert batch.targets_NL[0].tolist() == [*ids, task.pieces.end_id]
    assert not batch.is_located_NL.any()


def test_a_region_is_asked_about_by_its_box_in_units_of_the_canvas(task: PixelLLMTask) -> None:
    batch = batch_of(task, "regions", 1)

    box = narrated(0).regions[1].box_xyxy_px
    # half a pixel of the canvas further, as SAM means the middles of pixels
    assert batch.prompts_N4[1].tolist() == pytest.approx([(edge * SCALE + 0.5) / CANVAS_PX for edge in box])
    assert not batch.proposes
    assert batch_of(task, "boxes", 1).proposes


def test_an_oblong_image_is_padded_below_and_its_whole_is_the_prompt(task: PixelLLMTask) -> None:
    sample = narrated(0)
    wide = replace(sample, image=_wide(), width_px=40, height_px=20, regions=(), points=(), utterances=())

    batch = task.collate([drawn("captions", wide)])

    assert batch.inside_B2.tolist() == [[32.0, 16.0]]
    assert batch.prompts_N4[0].tolist() == pytest.approx([0.5 / 32, 0.5 / 32, 32.5 / 32, 16.5 / 32])
    assert not batch.semantic_pixels_BCHW[0, :, 16:].any()


def test_the_same_seed_gives_the_same_words_and_another_one_others(task: PixelLLMTask) -> None:
    contexts = {rows_of("trace", narrated(0), seed=seed, rules=Rules())[0].context for seed in range(40)}

    assert contexts <= set(LONG_REQUESTS)
    assert len(contexts) > 5
    assert rows_of("trace", narrated(0), seed=3, rules=Rules()) == rows_of("trace", narrated(0), seed=3, rules=Rules())
    assert len(rows_of("refer", narrated(0), seed=3, rules=Rules(max_expressions=1))) == 1


def test_a_sample_without_what_its_task_needs_is_refused_by_name(task: PixelLLMTask) -> None:
    bare = Sample(key="bare", image=narrated(0).image, width_px=40, height_px=40, caption="A bar.")

    with pytest.raises(InputError, match="'bare' holds nothing for the task trace: it needs a caption with utterances"):
        task.collate([drawn("traces", bare)])


def test_smoothed_words_share_their_rest_among_all_other_words() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0, 0.5], [0.0, 0.0, 0.0, 0.0]])

    loss = caption_loss(logits, torch.tensor([0, IGNORED]), ignored=IGNORED, smoothing=0.1)

    chances = logits[0].log_softmax(-1)
    assert float(loss) == pytest.approx(float(-(0.9 * chances[0] + 0.1 / 3 * chances[1:].sum())), rel=1e-5)


def test_places_are_compared_in_pixels_of_the_canvas_where_they_are_known() -> None:
    points = torch.tensor([[[[0.0, 0.0], [0.5, 1.0]], [[9.0, 9.0], [9.0, 9.0]]]])
    corners = torch.tensor([[[[4.0, 0.0], [20.0, 16.0]], [[0.0, 0.0], [0.0, 0.0]]]])

    loss = location_loss(points, corners, torch.tensor([[True, False]]), torch.tensor([[32.0, 16.0]]))

    assert float(loss) == pytest.approx((4 + 0 + 4 + 0) / 4)


@pytest.mark.parametrize("source", sorted(KINDS))
def test_every_part_gets_a_gradient_from_every_kind_of_batch(source: str, task: PixelLLMTask) -> None:
    model: nn.Module = talkative(_built(task))

    task.loss(model, batch_of(task, source)).total.backward()

    # norms of CLIP's pooled output, and prompts that are no boxes, have no part in anything
    unused = ("semantic.post_layernorm", "prompts.point_embed.0", "prompts.point_embed.1", "prompts.not")
    lacking = [name for name, p in model.named_parameters() if p.grad is None and not name.startswith(unused)]
    assert lacking == []


def test_what_a_batch_does_not_teach_weighs_nothing(task: PixelLLMTask, model: PixelLLM) -> None:
    captions = task.loss(model, batch_of(task, "captions"))
    expressions = task.loss(model, batch_of(task, "expressions"))

    assert float(captions.total.detach()) == pytest.approx(float(captions.terms["caption"]))
    assert float(expressions.terms["caption"]) == 0.0
    assert float(expressions.total.detach()) == pytest.approx(0.1 * float(expressions.terms["location_px"]))
    assert captions.terms.keys() == expressions.terms.keys()  # every rank logs the same


def test_fresh_positions_say_by_a_linear_map_where_they_are() -> None:
    of_map, with_class = waves(torch.Size((1, 8, 8, 32)))[0].flatten(0, 1), waves(torch.Size((65, 32)))
    middles = (torch.arange(8) + 0.5) / 8
    places = torch.stack(torch.meshgrid(middles, middles, indexing="xy"), dim=-1).flatten(0, 1)

    read = of_map @ torch.linalg.lstsq(of_map, places, driver="gelsd").solution

    torch.testing.assert_close(read, places, atol=0.02, rtol=0)
    assert torch.equal(with_class[1:], of_map)
    assert not with_class[0].any()


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_places_are_learnt_by_heart(kind: str) -> None:
    torch.manual_seed(0)
    task = tiny_task(pieces(), kind=kind, detector=False)
    model = _built(task)
    talkative(model)
    batch = batch_of(task, "expressions")

    losses = [one["location_px"] for one in learn_by_heart(task, model, batch, steps=40, lr=5e-3)]

    assert losses[-1] < losses[0] / 3


def _built(task: PixelLLMTask) -> PixelLLM:
    model = task.build_model()
    assert isinstance(model, PixelLLM)
    return model


def _wide() -> bytes:
    return png(np.full((20, 40, 3), 200, dtype=np.uint8))
