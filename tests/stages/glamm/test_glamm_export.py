"""An export says what its checkpoint says, loads in other people's code, and a broken one is refused by name."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from orchestrator.artifacts import Checkpoint, Export
from orchestrator.errors import InputError
from orchestrator.training import elastic, writing
from orchestrator.training.weights import load_weights
from orchestrator.world import World
from stages.blueprints import TOKENIZER
from stages.exporting import write_weights
from stages.glamm.answer import Row
from stages.glamm.begin import read_blueprint
from stages.glamm.family import GlammFamily
from stages.glamm.model import Glamm
from stages.glamm.pretrained import fill_from_published
from stages.glamm.tokenizer import Vocabulary
from stages.predict import Asked, predict
from tests.stages.glamm_models import TINY, picture, tiny_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT asks for it

FAMILY = GlammFamily()
INDEX = "model.safetensors.index.json"
PICTURES = [picture(1), picture(2, (30, 50)), picture(3, (64, 20))]
BOXES = [[(0, 0, 20, 20)], [(3, 3, 9, 40), (0, 0, 30, 50)], []]
LAYER = "language_model.model.layers.1.self_attn.v_proj"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model", lora=True)


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("export") / "model"
    directory.mkdir()
    facts = FAMILY.export(checkpoint.path, directory, card="# A tiny one\n")
    Export(directory).commit("e" * 64, facts={**facts, "family": "glamm"})
    return directory


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(directory.glob("*.safetensors")) for name, t in load_file(path).items()}


def test_an_export_says_what_its_checkpoint_says(checkpoint: Checkpoint, exported: Path) -> None:
    before, after = FAMILY.load(checkpoint.path), FAMILY.load_export(exported)

    first, second = (model.ground(PICTURES, max_new_tokens=60) for model in (before, after))

    assert [said.caption for said in first] == [said.caption for said in second]
    assert len({said.caption for said in first}) == 3
    for one, other in zip(first, second, strict=True):
        assert [(p.phrase, p.span) for p in one.phrases] == [(p.phrase, p.span) for p in other.phrases]
        assert all((p.mask_HW == q.mask_HW).all() for p, q in zip(one.phrases, other.phrases, strict=True))
    assert before.describe_regions(PICTURES, BOXES, max_new_tokens=20) == after.describe_regions(
        PICTURES, BOXES, max_new_tokens=20
    )


def test_an_export_points_where_its_checkpoint_points(checkpoint: Checkpoint, exported: Path) -> None:
    before, after = FAMILY.load(checkpoint.path), FAMILY.load_export(exported)
    rows = [Row(image=image) for image in PICTURES]

    first, second = (model.write("Mark it.", rows, max_new_tokens=60) for model in (before, after))

    assert [one.ids for one in first] == [one.ids for one in second]
    counts = [one.ids.count(before.vocabulary.seg_id) for one in first]
    assert sum(counts) > 2
    for image, count, one, other in zip(PICTURES, counts, first, second, strict=True):
        assert torch.allclose(one.hidden_TD, other.hidden_TD, atol=1e-5)
        if count:
            pointed = before.point(image, one, range(count)), after.point(image, other, range(count))
            assert torch.allclose(*pointed, rtol=1e-5, atol=1e-5)


def test_adapters_are_merged_exactly(checkpoint: Checkpoint, exported: Path) -> None:
    stored, merged = load_weights(checkpoint.path), tensors_of(exported)

    up, down = stored[f"{LAYER}.lora_B.default.weight"].double(), stored[f"{LAYER}.lora_A.default.weight"].double()
    base = stored[f"{LAYER}.base_layer.weight"].double()
    assert torch.equal(merged[f"{LAYER}.weight"], (base + 2.0 * up @ down).float())  # alpha / rank = 4 / 2
    assert (merged[f"{LAYER}.weight"] - base).abs().max() > 0.01
    assert not [name for name in merged if "lora" in name or "base_layer" in name]
    states = []
    for model in (FAMILY.load(checkpoint.path), FAMILY.load_export(exported)):
        model.network.double()
        words = torch.arange(50)[None]
        with torch.inference_mode():
            states.append(model.network.language_model.model(words).last_hidden_state)
    assert torch.allclose(*states, atol=1e-6)


def test_frozen_weights_keep_their_precision_and_what_was_adapted_gets_the_better_one(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "model", lora=True)
    halved = {
        name: tensor.bfloat16() if "base_layer" in name or name.startswith("sam.vision_encoder") else tensor
        for name, tensor in load_weights(source.path).items()
    }
    shutil.rmtree(source.path / "weights")
    writing.write(source.path / "weights", [elastic.whole(*item) for item in halved.items()], World.alone())
    (tmp_path / "export").mkdir()

    FAMILY.export(source.path, tmp_path / "export", card="")

    merged = tensors_of(tmp_path / "export")
    assert merged[f"{LAYER}.weight"].dtype == torch.float32
    assert merged["sam.vision_encoder.patch_embed.projection.weight"].dtype == torch.bfloat16
    assert FAMILY.load_export(tmp_path / "export").network.sam.dtype == torch.float32


def test_shards_are_of_bounded_size_and_the_index_names_them_all(checkpoint: Checkpoint, tmp_path: Path) -> None:
    FAMILY.export(checkpoint.path, tmp_path, card="")
    for path in (*tmp_path.glob("*.safetensors"), tmp_path / INDEX):
        path.unlink()

    facts = write_weights(checkpoint.path, tmp_path, read_blueprint(checkpoint).lora, max_shard_bytes=60_000)

    files = sorted(tmp_path.glob("*.safetensors"))
    index = json.loads((tmp_path / INDEX).read_text())
    assert len(files) == facts["shards"] > 3
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    for path in files:
        held = load_file(path)
        assert len(held) == 1 or sum(t.nbytes for t in held.values()) <= 60_000
        assert {name for name, file in index["weight_map"].items() if file == path.name} == set(held)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors_of(tmp_path).values())
    assert facts["parameters"] == sum(t.numel() for t in tensors_of(tmp_path).values())
    said = FAMILY.load_export(tmp_path).ground(PICTURES[:1], max_new_tokens=20)
    assert said[0].caption == FAMILY.load(checkpoint.path).ground(PICTURES[:1], max_new_tokens=20)[0].caption


def test_transformers_loads_the_language_model_and_the_tokenizer(checkpoint: Checkpoint, exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("glamm", ["Glamm"])

    part = {
        name.removeprefix("language_model."): tensor
        for name, tensor in tensors_of(exported).items()
        if name.startswith("language_model.")
    }
    language = LlamaForCausalLM(LlamaConfig(**config["blueprint"]["language"]))
    problems = language.load_state_dict(part, strict=False)
    tokenizer = AutoTokenizer.from_pretrained(exported)

    assert (problems.missing_keys, problems.unexpected_keys) == ([], [])
    text = " A red bar <p> the é </p> [SEG]</s>"
    words = Vocabulary.read(checkpoint.path / TOKENIZER)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == words.encode(text)[0]
    ids = torch.arange(40)[None]
    ours = FAMILY.load_export(exported).network.language_model
    with torch.inference_mode():
        assert torch.allclose(language.eval()(ids).logits, ours(ids).logits, atol=1e-6)


@pytest.fixture(scope="module")
def adapter(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("adapter") / "model"
    directory.mkdir()
    facts = FAMILY.export(checkpoint.path, directory, card="# An adapter\n", form="adapter")
    assert facts["form"] == "adapter"
    return directory


def base_of(checkpoint: Checkpoint, tokens: int) -> LlamaForCausalLM:
    """Makes the language model that was adapted, with so many of its tokens."""
    settings = read_blueprint(checkpoint).language
    base = LlamaForCausalLM(LlamaConfig(**settings))
    stored = {
        name.removeprefix("language_model.").replace(".base_layer.", "."): tensor
        for name, tensor in load_weights(checkpoint.path).items()
        if name.startswith("language_model.") and ".lora_" not in name
    }
    base.load_state_dict(stored)
    base.resize_token_embeddings(tokens)
    return base


def test_peft_loads_the_adapter_alone_and_it_computes_what_the_merged_export_does(
    checkpoint: Checkpoint, exported: Path, adapter: Path
) -> None:
    tokens = len(AutoTokenizer.from_pretrained(adapter))
    base = base_of(checkpoint, tokens)

    adapted = PeftModel.from_pretrained(base, adapter)

    words = torch.arange(60)[None]
    merged = FAMILY.load_export(exported).network.language_model
    with torch.inference_mode():
        torch.testing.assert_close(adapted(words).logits, merged(words).logits, atol=1e-4, rtol=1e-4)
    assert sorted(path.name for path in adapter.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    held = load_file(adapter / "adapter_model.safetensors")
    assert len(held) == 2 * 2 * 2 + 2  # two layers, queries and values, both halves; embeddings and head
    assert "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight" in held


def test_an_adapter_comes_back_into_a_model_that_begins_with_its_base(
    checkpoint: Checkpoint, exported: Path, adapter: Path, tmp_path: Path
) -> None:
    blueprint = read_blueprint(checkpoint)
    base_of(checkpoint, blueprint.vocabulary_size - 7).save_pretrained(tmp_path)  # as it was before it had our tokens
    language = replace(TINY.language, path=tmp_path, adapter=adapter)
    model = Glamm(replace(blueprint, lora=None))

    filled = fill_from_published(model, replace(TINY, language=language))

    assert filled.report.resized == ()
    ours, merged = dict(model.named_parameters()), tensors_of(exported)
    language_names = [name for name in merged if name.startswith("language_model.")]
    assert all(torch.equal(ours[name], merged[name]) for name in language_names)


def test_a_model_without_adapters_has_none_to_export_alone(tmp_path: Path) -> None:
    plain = tiny_checkpoint(tmp_path / "model")

    with pytest.raises(InputError, match="has no adapters to export alone; allowed: merged"):
        FAMILY.export(plain.path, tmp_path, card="", form="adapter")


def test_an_export_holds_its_card_and_no_pickle(exported: Path) -> None:
    assert (exported / "README.md").read_text() == "# A tiny one\n"
    assert {path.suffix for path in exported.iterdir()} == {".json", ".md", ".safetensors"}
    prepared = json.loads((exported / "preprocessor_config.json").read_text())
    assert (prepared["vision_tower"]["size"], prepared["sam"]["size"]) == (
        {"height": 16, "width": 16},
        {"longest_edge": 32},
    )


def test_predict_answers_from_the_folder_alone(exported: Path, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(exported, tmp_path / "moved")
    PICTURES[1].save(tmp_path / "image.png")

    found = predict(elsewhere, tmp_path / "image.png", Asked(boxes=((0, 0, 9, 9),)), tmp_path / "drawn.png")

    assert len(found["regions"]) == 1
    assert (tmp_path / "drawn.png").is_file()


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _cut_weights(folder: Path) -> None:
    path = folder / "model-00001-of-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _lose_tensor(folder: Path) -> None:
    path = folder / "model-00001-of-00001.safetensors"
    save_file({n: t for n, t in load_file(path).items() if n != f"{LAYER}.weight"}, path)


def _bend_tensor(folder: Path) -> None:
    path = folder / "model-00001-of-00001.safetensors"
    save_file({**load_file(path), f"{LAYER}.weight": torch.zeros(2, 2)}, path)


def _edit(name: str, change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        plain = json.loads((folder / name).read_text())
        change(plain)
        (folder / name).write_text(json.dumps(plain))

    return edit


def _set_file(plain: dict[str, object]) -> None:
    plain["weight_map"] = {"x": "../../etc/passwd"}


def _forget_names(plain: dict[str, object]) -> None:
    plain["weight_map"] = {"projector.0.bias": "model-00001-of-00001.safetensors"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without("config.json"), "there is no config.json in it"),
        (_without(INDEX), f"there is no {INDEX} in it"),
        (_without("tokenizer.json"), "there is no tokenizer.json in it"),
        (_without("model-00001-of-00001.safetensors"), "there is no model-00001-of-00001.safetensors in it"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json holds no JSON object"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "the tokenizer cannot be read"),
        (_edit("config.json", lambda plain: plain.update(model_type="llama")), "model_type 'llama', needed"),
        (_edit("config.json", lambda plain: plain.update(blueprint={"region": {}})), "its blueprint cannot be read"),
        (_edit(INDEX, lambda plain: plain.pop("weight_map")), "has no weight_map"),
        (_edit(INDEX, _set_file), "names the file '../../etc/passwd'"),
        (_edit(INDEX, _forget_names), "lacks language_model"),
        (_cut_weights, "safetensors cannot be read"),
        (_lose_tensor, f"lacks {LAYER}.weight"),
        (_bend_tensor, r"has the shape \(2, 2\), needed is \(32, 32\)"),
    ],
)
def test_a_broken_or_foreign_folder_is_refused_with_what_it_lacks(
    exported: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = shutil.copytree(exported, tmp_path / "broken")
    damage(folder)

    with pytest.raises(InputError, match=message):
        FAMILY.load_export(folder)


def test_a_folder_that_is_not_there_is_no_export(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        FAMILY.load_export(tmp_path / "nowhere")
