"""Pretrained parts: folders of Hugging Face fill a model tensor by tensor, and nothing is lost silently."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModel, LlamaConfig, LlamaForCausalLM, SamModel

from orchestrator.errors import InputError
from stages.glamm.config import SPECIAL_TOKENS, Blueprint, GlammConfig, draw_blueprint
from stages.glamm.model import Glamm
from stages.glamm.pretrained import fill_from_published
from stages.glamm.task import GlammTask, Start, Weights
from tests.stages.glamm_models import TINY, tiny_blueprint, vocabulary

WORDS = vocabulary()
OLD_TOKENS = WORDS.size - len(SPECIAL_TOKENS)


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


def test_what_nobody_needs_is_named_and_half_a_part_is_refused_with_what_it_lacks(
    folders: GlammConfig, tmp_path: Path
) -> None:
    assert folders.vision.path
    tensors = load_file(folders.vision.path / "model.safetensors")
    config = replace(TINY, vision=replace(TINY.vision, path=tmp_path))
    save_file({**tensors, "logit_scale": torch.ones(1)}, tmp_path / "model.safetensors")

    filled = fill_from_published(Glamm(tiny_blueprint(WORDS)), config)

    assert (filled.report.missing, filled.report.unexpected) == ((), ("logit_scale",))
    gone = min(tensors)
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, tmp_path / "model.safetensors")
    model = Glamm(tiny_blueprint(WORDS))
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    with pytest.raises(InputError, match=f"1 weights .* lacking: vision_tower.{gone.removeprefix('vision_model.')}"):
        fill_from_published(model, config)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())


def test_what_became_of_all_weights_is_told_for_the_manifest(folders: GlammConfig) -> None:
    model = Glamm(replace(blueprint_of(folders), lora=tiny_blueprint(WORDS, lora=True).lora))

    facts = fill_from_published(model, folders).facts()

    assert facts["sources"] == {
        str(folders.vision.path / "model.safetensors"): "CLIP (transformers)",  # type: ignore[operator]
        str(folders.grounding.path / "model.safetensors"): "SAM (transformers)",  # type: ignore[operator]
        str(folders.language.path): "LLaMA or Vicuna (transformers)",
    }
    assert facts["resized"] == ["language_model.lm_head.weight", "language_model.model.embed_tokens.weight"]
    assert set(facts["newly_initialised"]) == {"projector", "region_encoder", "prompt_projection", "adapters"}
    assert facts["newly_initialised"]["projector"] == 4
    assert (facts["lacking"], facts["unused"]) == ([], 0)
    assert facts["loaded"] + sum(facts["newly_initialised"].values()) == len(list(model.named_parameters()))


def test_a_checkpoint_says_what_it_began_with(folders: GlammConfig) -> None:
    task = GlammTask(blueprint_of(folders), WORDS, {}, start=Start(folders=folders), weights=Weights(), max_regions=4)
    model = task.build_model()

    task.load_weights(model)

    assert task.describe()["published"] == fill_from_published(task.build_model(), folders).facts()


@pytest.mark.parametrize("rows", [-8, 9], ids=["another tokenizer", "tokens of its own"])
def test_a_language_model_of_another_tokenizer_is_refused_and_tokens_of_its_own_are_left(
    folders: GlammConfig, tmp_path: Path, rows: int
) -> None:
    language = tiny_blueprint(WORDS).language | {"vocab_size": OLD_TOKENS + rows}
    LlamaForCausalLM(LlamaConfig(**language)).save_pretrained(tmp_path)
    config = replace(folders, language=replace(folders.language, path=tmp_path))
    model = Glamm(blueprint_of(config))

    if rows < 0:
        with pytest.raises(InputError, match=f"was trained with {OLD_TOKENS - 8} tokens, this tokenizer has"):
            fill_from_published(model, config)
        return
    fill_from_published(model, config)
    stored = LlamaForCausalLM.from_pretrained(tmp_path).model.embed_tokens.weight
    found = model.language_model.model.embed_tokens.weight
    assert torch.equal(found[:OLD_TOKENS], stored[:OLD_TOKENS])
    torch.testing.assert_close(found[OLD_TOKENS:], stored[:OLD_TOKENS].mean(0).expand(7, -1))


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
