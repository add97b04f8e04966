"""EVA-02's tower computes what timm's does, takes every released name, and is CLIP's equal in training.

`golden/eva02_timm.safetensors` has two small models of timm 1.0.20 with random weights, made by

    Eva(img_size=24, patch_size=4, embed_dim=16, depth=2, num_heads=2, mlp_ratio=4 * 2 / 3, qkv_fused=False,
        swiglu_mlp=True, scale_mlp=True, use_rot_pos_emb=True, global_pool="token", **more).eval()

where `more` is "clip": `num_classes=6, scale_attn_inner=True, ref_feat_shape=(4, 4)`; "pretrained": `num_classes=0,
scale_attn_inner=False, ref_feat_shape=None`. Then every weight was drawn: `randn * 0.3`, vectors `randn * 0.2`, those
of norms 1 more. Beside them lie two pictures, and what `forward_features` and the model itself give.

By their sources, timm and EVA-CLIP agree in all that is compared here: rotary positions of a grid of g patches in steps
of 16 / g, neighbouring channels as pairs, rows before columns. EVA-CLIP pools the class token, timm's pre-trained
models the mean of all: we give the token and the patches, and follow EVA-CLIP. No released file was read.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.errors import InputError
from orchestrator.training.config import EngineConfig, LayerDecay
from orchestrator.training.engine import prepare
from orchestrator.training.foreign.mapping import fill_from, match, rules_of
from orchestrator.training.foreign.source import Held
from orchestrator.training.optim import layer_scales
from stages.eva import EvaSettings, EvaVisionModel, rotary_angles, turned
from stages.eva_weights import ReleasedEva
from stages.fresh import draw_fresh
from stages.pixelllm.config import SemanticConfig
from stages.towers import EvaConfig, eva_settings, tower_faults
from tests.stages.released_eva import released

SMALL = SemanticConfig(kind="eva02", patch_size=4, hidden_size=16, layers=2, heads=2, mlp_size=42)
LARGE = SemanticConfig(kind="eva02", patch_size=14, hidden_size=1024, layers=24, heads=16, mlp_size=2730)
BASE = SemanticConfig(kind="eva02", patch_size=16, hidden_size=768, layers=12, heads=12, mlp_size=2048)
AS_IT_IS = rules_of((r"((?:embeddings|encoder|post_layernorm)\..+)", r"\1"))


def tower(config: SemanticConfig = SMALL, side_px: int = 24, *, normed: bool = True, **eva: Any) -> EvaVisionModel:
    settings = eva_settings(replace(config, eva=EvaConfig(**eva)), image_size=side_px, normed=normed)
    return EvaVisionModel(EvaSettings(**settings))


def drawn(**eva: Any) -> EvaVisionModel:
    model = tower(**eva)
    draw_fresh(model, 3)
    return model


def pictures(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("kind", "eva"),
    [("clip", {"rotary_grid": 4}), ("pretrained", {"inner_norm": False, "rotary_grid": None})],
)
def test_it_gives_what_timms_gives_with_the_same_weights(kind: str, eva: dict[str, Any]) -> None:
    held = load_file(Path(__file__).parent / "golden" / "eva02_timm.safetensors")
    weights = {name.removeprefix(f"{kind}."): one for name, one in held.items() if name.startswith(f"{kind}.")}
    model = tower(**eva).eval()

    report = fill_from(dict(model.named_parameters()), ReleasedEva(Held("timm", weights)), AS_IT_IS)
    out = model(held["pixels"])

    assert report.missing == ()
    torch.testing.assert_close(out.last_hidden_state, held[f"{kind}:features"], atol=1e-5, rtol=0)
    pooled = out.pooler_output
    if kind == "clip":
        pooled = functional.linear(pooled, weights["head.weight"], weights["head.bias"])
    torch.testing.assert_close(pooled, held[f"{kind}:out"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "side_px", "inner_norm"), [(BASE, 224, True), (LARGE, 336, True), (LARGE, 224, False)]
)
def test_every_weight_of_a_released_size_has_its_place(
    config: SemanticConfig,
    side_px: int,
    inner_norm: bool,  # noqa: FBT001 - a case of the test
) -> None:
    with torch.device("meta"):
        model = tower(config, side_px, inner_norm=inner_norm)
    stored = _without_content(config, grid=side_px // config.patch_size, inner_norm=inner_norm)

    report = match(dict(model.named_parameters()), ReleasedEva(Held("released", stored)), AS_IT_IS)

    assert report.missing == ()
    assert {name.rsplit(".", 2)[-2] for name in report.unexpected} == {"rope", "visual_projection"}


def _without_content(config: SemanticConfig, *, grid: int, inner_norm: bool) -> dict[str, Tensor]:
    small = replace(config, hidden_size=8, mlp_size=10, patch_size=2, heads=1)
    names = released(small, grid=2, inner_norm=inner_norm)
    large = {8: config.hidden_size, 10: config.mlp_size, 2: config.patch_size, 5: 1 + grid**2}
    return {
        name: torch.empty([large.get(size, size) for size in one.shape], device="meta") for name, one in names.items()
    }


def test_attention_knows_how_far_patches_are_apart_and_not_where_they_are() -> None:
    angles_NP = rotary_angles(6, 8, grid=None, device=torch.device("cpu"))
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(2))
    rows = [turned(one.expand(-1, -1, len(angles_NP), -1), angles_NP.cos(), angles_NP.sin()) for one in (query, key)]

    scores = (rows[0] @ rows[1].transpose(-1, -2))[0, 0, 1:, 1:].reshape(6, 6, 6, 6)  # row, column; row, column

    torch.testing.assert_close(scores[0, 0, 2, 1], scores[3, 4, 5, 5], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(scores[0, 0, 2, 1], scores[0, 0, 1, 2], atol=1e-3)  # rows are not columns
    assert torch.equal(angles_NP[0], torch.zeros(4))  # the class token is nowhere


def test_a_finer_grid_is_measured_as_the_one_that_was_trained_on() -> None:
    coarse, fine = (rotary_angles(side, 8, grid=16, device=torch.device("cpu"))[1:] for side in (4, 8))

    torch.testing.assert_close(fine.view(8, 8, -1)[::2, ::2], coarse.view(4, 4, -1))


def gradients(model: nn.Module) -> list[Tensor]:
    torch.manual_seed(7)
    model(pictures(4)).last_hidden_state.square().sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def test_activations_that_are_computed_again_give_the_same_gradients_layers_skipped_and_all() -> None:
    kept, again, whole = drawn(drop_path=0.5).train(), drawn(drop_path=0.5).train(), drawn().train()
    prepare(again, EngineConfig(activation_checkpointing=True))

    expected, found, other = gradients(kept), gradients(again), gradients(whole)

    assert len(found) == len(list(kept.parameters()))
    for one, two in zip(expected, found, strict=True):
        torch.testing.assert_close(one, two)
    assert not torch.allclose(expected[-1], other[-1])


def test_layers_are_skipped_for_some_images_in_training_alone() -> None:
    model = drawn(drop_path=0.5)
    last = model.encoder.layers[1]
    states, turn = torch.randn(400, 3, 16), (torch.ones(3, 4), torch.zeros(3, 4))
    torch.manual_seed(0)

    added = last.self_attn(last.layer_norm1(states), *turn)
    kept = last._kept(added)

    assert torch.equal(last.eval()._kept(added), added)
    share = (kept / added).detach().round(decimals=3)
    assert set(share.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(share, share[:, :1, :1].expand_as(share))  # all of an image, or nothing
    assert share.mean().item() == pytest.approx(1.0, abs=0.15)


def test_attention_by_whole_tables_gives_the_same_and_a_strange_way_is_refused() -> None:
    model = drawn().eval()
    before = model(pictures()).pooler_output

    prepare(model, EngineConfig(attention="eager"))

    torch.testing.assert_close(model(pictures()).pooler_output, before, atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match="has no flash_attention_2: EVA-02 has sdpa and eager"):
        prepare(model, EngineConfig(attention="flash_attention_2"))


def test_in_half_precision_it_is_close_and_on_no_device_it_has_shapes() -> None:
    model = drawn().eval()
    before = model(pictures()).last_hidden_state

    half = model.to(torch.bfloat16)(pictures()).last_hidden_state
    shapes = model.to("meta")(pictures().to("meta"))

    assert half.dtype == torch.bfloat16
    assert (half.float() - before).abs().mean() < 0.03 < before.abs().mean()
    assert shapes.last_hidden_state.shape == (2, 37, 16)
    assert shapes.pooler_output.shape == (2, 16)


def test_states_before_the_last_norm_and_after_it_are_one_norm_apart() -> None:
    after, before = drawn().eval(), tower(normed=False).eval()
    before.load_state_dict(after.state_dict())

    one, other = after(pictures()), before(pictures())

    torch.testing.assert_close(one.last_hidden_state, before.post_layernorm(other.last_hidden_state))
    torch.testing.assert_close(one.pooler_output, other.pooler_output)


def test_decay_by_layers_finds_its_layers_as_it_finds_clips() -> None:
    names = [f"semantic.{name}" for name, _ in drawn().named_parameters()]

    scales = layer_scales(
        names, LayerDecay(factor=0.8, stack="semantic.encoder.layers", below=("semantic.embeddings",))
    )

    assert scales["semantic.encoder.layers.1.mlp.gate_proj.weight"] == 1.0
    assert scales["semantic.encoder.layers.0.self_attn.q_proj.bias"] == pytest.approx(0.8)
    assert scales["semantic.embeddings.class_embedding"] == pytest.approx(0.64)
    assert scales["semantic.post_layernorm.weight"] == 1.0


def test_what_an_eva02_cannot_be_is_named(tmp_path: Path) -> None:
    odd = replace(SMALL, path=tmp_path / "none.pt", heads=3)
    clip = replace(SMALL, kind="clip", eva=EvaConfig())

    assert tower_faults(odd) == {
        "path": f"{tmp_path / 'none.pt'} is not there: give a file with the weights of an EVA-02",
        "heads": "4 x heads (12) must divide hidden_size, which is 16: rotary positions turn pairs of channels, by rows"
        " and by columns",
    }
    assert tower_faults(clip) == {"eva": "is of kind eva02 alone, and kind is clip; say null"}
    with pytest.raises(ValueError, match=r"drop_path must lie in \[0, 1\), not 1"):
        EvaConfig(drop_path=1)
