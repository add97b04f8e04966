"""Parts beside those who published them: SAM from picture to mask and LLaMA's logits are transformers' own."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, SamImageProcessor, SamModel

from stages.glamm.collate import Collator
from stages.glamm.config import SPECIAL_TOKENS, LanguageConfig, VisionConfig, draw_blueprint
from stages.glamm.decoder import decode_masks
from stages.glamm.model import Glamm
from stages.glamm.pretrained import fill_from_published
from stages.mask_sizes import masks_at_image_size
from tests.stages.glamm_models import TINY, picture, talkative, vocabulary

WORDS = vocabulary()
BASE = WORDS.size - len(SPECIAL_TOKENS)


@pytest.mark.parametrize("size", [(40, 40), (30, 50), (64, 20), (7, 3), (1, 1)])
def test_sam_is_transformers_own_from_the_picture_to_masks_of_its_size(size: tuple[int, int], tmp_path: Path) -> None:
    model = talkative(Glamm(draw_blueprint(TINY, WORDS.size)), WORDS, 2).eval()
    model.sam.save_pretrained(tmp_path)
    theirs: Any = SamModel.from_pretrained(tmp_path).eval()
    image = picture(4, size)
    prompts_1MC = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(1)) * 3
    pixels, inside = Collator(model.blueprint, WORDS).sam_pixels(image)

    with torch.inference_mode():
        low_1MHW = decode_masks(model.sam, model.sam.vision_encoder(pixels[None]).last_hidden_state, prompts_1MC)
        masks_MHW = masks_at_image_size(low_1MHW[0], canvas=32, inside=inside, image=(size[1], size[0]))
        wanted_MHW = _answered_by_transformers(theirs, image, prompts_1MC)

    assert masks_MHW.shape == wanted_MHW.shape == (3, size[1], size[0])
    torch.testing.assert_close(masks_MHW, wanted_MHW, atol=2e-3, rtol=1e-3)
    assert (masks_MHW.std() > 0.01) or size == (1, 1)


def _answered_by_transformers(sam: Any, image: Image.Image, prompts_1MC: Tensor) -> Tensor:
    """Runs transformers' own path, its prompt encoder alone answering with our prompts instead of points."""
    processor: Any = SamImageProcessor(
        size={"longest_edge": 32}, pad_size={"height": 32, "width": 32}, mask_size={"longest_edge": 8},
        mask_pad_size={"height": 8, "width": 8},
    )  # fmt: skip
    prepared = processor(image, return_tensors="pt")

    def prompted(_module: object, _given: object, said: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return prompts_1MC[:, :, None], said[1]

    hook = sam.prompt_encoder.register_forward_hook(prompted)
    points = torch.zeros(1, 3, 1, 2)
    found = sam(pixel_values=prepared["pixel_values"], input_points=points, multimask_output=False)
    hook.remove()
    (masks,) = processor.post_process_masks(
        found.pred_masks, prepared["original_sizes"], prepared["reshaped_input_sizes"], binarize=False,
        pad_size={"height": 32, "width": 32},
    )  # fmt: skip
    alone: Tensor = masks[:, 0]
    return alone


LANGUAGES: dict[str, dict[str, Any]] = {
    "Vicuna": {"num_key_value_heads": 4},
    "Llama-3": {
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    },
    "Llama-3.2, whose head is its embeddings": {"num_key_value_heads": 2, "tie_word_embeddings": True},
}  # fmt: skip


@pytest.mark.parametrize("kind", LANGUAGES)
def test_logits_are_those_of_transformers_from_the_same_folder(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    config = LlamaConfig(**{"tie_word_embeddings": False, **sizes, **LANGUAGES[kind]}, vocab_size=BASE)
    LlamaForCausalLM(config).save_pretrained(tmp_path, max_shard_size="30KB")
    parts = replace(TINY, language=LanguageConfig(path=tmp_path))
    model = Glamm(draw_blueprint(parts, WORDS.size)).eval()

    filled = fill_from_published(model, parts)

    assert filled.report.missing == ()
    ids = torch.randint(0, BASE, (2, 90), generator=torch.Generator().manual_seed(6))
    with torch.inference_mode():
        theirs = LlamaForCausalLM.from_pretrained(tmp_path).eval()(ids).logits
        ours = model.language_model(ids).logits
    torch.testing.assert_close(ours[..., :BASE], theirs, atol=1e-5, rtol=1e-5)
    assert theirs.std() > 0.01


def test_a_language_model_of_another_kind_is_a_fault_when_planning(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "hidden_size": 32}))

    found = replace(TINY, language=LanguageConfig(path=tmp_path)).faults()

    assert set(found) == {"language.path"}
    assert "qwen2" in found["language.path"]


def test_levels_that_the_image_encoder_does_not_have_are_a_fault_when_planning(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {"num_hidden_layers": 2}}))
    region, vision = replace(TINY.region, layers=(1, 9)), VisionConfig(path=tmp_path)

    found = replace(TINY, region=region, vision=vision).faults()

    assert found == {"region.layers": "9 given, the image encoder has 0 to 2"}


def test_centre_cropping_a_line_takes_no_more_memory_than_a_picture() -> None:
    blueprint = replace(draw_blueprint(TINY, WORDS.size), centre_crop=True)
    line = Image.fromarray(np.arange(90_000 * 3, dtype=np.uint8).reshape(1, 90_000, 3))

    pixels = Collator(blueprint, WORDS).clip_pixels(line)

    assert pixels.shape == (3, 16, 16)
    whole = np.asarray(line, dtype=np.float64)[0, 44_999:45_001].mean()
    assert abs(float(pixels.mean()) - whole / 255) < 3  # of the middle of the line, normalised
