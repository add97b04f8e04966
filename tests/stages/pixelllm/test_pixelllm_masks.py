"""PixelLLM draws what expressions mean: as SAM does while its gate is closed, learnt from the best of three masks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SamConfig, SamModel

from stages.family import Refers
from stages.pixelllm.answer import DrawingPixelLLM
from stages.pixelllm.family import PixelLLMFamily
from stages.pixelllm.losses import mask_loss
from stages.pixelllm.masks import said_boxes
from stages.pixelllm.model import PixelLLM
from stages.pixelllm.pretrained import fill_masks
from stages.pixelllm.task import PixelLLMTask
from stages.samples import Sample
from stages.vision import rle_from_mask
from tests.stages.learning import learn_by_heart
from tests.stages.pixelllm_models import drawn, narrated, pieces, talkative, tiny_checkpoint, tiny_task
from tests.stages.scenes import SIDE_PX, png

CANVAS_PX, CHANNELS = 32, 8
EXPRESSIONS = ["a red bar", "the green bar, the grey bar that stands left of it", "the blue bar"]


@pytest.fixture(scope="module")
def task() -> PixelLLMTask:
    return tiny_task(pieces(), masks=True)


def built(task: PixelLLMTask) -> PixelLLM:
    model = task.build_model()
    assert isinstance(model, PixelLLM)
    return talkative(model)


def sam(folder: Path) -> SamModel:
    """Saves a SAM whose mask decoder fits the tiny model's map of 2 x 2 cells."""
    torch.manual_seed(5)
    vision = {
        "hidden_size": 8, "output_channels": CHANNELS, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": CANVAS_PX, "patch_size": 16, "mlp_dim": 12, "window_size": 0, "global_attn_indexes": [0],
        "num_pos_feats": CHANNELS // 2,
    }  # fmt: skip
    model = SamModel(
        SamConfig(
            vision_config=vision,
            prompt_encoder_config={"hidden_size": CHANNELS, "image_size": CANVAS_PX, "patch_size": 16},
            mask_decoder_config={
                "hidden_size": CHANNELS, "mlp_dim": 12, "num_attention_heads": 2, "num_hidden_layers": 1,
                "iou_head_hidden_dim": 8,
            },
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in (*model.mask_decoder.parameters(), *model.prompt_encoder.parameters()):
            parameter.normal_(std=0.5)  # its own fresh weights draw next to nothing
    model.save_pretrained(folder)
    return model.eval()


def test_an_expressions_mask_lies_in_the_canvas_where_its_region_lies(task: PixelLLMTask) -> None:
    mask_HW = np.zeros((20, SIDE_PX), dtype=np.bool_)
    mask_HW[5:18, 4:14] = True
    region = replace(narrated(0).regions[0], box_xyxy_px=(4, 5, 14, 18), mask=rle_from_mask(mask_HW), spans=())
    image = png(np.full((20, SIDE_PX, 3), 200, dtype=np.uint8))
    flat = Sample(key="flat", image=image, width_px=SIDE_PX, height_px=20, regions=(region,))

    batch = task.collate([drawn("segments", narrated(1)), drawn("segments", flat)])

    assert batch.drawn_S.tolist() == [0, 1, 2]  # two regions, then one
    scale = CANVAS_PX / SIDE_PX
    for masks, sample in ((batch.masks_SHW[:1], narrated(1)), (batch.masks_SHW[2:], flat)):
        x0, _, x1, _ = (edge * scale for edge in sample.regions[0].box_xyxy_px)
        columns = masks[0].any(0).nonzero().flatten()
        assert (int(columns[0]), int(columns[-1]) + 1) == pytest.approx((x0, x1), abs=1)
    assert not batch.masks_SHW[2, 16:].any()  # the padding below an oblong image
    assert batch.is_located_NL.sum() == 3  # boxes are learnt beside them


def test_other_sources_ask_for_no_masks(task: PixelLLMTask) -> None:
    batch = task.collate([drawn("expressions", narrated(0))])

    assert batch.masks_SHW.shape == (0, CANVAS_PX, CANVAS_PX)
    terms = task.loss(built(task), batch).terms
    assert [float(terms[name]) for name in ("mask_focal", "mask_dice", "mask_score")] == [0, 0, 0]


def test_parts_that_no_source_of_a_training_teaches_are_not_run(task: PixelLLMTask) -> None:
    model, samples = built(task), [drawn("expressions", narrated(0))]
    referring = tiny_task(pieces(), masks=True, kinds={"expressions": "refer"})

    losses = referring.loss(model, referring.collate(samples))
    losses.total.backward()

    assert set(losses.terms) == {"caption", "location_px"}
    torch.testing.assert_close(losses.total, task.loss(model, task.collate(samples)).total)
    learnt = {name.partition(".")[0] for name, weight in model.named_parameters() if weight.grad is not None}
    assert learnt == {"semantic", "localization", "prompts", "extractor", "projection", "language", "location"}


def test_only_the_best_of_three_masks_learns_and_every_score_learns_its_own_overlap() -> None:
    truth = torch.zeros(1, 4, 4, dtype=torch.bool)
    truth[0, :, :2] = True  # the left half
    sure = torch.where(truth, 9.0, -9.0)
    masks = torch.stack([-sure[0], sure[0], torch.full((4, 4), 9.0)])[None].requires_grad_()
    scores = torch.tensor([[0.5, 0.5, 0.5]], requires_grad=True)

    focal, dice, error = mask_loss(masks, scores, truth)
    (focal + dice).backward()

    assert float(dice.detach()) == pytest.approx(0, abs=1e-3)
    assert masks.grad is not None
    assert masks.grad[0, 1].any()
    assert not masks.grad[0, [0, 2]].any()
    # overlaps are 0, 1 and a half
    assert float(error.detach()) == pytest.approx((0.25 + 0.25 + 0) / 3)


def test_unsure_masks_cost_more_where_they_are_wrong() -> None:
    truth = torch.ones(1, 2, 2, dtype=torch.bool)

    focal, dice, _ = mask_loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3), truth)

    assert float(focal) == pytest.approx(0.25 * 0.5**2 * np.log(2))
    assert float(dice) == pytest.approx(1 - (2 * 4 * 0.5 + 1) / (4 * 0.5 + 4 + 1))


