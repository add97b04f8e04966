"""Published weights: checkpoints of the exact key names fill a whole GLaMM, and compute what they did before."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLora
from peft import get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.errors import InputError
from orchestrator.training.foreign.mapping import fill_from
from orchestrator.training.foreign.source import Held
from stages.adapters import LoraConfig
from stages.glamm.config import GlammConfig, GroundingConfig, RegionConfig, draw_blueprint
from stages.glamm.initial import draw_weights
from stages.glamm.model import Glamm
from stages.glamm.pretrained import fill_from_published
from stages.glamm.published import REGION_RULES
from stages.glamm.region import RegionEncoder
from stages.roi import roi_align
from tests.stages.glamm_models import TINY, vocabulary
from tests.stages.published_names import original_sam, published_glamm, weights_of

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT asks for it

WORDS = vocabulary()
# a decoder of 8 heads, as every SAM has: shapes do not tell
SMALL = replace(TINY, grounding=replace(TINY.grounding, decoder_heads=8))


@pytest.fixture
def theirs() -> Glamm:
    model = Glamm(draw_blueprint(SMALL, WORDS.size))
    draw_weights(model, 7)
    return model


def ours(config: GlammConfig) -> Glamm:
    model = Glamm(draw_blueprint(config, WORDS.size))
    draw_weights(model, 8)
    return model


def equal(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = weights_of(one), weights_of(other)
    return set(mine) == set(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_segment_anythings_own_file_fills_sam_and_says_its_sizes(theirs: Glamm, tmp_path: Path) -> None:
    path = tmp_path / "sam_vit_t.pth"
    torch.save(original_sam(theirs.sam), path)
    config = replace(TINY, grounding=GroundingConfig(path=path))

    model = ours(config)
    report = fill_from_published(model, config).report

    assert config.faults() == {}
    assert list(config.stamps()) == [str(path)]
    settings, wanted = model.sam.config.vision_config, theirs.sam.config.vision_config
    for key in ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_dim",
                "window_size", "global_attn_indexes", "output_channels"):  # fmt: skip
        assert getattr(settings, key) == getattr(wanted, key), key
    assert (report.missing, report.unexpected) == ((), ())
    assert equal(model.sam, theirs.sam)
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    points = torch.tensor([[[[10.0, 12.0]]]])
    sams: list[Any] = [one.eval().sam for one in (model, theirs)]
    with torch.inference_mode():
        first, second = (sam(pixel_values=pixels, input_points=points).pred_masks for sam in sams)
    assert torch.equal(first, second)


def test_the_two_names_of_sams_positions_mean_the_same(theirs: Glamm, tmp_path: Path) -> None:
    theirs.sam.save_pretrained(tmp_path)
    stored = weights_of(theirs.sam)
    stored["prompt_encoder.shared_embedding.positional_embedding"] = stored.pop(
        "shared_image_embedding.positional_embedding"
    )
    save_file(stored, tmp_path / "model.safetensors")
    config = replace(SMALL, grounding=GroundingConfig(path=tmp_path))

    model = ours(config)
    report = fill_from_published(model, config).report

    assert (report.missing, report.unexpected) == ((), ())
    assert equal(model.sam, theirs.sam)


@pytest.mark.parametrize("prefix", ["", "base_model.model."], ids=["merged", "as PEFT's wrapper names them"])
def test_a_published_glamm_fills_everything_but_clip(theirs: Glamm, tmp_path: Path, prefix: str) -> None:
    torch.save({prefix + name: t for name, t in published_glamm(theirs).items()}, tmp_path / "pytorch_model.bin")
    config = replace(SMALL, weights=tmp_path)

    model = ours(config)
    clip, before = weights_of(model.vision_tower), weights_of(model.region_encoder)["exchanges.0.0.bias"]
    report = fill_from_published(model, config).report

    assert report.unexpected == ()
    assert report.missing == ("region_encoder.exchanges.0.0.bias",)  # theirs has none, and ours begins at zero
    assert not before.any()
    for part in ("language_model", "projector", "prompt_projection", "sam"):
        assert equal(getattr(model, part), getattr(theirs, part)), part
    assert all(torch.equal(tensor, clip[name]) for name, tensor in weights_of(model.vision_tower).items())
    first, second = (weights_of(one.region_encoder)["exchanges.0.0.weight"] for one in (model, theirs))
    assert torch.equal(
        first, second[:, [0, 1, 2, 3, 6, 7, 4, 5]]
    )  # their convolution reads its neighbours the other way


def test_the_weights_of_the_whole_win_over_those_of_the_parts(theirs: Glamm, tmp_path: Path) -> None:
    other = ours(SMALL)
    other.language_model.save_pretrained(tmp_path / "vicuna")
    save_file(published_glamm(theirs), tmp_path / "glamm.safetensors")
    config = replace(
        SMALL, language=replace(SMALL.language, path=tmp_path / "vicuna"), weights=tmp_path / "glamm.safetensors"
    )

    model = ours(config)
    fill_from_published(model, config)

    assert equal(model.language_model, theirs.language_model)


@pytest.mark.parametrize("module", ["spi_module", None], ids=["GPT4RoI", "LLaVA"])
def test_gpt4roi_and_llava_fill_what_they_have(theirs: Glamm, tmp_path: Path, module: str | None) -> None:
    stored = {
        name.replace("model.region_encoder.", f"model.{module}."): tensor
        for name, tensor in published_glamm(theirs).items()
        if "grounding_encoder" not in name and "text_hidden" not in name and (module or "region_encoder" not in name)
    }
    clip = {f"model.vision_tower.vision_tower.vision_model.{n}": t for n, t in weights_of(theirs.vision_tower).items()}
    save_file(
        {**stored, **clip, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, tmp_path / "m.safetensors"
    )
    config = replace(SMALL, weights=tmp_path / "m.safetensors")

    model = ours(config)
    report = fill_from_published(model, config).report

    assert report.unexpected == ("model.layers.0.self_attn.rotary_emb.inv_freq",)
    parts = ["language_model", "projector", "vision_tower"]
    assert all(equal(getattr(model, part), getattr(theirs, part)) for part in parts)
    assert equal(model.region_encoder.outputs, theirs.region_encoder.outputs) == (module is not None)


def test_clip_is_found_in_a_file_of_both_its_halves(theirs: Glamm, tmp_path: Path) -> None:
    stored = {f"vision_model.{name}": tensor for name, tensor in weights_of(theirs.vision_tower).items()}
    extra = ("text_model.embeddings.token_embedding.weight", "logit_scale", "visual_projection.weight",
             "text_projection.weight", "vision_model.embeddings.position_ids")  # fmt: skip
    torch.save({**stored, **{name: torch.ones(2) for name in extra}}, tmp_path / "pytorch_model.bin")
    plain = draw_blueprint(SMALL, WORDS.size).vision
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": plain}))
    config = replace(SMALL, vision=replace(SMALL.vision, path=tmp_path))

    model = ours(config)
    report = fill_from_published(model, config).report

    assert sorted(report.unexpected) == sorted(extra)
    assert equal(model.vision_tower, theirs.vision_tower)


def _adapted(theirs: Glamm, folder: Path) -> Any:
    """Saves a language model and an adapter for it; returns the model with the adapter merged."""
    theirs.language_model.save_pretrained(folder / "vicuna")
    lora = PeftLora(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"])
    model: Any = get_peft_model(theirs.language_model, lora)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    model.save_pretrained(folder / "adapter")
    return model.merge_and_unload().eval()


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "merged"])
def test_an_adapter_is_merged_or_kept_and_means_the_same(theirs: Glamm, tmp_path: Path, *, kept: bool) -> None:
    merged = _adapted(theirs, tmp_path)
    language = replace(SMALL.language, path=tmp_path / "vicuna", adapter=tmp_path / "adapter")
    config = replace(SMALL, language=language, lora=LoraConfig(rank=2, alpha=4) if kept else None)

    model = ours(config)
    report = fill_from_published(model, config).report

    assert (config.faults(), report.missing, report.unexpected) == ({}, (), ())
    assert any("lora_A" in name for name in report.loaded) == kept
    ids = torch.arange(20)[None]
    mine: Any = model.eval().language_model
    with torch.inference_mode():
        torch.testing.assert_close(mine(ids).logits, merged(ids).logits, atol=1e-4, rtol=1e-4)


def test_an_adapter_of_another_strength_is_refused(theirs: Glamm, tmp_path: Path) -> None:
    _adapted(theirs, tmp_path)
    language = replace(SMALL.language, path=tmp_path / "vicuna", adapter=tmp_path / "adapter")
    for lora, message in ((LoraConfig(rank=4, alpha=4), "rank 4"), (LoraConfig(rank=2, alpha=8), "alpha 8")):
        config = replace(SMALL, language=language, lora=lora)
        with pytest.raises(InputError, match=f"config.model.lora: .*{message}.* has rank 2 and alpha 4"):
            fill_from_published(ours(config), config)


def test_adapters_of_a_training_checkpoint_need_adapters_in_the_model(theirs: Glamm, tmp_path: Path) -> None:
    """GLaMM's trainer saves the inner model of PEFT, 0.5 of which names base weights as if nothing adapted them."""
    stored = published_glamm(theirs)
    layer = "model.layers.0.self_attn.q_proj"
    adapter = {f"{layer}.lora_A.default.weight": torch.ones(2, 32), f"{layer}.lora_B.default.weight": torch.ones(32, 2)}
    save_file({**stored, **adapter}, tmp_path / "m.safetensors")
    config = replace(SMALL, weights=tmp_path / "m.safetensors")

    with pytest.raises(InputError, match="has adapters that the model lacks"):
        fill_from_published(ours(config), config)
    with_lora = replace(config, lora=LoraConfig(rank=2, alpha=4))
    model = ours(with_lora)
    fill_from_published(model, with_lora)

    named = weights_of(model)
    assert torch.equal(named[f"language_model.{layer}.lora_A.default.weight"], torch.ones(2, 32))
    assert torch.equal(named[f"language_model.{layer}.base_layer.weight"], stored[f"{layer}.weight"])
    with pytest.raises(InputError, match=r"lora_A\.default\.weight has the shape \(2, 32\)"):
        fill_from_published(ours(replace(config, lora=LoraConfig(rank=4))), replace(config, lora=LoraConfig(rank=4)))


