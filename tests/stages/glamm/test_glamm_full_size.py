"""Every name and shape of the published weights, at full size and without a byte of memory: all are placed."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, SamConfig, SamModel
from transformers.initialization import no_init_weights

from orchestrator.errors import InputError
from orchestrator.training.foreign.mapping import Rule, match
from orchestrator.training.weights import LoadReport
from stages.adapters import LoraConfig
from stages.glamm.config import Blueprint, RegionConfig
from stages.glamm.model import Glamm
from stages.glamm.published import CLIP, GLAMM, GPT4ROI, LLAMA, SAM, SAM_ORIGINAL
from stages.glamm.sam_original import sam_settings
from tests.stages.published_names import (
    Shapes,
    clip_shapes,
    glamm_7b_shapes,
    llama_shapes,
    nowhere,
    projector_shapes,
    region_shapes,
    sam_shapes,
)

SAMS = {
    "vit_b": {"layers": 12, "width": 768, "heads": 12, "whole": (2, 5, 8, 11)},
    "vit_l": {"layers": 24, "width": 1024, "heads": 16, "whole": (5, 11, 17, 23)},
    "vit_h": {"layers": 32, "width": 1280, "heads": 16, "whole": (7, 15, 23, 31)},
}
CLIPS = {
    "ViT-L/14-336": {"layers": 24, "width": 1024, "mlp": 4096, "side": 336},
    "ViT-H/14": {"layers": 32, "width": 1280, "mlp": 5120, "side": 224},
}
LLAMAS = {
    "Vicuna-7B": {"layers": 32, "width": 4096, "mlp": 11008, "tokens": 32000},
    "Vicuna-13B": {"layers": 40, "width": 5120, "mlp": 13824, "tokens": 32000},
    "Llama-3-8B": {"layers": 32, "width": 4096, "mlp": 14336, "tokens": 128256, "values": 1024},
}
SPECIAL = 7
BIASES = [f"region_encoder.exchanges.{n}.0.bias" for n in range(5)]  # a norm follows: theirs have none


def language_settings(kind: str) -> dict[str, int]:
    sizes = LLAMAS[kind]
    heads = sizes["width"] // 128
    return {
        "hidden_size": sizes["width"], "num_hidden_layers": sizes["layers"], "intermediate_size": sizes["mlp"],
        "num_attention_heads": heads, "num_key_value_heads": sizes.get("values", sizes["width"]) // 128,
        "vocab_size": sizes["tokens"] + SPECIAL,
    }  # fmt: skip


def vision_settings(kind: str) -> dict[str, int]:
    sizes = CLIPS[kind]
    return {
        "hidden_size": sizes["width"], "num_hidden_layers": sizes["layers"], "intermediate_size": sizes["mlp"],
        "num_attention_heads": 16, "image_size": sizes["side"], "patch_size": 14,
    }  # fmt: skip


def placed(wanted: Mapping[str, Tensor], shapes: Shapes, rules: tuple[Rule, ...], tokens: int = 0) -> LoadReport:
    growing = dict.fromkeys(("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"), tokens)
    return match(wanted, nowhere("published", shapes), rules, growing=growing)


@pytest.fixture(scope="module")
def glamm_7b() -> Glamm:
    sam = sam_shapes(**SAMS["vit_h"])  # type: ignore[arg-type]
    blueprint = Blueprint(
        language=language_settings("Vicuna-7B"), vision=vision_settings("ViT-L/14-336"),
        grounding=sam_settings(sam, "vit_h"), region=RegionConfig(), lora=None, vocabulary_size=32007,
        feature_layer=-2, max_tokens=1536, centre_crop=True, roi_side_px=224,
    )  # fmt: skip
    return built(blueprint)


def built(blueprint: Blueprint) -> Glamm:
    with torch.device("meta"), no_init_weights():
        model = Glamm(blueprint)
    model.sam.tie_weights()  # which the above leaves out
    return model


def test_a_published_glamm_of_7b_fills_all_but_clip(glamm_7b: Glamm) -> None:
    wanted, shapes = dict(glamm_7b.named_parameters()), glamm_7b_shapes()

    report = placed(wanted, shapes, GLAMM.rules, tokens=32000)

    assert report.unexpected == ()
    assert report.resized == ()
    outside = [name for name in report.missing if not name.startswith("vision_tower.")]
    assert outside == BIASES
    assert len(report.loaded) == len(shapes) == 291 + 4 + 43 + 594 + 4
    assert sum(tensor.numel() for tensor in wanted.values()) == pytest.approx(8.0e9, rel=0.01)


def test_gpt4roi_of_7b_fills_language_projector_and_regions(glamm_7b: Glamm) -> None:
    shapes = llama_shapes(layers=32, width=4096, mlp=11008, tokens=32006) | projector_shapes(vision=1024, language=4096)
    shapes |= {f"model.spi_module.{name}": shape for name, shape in region_shapes(vision=1024, language=4096).items()}

    report = placed(dict(glamm_7b.named_parameters()), shapes, GPT4ROI.rules, tokens=32000)

    assert report.unexpected == ()
    assert report.resized == ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
    lacking = {name.split(".")[0] for name in report.missing if name not in BIASES}
    assert lacking == {"vision_tower", "prompt_projection", "sam"}


@pytest.mark.parametrize("kind", SAMS)
def test_each_sam_says_its_sizes_by_its_shapes_and_is_filled_from_either_layout(kind: str) -> None:
    shapes = sam_shapes(**SAMS[kind])  # type: ignore[arg-type]
    settings = sam_settings(shapes, kind)
    with torch.device("meta"), no_init_weights():
        model = SamModel(SamConfig(**settings))
    model.tie_weights()
    wanted = {f"sam.{name}": tensor for name, tensor in model.named_parameters()}
    wanted |= {f"sam.{name}": tensor for name, tensor in model.named_buffers() if name.endswith("_embedding")}

    original = placed(wanted, shapes, SAM_ORIGINAL.rules)

    assert (original.missing, original.unexpected) == ((), ())
    blocks = SAMS[kind]["layers"]
    assert len(shapes) == 14 * blocks + 146 == len(original.loaded)  # type: ignore[operator]
    vision = settings["vision_config"]
    assert (vision["image_size"], vision["window_size"], vision["num_attention_heads"]) == (
        1024, 14, SAMS[kind]["heads"],
    )  # fmt: skip
    assert vision["global_attn_indexes"] == list(SAMS[kind]["whole"])  # type: ignore[call-overload]
    theirs = {name.removeprefix("sam."): tuple(tensor.shape) for name, tensor in wanted.items()}
    of_hugging_face = placed(wanted, theirs, SAM.rules)
    assert (of_hugging_face.missing, of_hugging_face.unexpected) == ((), ())


@pytest.mark.parametrize("kind", CLIPS)
def test_each_clip_is_filled(kind: str) -> None:
    shapes = clip_shapes(**CLIPS[kind])
    with torch.device("meta"), no_init_weights():
        model = CLIPVisionModel(CLIPVisionConfig(**vision_settings(kind)))
    wanted = {f"vision_tower.{name}": tensor for name, tensor in model.named_parameters()}

    report = placed(wanted, shapes, CLIP.rules)

    assert report.missing == ()
    assert report.unexpected == ("vision_model.embeddings.position_ids",)  # what every model computes
    assert len(report.loaded) == 16 * CLIPS[kind]["layers"] + 7


@pytest.mark.parametrize("kind", LLAMAS)
def test_each_language_model_is_filled_and_gets_rows_for_the_special_tokens(kind: str) -> None:
    shapes = llama_shapes(**LLAMAS[kind])
    with torch.device("meta"), no_init_weights():
        model = LlamaForCausalLM(LlamaConfig(**language_settings(kind)))
    wanted = {f"language_model.{name}": tensor for name, tensor in model.named_parameters()}

    report = placed(wanted, shapes, LLAMA.rules, tokens=LLAMAS[kind]["tokens"])

    assert (report.missing, report.unexpected) == ((), ())
    assert set(report.resized) == {"language_model.model.embed_tokens.weight", "language_model.lm_head.weight"}
    assert len(report.loaded) == 9 * LLAMAS[kind]["layers"] + 3


def test_a_training_checkpoint_of_glamm_needs_a_model_with_its_adapters(glamm_7b: Glamm) -> None:
    """DeepSpeed is given PEFT's inner model: names have `.default.`, and no prefix."""
    shapes = glamm_7b_shapes()
    layer = "model.layers.31.self_attn.v_proj"
    shapes |= {f"{layer}.lora_A.default.weight": (8, 4096), f"{layer}.lora_B.default.weight": (4096, 8)}
    blueprint = replace(glamm_7b.blueprint, lora=LoraConfig())

    with pytest.raises(InputError, match="has adapters that the model lacks"):
        placed(dict(glamm_7b.named_parameters()), shapes, GLAMM.rules, tokens=32000)

    report = placed(dict(built(blueprint).named_parameters()), shapes, GLAMM.rules, tokens=32000)
    assert report.unexpected == ()
    assert f"language_model.{layer}.lora_B.default.weight" in report.loaded
    assert f"language_model.{layer}.base_layer.weight" in report.loaded
