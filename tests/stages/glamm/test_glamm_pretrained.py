"""Pretrained parts: folders of Hugging Face fill a model tensor by tensor, and nothing is lost silently."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionModel, LlamaForCausalLM, SamModel

from orchestrator.errors import InputError
from stages.glamm.config import Blueprint, GlammConfig, draw_blueprint
from stages.glamm.model import Glamm
from stages.glamm.pretrained import fill_from_published
from tests.stages.glamm_models import TINY, tiny_blueprint, vocabulary

WORDS = vocabulary()
OLD_TOKENS = 50


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> GlammConfig:
    """Saves the three parts of a small model, as their publishers would."""
    root = tmp_path_factory.mktemp("parts")
    torch.manual_seed(3)
    parts = Glamm(replace(tiny_blueprint(WORDS), language=tiny_blueprint(WORDS).language | {"vocab_size": OLD_TOKENS}))
    parts.language_model.save_pretrained(root / "llm", max_shard_size="20KB")
    parts.vision_tower.save_pretrained(root / "clip")
    parts.sam.save_pretrained(root / "sam")
    return replace(
        TINY,
        language=replace(TINY.language, path=root / "llm"),
        vision=replace(TINY.vision, path=root / "clip"),
        grounding=replace(TINY.grounding, path=root / "sam"),
    )


def blueprint_of(config: GlammConfig) -> Blueprint:
    return draw_blueprint(config, WORDS.size)


def test_sizes_come_from_the_folders(folders: GlammConfig) -> None:
    other = replace(folders, language=replace(folders.language, hidden_size=64, layers=9))

    assert Glamm(blueprint_of(other)).language_model.config.num_hidden_layers == 2


def test_every_part_is_filled_and_new_tokens_begin_at_the_mean_of_the_old(folders: GlammConfig) -> None:
    model = Glamm(blueprint_of(folders))

    filled = fill_from_published(model, folders).report

    assert folders.language.path
    assert folders.vision.path
    assert folders.grounding.path
    language = LlamaForCausalLM.from_pretrained(folders.language.path)
    vision = CLIPVisionModel.from_pretrained(folders.vision.path)
    sam = SamModel.from_pretrained(folders.grounding.path)
    rows = model.language_model.model.embed_tokens.weight
    old = language.model.embed_tokens.weight
    assert torch.equal(rows[:OLD_TOKENS], old)
    torch.testing.assert_close(rows[-1], old.mean(0))
    assert torch.equal(
        model.language_model.model.layers[1].mlp.up_proj.weight, language.model.layers[1].mlp.up_proj.weight
    )
    assert torch.equal(model.vision_tower.embeddings.patch_embedding.weight, vision.embeddings.patch_embedding.weight)
    assert torch.equal(model.sam.mask_decoder.iou_token.weight, sam.mask_decoder.iou_token.weight)
    assert (filled.missing, filled.unexpected) == ((), ())
    assert not any(name.startswith(("projector", "region_encoder", "prompt_projection")) for name in filled.loaded)


def test_adapters_are_added_beside_the_pretrained_weights(folders: GlammConfig) -> None:
    blueprint = replace(blueprint_of(folders), lora=tiny_blueprint(WORDS, lora=True).lora)
    model = Glamm(blueprint)

    filled = fill_from_published(model, folders).report

    name = "language_model.model.layers.0.self_attn.q_proj.base_layer.weight"
    assert folders.language.path
    stored = LlamaForCausalLM.from_pretrained(folders.language.path).model.layers[0].self_attn.q_proj.weight
    assert torch.equal(dict(model.named_parameters())[name], stored)
    assert filled.missing == ()


def test_what_a_folder_lacks_and_what_nobody_needs_is_named(folders: GlammConfig, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    assert folders.vision.path
    tensors = load_file(folders.vision.path / "model.safetensors")
    gone = min(tensors)
    del tensors[gone]
    save_file({**tensors, "logit_scale": torch.ones(1)}, tmp_path / "model.safetensors")
    config = replace(TINY, vision=replace(TINY.vision, path=tmp_path))

    filled = fill_from_published(Glamm(tiny_blueprint(WORDS)), config)

    assert filled.missing == (f"vision_tower.{gone.removeprefix('vision_model.')}",)
    assert filled.unexpected == ("logit_scale",)


def test_weights_of_another_shape_are_refused_with_both_shapes(folders: GlammConfig) -> None:
    blueprint = tiny_blueprint(WORDS)
    narrow = replace(blueprint, vision=blueprint.vision | {"hidden_size": 8})

    with pytest.raises(InputError, match=r"has the shape .*the model needs"):
        fill_from_published(Glamm(narrow), replace(TINY, vision=folders.vision))


def test_a_pickle_that_asks_for_more_than_tensors_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")

    with pytest.raises(InputError, match=r"pytorch_model\.bin is not opened"):
        fill_from_published(Glamm(tiny_blueprint(WORDS)), replace(TINY, vision=replace(TINY.vision, path=tmp_path)))


def test_an_index_cannot_name_files_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../other.safetensors"}}')

    with pytest.raises(InputError, match="outside"):
        fill_from_published(Glamm(tiny_blueprint(WORDS)), replace(TINY, vision=replace(TINY.vision, path=tmp_path)))