def test_what_is_not_there_is_named_when_planning(tmp_path: Path) -> None:
    config = replace(
        SMALL,
        grounding=GroundingConfig(path=tmp_path / "sam.pth"),
        language=replace(SMALL.language, adapter=tmp_path),
        weights=tmp_path / "gone",
    )

    assert set(config.faults()) == {"grounding.path", "language.adapter", "weights"}


class TheirRegionModule(nn.Module):
    """GPT4RoI's region module in few lines, from its description: names and order of channels are theirs."""

    mlvl_fuse: Any
    roi_align: Any

    def __init__(self, width: int, levels: int, rounds: int, side: int, language: int) -> None:
        super().__init__()
        self.mlvl_fuse, self.roi_align = nn.Module(), nn.Module()
        self.mlvl_fuse.input_conv = nn.ModuleList(nn.Conv2d(width + 2, width, 1) for _ in range(levels))
        self.mlvl_fuse.fuse_convs = nn.ModuleList(
            nn.ModuleDict({"conv": nn.Conv2d(width, width, 3, padding=1, bias=False), "gn": nn.GroupNorm(2, width)})
            for _ in range(rounds)
        )
        self.roi_align.pconvs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(levels))
        self.roi_align.pos_embedd = nn.Sequential(
            nn.Linear(4, 6), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, width), nn.ReLU(), nn.LayerNorm(width)
        )
        self.roi_align.updims = nn.Linear(width, language)
        self.roi_align.flatten_linear = nn.Linear(width * side**2, width)
        self.side = side

    def forward(self, maps: list[Tensor], boxes: Tensor) -> Tensor:
        quarter = maps[0].shape[1] // 4
        fuse, roi = self.mlvl_fuse, self.roi_align
        maps = [conv(one) for conv, one in zip(fuse.input_conv, [self.with_coordinates(m) for m in maps], strict=True)]
        for layer in fuse.fuse_convs:
            mixed = []
            for level, own in enumerate(maps):
                coarser, finer = maps[min(level + 1, len(maps) - 1)], maps[max(level - 1, 0)]
                chosen = (coarser[:, 3 * quarter :], finer[:, 2 * quarter : 3 * quarter])
                resized = [
                    functional.interpolate(one, size=own.shape[-2:], mode="bilinear", align_corners=True)
                    for one in chosen
                ]
                mixed.append(torch.cat([own[:, : 2 * quarter], *resized], 1))
            maps = [torch.relu(layer["gn"](layer["conv"](one))) for one in mixed]
        first = torch.zeros(len(boxes), dtype=torch.long)
        cut = [roi_align(one, boxes, first, size=self.side, sampling=2) for one in maps]
        fused = torch.relu(torch.stack([conv(one) for conv, one in zip(roi.pconvs, cut, strict=True)]).sum(0)).flatten(
            1
        )
        result: Tensor = roi.updims(roi.flatten_linear(fused) + roi.pos_embedd(boxes))
        return result

    @staticmethod
    def with_coordinates(map_BCHW: Tensor) -> Tensor:
        height, width = map_BCHW.shape[-2:]
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        return torch.cat([map_BCHW, x.expand(len(map_BCHW), 1, -1, -1), y.expand(len(map_BCHW), 1, -1, -1)], 1)


