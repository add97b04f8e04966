"""A PixelLLM with EVA-02's tower: asked for, begun with released weights, trained, exported, and asked."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from orchestrator.artifacts import Export
from orchestrator.errors import Fault, InputError
from orchestrator.training.memory.measure import Request, measure
from orchestrator.typed import typed
from stages.eva import EvaVisionModel
from stages.pixelllm.config import Blueprint, PixelLLMConfig, SemanticConfig, draw_blueprint
from stages.pixelllm.family import PixelLLMFamily
from stages.pixelllm.foresight import OPENER, BatchShape
from stages.pixelllm.model import PixelLLM
from stages.pixelllm.pretrained import fill_from_folders
from stages.predict import Asked, predict
from stages.vision import decode_image
from tests.stages.learning import learn_by_heart
from tests.stages.pixelllm_models import (
    drawn,
    narrated,
    pieces,
    tiny_blueprint,
    tiny_checkpoint,
    tiny_config,
    tiny_task,
)
from tests.stages.released_eva import released
from tests.stages.scenes import scene
from tests.toysitting import GROUPING

FAMILY = PixelLLMFamily(device="cpu")
TOLD = ("a red bar", "a blue bar")


def eva(path: Path) -> PixelLLMConfig:
    return replace(tiny_config(tower="eva02"), semantic=replace(tiny_config(tower="eva02").semantic, path=path))


def test_a_checkpoint_that_does_not_say_whose_tower_it_has_has_clips() -> None:
    plain = tiny_blueprint(pieces()).to_plain()
    del plain["semantic_kind"]

    assert Blueprint.from_plain(plain) == tiny_blueprint(pieces())
    assert Blueprint.from_plain(plain).semantic_kind == "clip"


def test_a_strange_kind_is_refused_with_those_that_there_are() -> None:
    faults: list[Fault] = []

    typed(PixelLLMConfig, {"semantic": {"kind": "eva03"}}, "config.model", faults)

    assert [str(fault) for fault in faults] == [
        "config.model.semantic.kind: 'eva03' is not one of the choices; did you mean 'eva02'? allowed: clip, eva02"
    ]


def test_a_blueprint_carries_all_that_an_eva02_is(tmp_path: Path) -> None:
    blueprint = tiny_blueprint(pieces(), tower="eva02")

    again = Blueprint.from_plain(blueprint.to_plain())

    assert again == blueprint
    assert isinstance(PixelLLM(again).semantic, EvaVisionModel)
    assert {key for key in eva(tmp_path / "none.pt").faults() if key.startswith("semantic")} == {"semantic.path"}
    assert not eva(tmp_path).stamps()  # of what is no file there is nothing to tell


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_released_file_fills_it_with_positions_resized(suffix: str, tmp_path: Path) -> None:
    config = eva(tmp_path / f"eva{suffix}")
    stored = released(config.semantic, grid=2)  # wanted are 4 x 4
    stored["text.logits"] = torch.zeros(3)
    path = tmp_path / f"eva{suffix}"
    save_file(stored, path) if suffix == ".safetensors" else torch.save(stored, path)
    model = PixelLLM(draw_blueprint(config, pieces().size))

    loaded = fill_from_folders(model, config)

    ours = dict(model.named_parameters())
    assert loaded == {name for name in ours if name.startswith("semantic.")}
    layer = "semantic.encoder.layers.0."
    for name, theirs in (("self_attn.q_proj.bias", "attn.q_bias"), ("mlp.up_proj.weight", "mlp.w2.weight"),
                         ("self_attn.inner_norm.weight", "attn.inner_attn_ln.weight")):  # fmt: skip
        assert torch.equal(ours[layer + name], stored[f"visual.blocks.0.{theirs}"])
    assert torch.equal(ours["semantic.embeddings.class_embedding"], stored["visual.cls_token"][0, 0])
    table, resized = stored["visual.pos_embed"][0], ours["semantic.embeddings.position_embedding.weight"]
    assert torch.equal(resized[0], table[0])  # the class token's
    torch.testing.assert_close(resized[1:].mean(0), table[1:].mean(0), atol=1e-3, rtol=0)
    assert list(config.stamps()) == [str(path)]


def test_a_file_of_another_form_of_eva02_is_refused(tmp_path: Path) -> None:
    config = eva(tmp_path / "eva.pt")
    torch.save(released(config.semantic, grid=4, inner_norm=False), tmp_path / "eva.pt")

    with pytest.raises(InputError, match=r"lacks 2 weights .*semantic\.encoder\.layers\.0\.self_attn\.inner_norm"):
        fill_from_folders(PixelLLM(draw_blueprint(config, pieces().size)), config)


def test_it_learns_and_its_tower_learns_along() -> None:
    words = pieces()
    task = tiny_task(words, tower="eva02", detector=False)
    model = task.build_model()
    torch.manual_seed(4)
    task.load_weights(model)
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    batch = task.collate([drawn("captions", narrated(number)) for number in range(3)])

    losses = [one["total"] for one in learn_by_heart(task, model, batch, steps=12, lr=5e-3)]

    assert losses[-1] < 0.8 * losses[0]
    semantic = [name for name in before if name.startswith("semantic.")]
    after = dict(model.named_parameters())
    assert [name for name in semantic if torch.equal(after[name], before[name])] == []


def test_its_export_answers_as_its_checkpoint_does(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model", tower="eva02")
    folder = tmp_path / "export"
    folder.mkdir()
    facts = FAMILY.export(checkpoint.path, folder, card="# A card")
    Export(folder).commit("e" * 64, facts={**facts, "family": "pixelllm"})
    (tmp_path / "scene.png").write_bytes(scene(1).image)

    one, other = FAMILY.load(checkpoint.path), FAMILY.load_export(folder)
    answer = predict(folder, tmp_path / "scene.png", Asked(refer=TOLD), output=tmp_path / "drawn.png")

    assert isinstance(other.network.semantic, EvaVisionModel)
    picture = decode_image(scene(1).image)
    for left, right in zip(one.refer_boxes([picture], [TOLD]), other.refer_boxes([picture], [TOLD]), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4)
    assert answer["referred"]
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")


def request(plain: dict[str, Any], *, recomputes: bool) -> Request:
    return Request(
        opener=OPENER, plain=plain, learning=("*",), precision="bf16", recomputes=recomputes, eager=False,
        on_gpu=True, optim=GROUPING,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_the_planner_counts_its_weights_and_what_computing_again_saves() -> None:
    deep = SemanticConfig(kind="eva02", patch_size=2, hidden_size=16, layers=4, heads=2, mlp_size=24)
    blueprint = draw_blueprint(replace(tiny_config(detector=False), semantic=deep), pieces().size)
    shape = BatchShape(rows=1, context=4, text=6, speaks=True, masks=0, boxes=0)
    plain = {"model": blueprint.to_plain(), "batch": asdict(shape)}

    kept, again = (measure(request(plain, recomputes=recomputes)) for recomputes in (False, True))

    own = sum(n for n, part in zip(kept.numels, kept.parts, strict=True) if part == "semantic")
    assert own == sum(parameter.numel() for parameter in PixelLLM(blueprint).semantic.parameters())
    assert again.highest(8, gradients_stay=False) < 0.7 * kept.highest(8, gradients_stay=False)