def test_a_closed_gate_leaves_what_sam_draws_for_the_box(task: PixelLLMTask, tmp_path: Path) -> None:
    other = sam(tmp_path)
    model = built(task)
    names = fill_masks(model, tmp_path)
    _share_prompts(model, other)
    assert model.masks is not None
    assert names == {name for name, _ in model.named_parameters() if name.startswith("masks.decoder.")}
    batch = task.collate([drawn("segments", narrated(0))])

    with torch.inference_mode():
        opened = model(batch)
        model.masks.adapter.gate_1.zero_()
        said = model(batch)
        boxes_S4 = said_boxes(said["points_NL22"], batch, batch.drawn_S, canvas_px=CANVAS_PX)
        seen = model.see(batch.semantic_pixels_BCHW, batch.localization_pixels_BCHW).place_BCHW
        theirs = other(image_embeddings=seen, input_boxes=(boxes_S4 * CANVAS_PX - 0.5)[None], multimask_output=True)

    torch.testing.assert_close(said["masks_S3hw"], theirs.pred_masks[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(said["scores_S3"], theirs.iou_scores[0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(opened["masks_S3hw"], said["masks_S3hw"], atol=1e-4, rtol=1e-3)


def test_the_box_for_the_decoder_is_the_one_that_was_said(task: PixelLLMTask) -> None:
    batch = task.collate([drawn("segments", narrated(0))])
    points = torch.zeros(2, batch.ids_NL.shape[1], 2, 2)
    points[1, int(batch.last_N[1])] = torch.tensor([[0.75, 0.5], [0.25, 1.5]])  # corners in any order, one outside

    (box,) = said_boxes(points, batch, torch.tensor([1]), canvas_px=CANVAS_PX)

    assert box.tolist() == pytest.approx([(0.25 * 32 + 0.5) / 32, 16.5 / 32, 24.5 / 32, 32.5 / 32])


def test_masks_are_as_large_as_their_image_and_do_not_depend_on_what_is_asked_beside_them(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model", masks=True)
    model = PixelLLMFamily(device="cpu").load(checkpoint.path)
    assert isinstance(model, DrawingPixelLLM)
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (30, 50, 3), dtype=np.uint8))

    together = model.refer_told(image, EXPRESSIONS)

    for mask, text in zip(together, EXPRESSIONS, strict=True):
        (alone,) = model.refer(image, text, max_new_tokens=1).masks_HW
        assert mask is not None
        assert mask.shape == (30, 50)
        assert (mask != alone).mean() < 0.01  # rounding at an edge
    assert model.refer_told(image, []) == []


def test_an_export_draws_what_its_checkpoint_draws(tmp_path: Path) -> None:
    family = PixelLLMFamily(device="cpu")
    checkpoint = tiny_checkpoint(tmp_path / "model", masks=True, lora=True)
    image = Image.fromarray(np.random.default_rng(4).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    (tmp_path / "export").mkdir()

    family.export(checkpoint.path, tmp_path / "export", card="# A tiny one\n")
    first, second = (model.refer_told(image, EXPRESSIONS) for model in _both(family, checkpoint.path, tmp_path))

    for one, other in zip(first, second, strict=True):
        assert one is not None
        assert other is not None
        assert (one != other).mean() < 0.01  # adapters are merged


def test_a_model_without_the_branch_is_asked_for_boxes_alone(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")

    assert not isinstance(PixelLLMFamily(device="cpu").load(checkpoint.path), Refers)


def test_masks_are_learnt_by_heart() -> None:
    torch.manual_seed(0)
    task = tiny_task(pieces(), masks=True, detector=False, channels=32)
    model = built(task)
    batch = task.collate([drawn("segments", narrated(0))])

    dice = [one["mask_dice"] for one in learn_by_heart(task, model, batch, steps=50, lr=3e-3)]

    assert dice[-1] < dice[0] / 2


def _both(family: PixelLLMFamily, checkpoint: Path, folder: Path) -> list[DrawingPixelLLM]:
    models = [family.load(checkpoint), family.load_export(folder / "export")]
    assert all(isinstance(model, DrawingPixelLLM) for model in models)
    return [model for model in models if isinstance(model, DrawingPixelLLM)]


def _share_prompts(model: PixelLLM, other: SamModel) -> None:
    """Gives the model the vectors and frequencies by which a SAM reads prompts."""
    theirs = other.prompt_encoder
    with torch.no_grad():
        for mine, his in zip(model.prompts.point_embed, theirs.point_embed, strict=True):
            mine.weight.copy_(his.weight)
        model.prompts.no_mask_embed.weight.copy_(theirs.no_mask_embed.weight)
        model.prompts.get_buffer("positional_embedding").copy_(other.shared_image_embedding.positional_embedding)
        theirs.shared_embedding.positional_embedding.copy_(other.shared_image_embedding.positional_embedding)