def test_region_weights_compute_what_they_compute_where_they_come_from() -> None:
    torch.manual_seed(4)
    config = RegionConfig(
        layers=(1, 2, 3), upsample=(4, 2, 1), channels=8, rounds=2, groups=2, roi_size=3, sampling=2, position_size=6
    )
    theirs = TheirRegionModule(8, levels=3, rounds=2, side=3, language=10)
    mine = RegionEncoder(config, vision_size=8, language_size=10)
    for name, tensor in mine.named_parameters():
        if name.endswith("0.bias") and name.startswith("exchanges"):
            nn.init.zeros_(tensor)
    wanted = {f"region_encoder.{name}": tensor for name, tensor in mine.named_parameters()}
    levels = [torch.randn(1, 9, 8) for _ in range(3)]
    boxes = torch.tensor([[0.1, 0.2, 0.6, 0.9], [0.0, 0.0, 1.0, 1.0]])

    report = fill_from(wanted, Held("GPT4RoI", weights_of(theirs)), REGION_RULES)

    assert report.unexpected == ()
    assert {name.split(".")[-1] for name in report.missing} == {"bias"}
    maps = [
        functional.interpolate(
            level.transpose(1, 2).view(1, 8, 3, 3), scale_factor=factor, mode="bilinear", align_corners=True
        )
        for level, factor in zip(levels, config.upsample, strict=True)
    ]
    torch.testing.assert_close(mine(levels, boxes, torch.zeros(2, dtype=torch.long)), theirs(maps, boxes))
