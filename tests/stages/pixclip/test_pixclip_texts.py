"""Texts are embedded once by a language model and read from the tars; the same numbers, and only of the right model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from orchestrator.artifacts import Checkpoint, Shards
from orchestrator.data.reader import ShardSet
from orchestrator.data.stream import Drawn
from orchestrator.errors import InputError, Preempted
from orchestrator.training.config import OptimConfig, TrainConfig
from stages.pixclip.answer import PixClipModel
from stages.pixclip.begin import encoder_of
from stages.pixclip.caching import PixClipTextEmbeddings
from stages.pixclip.config import TEXTS_FACT, EncoderConfig, draw_blueprint
from stages.pixclip.encoder import TextEncoder, digest_of
from stages.pixclip.initial import draw_weights
from stages.pixclip.model import PixClip
from stages.pixclip.stages import PixClipContrastive
from stages.pixclip.texts import MEMBER, kept_embedding
from tests.stages.conversion import context_in
from tests.stages.pixclip_models import TEXTS, TINY, tiny_task, write_language_model
from tests.stages.scenes import scene, write_shards

SCENES = 5
WORDED = replace(TINY, text=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    samples = [scene(number) for number in range(SCENES)]
    return write_shards(tmp_path_factory.mktemp("plain") / "shards", samples, samples_per_shard=2)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, folder: Path, plain: Shards) -> Shards:
    return keep(tmp_path_factory.mktemp("kept"), folder, plain)


def keep(directory: Path, folder: Path, plain: Shards, stop: Callable[[], bool] = lambda: False) -> Shards:
    """Runs the stage in fp32 and commits what it wrote."""
    shards = Shards(directory / "shards")
    config = PixClipTextEmbeddings.Config(encoder=EncoderConfig(path=folder), precision="fp32", samples_at_once=2)
    inputs = PixClipTextEmbeddings.Inputs(shards=plain)
    stage = PixClipTextEmbeddings(config, inputs, PixClipTextEmbeddings.Outputs(shards=shards))
    assert stage.faults() == {}
    facts = dict(stage.run(context_in(directory / "stage", stop=stop))["shards"])
    sha256 = facts.pop("sha256")
    shards.commit("c" * 64, facts=facts, sha256=sha256)
    return shards


def drawn_from(shards: Shards, count: int = 2) -> list[Drawn]:
    with ShardSet(shards.path) as samples:
        found = [samples.read(number) for number in range(count)]
    return [Drawn(source="regions", key=k, members=m, seed=place, place=place) for place, (k, m) in enumerate(found)]


def encoder_in(folder: Path, **more: object) -> TextEncoder:
    return TextEncoder(EncoderConfig(path=folder, **more), precision=torch.float32, device="cpu")  # type: ignore[arg-type]


def test_what_is_kept_is_what_the_language_model_says_of_each_text(folder: Path, kept: Shards) -> None:
    first = drawn_from(kept)[0]
    texts = ("the red bar", "the green bar", "A red bar stands left of a green bar.")

    for text in texts:
        expected = encoder_in(folder).embed([text])[0]
        torch.testing.assert_close(kept_embedding(first, texts, text), expected, atol=1e-5, rtol=1e-4)
    about = kept.facts()[TEXTS_FACT]
    assert (about["size"], about["left_out"], about["digest"]) == (20, 0, digest_of(EncoderConfig(path=folder)))
    assert kept.damage(deep=True) == []


def test_a_batch_reads_the_embeddings_and_no_tokens(kept: Shards) -> None:
    blueprint = draw_blueprint(WORDED, encoder=encoder_of({"regions": kept}))
    task = tiny_task(None, blueprint)
    model = task.build_model()
    draw_weights(model, 1)

    batch = task.collate(drawn_from(kept))
    losses = task.loss(model, batch)

    assert batch.texts.ids_BL is None
    assert batch.texts.embeddings_BE is not None
    assert batch.texts.embeddings_BE.shape == (2, 20)
    assert torch.isfinite(losses.total)


def test_an_attempt_goes_on_after_the_tars_of_the_one_before(
    tmp_path: Path, folder: Path, plain: Shards, kept: Shards
) -> None:
    with pytest.raises(Preempted, match="1 of 3 tars"):
        keep(tmp_path, folder, plain, stop=lambda: True)
    before = (tmp_path / "shards/shard-000000.tar").stat().st_mtime_ns

    shards = keep(tmp_path, folder, plain)

    assert (tmp_path / "shards/shard-000000.tar").stat().st_mtime_ns == before
    assert shards.digest() == kept.digest()


def test_samples_without_embeddings_or_with_broken_ones_are_named(plain: Shards, kept: Shards) -> None:
    whole = drawn_from(kept)[0]
    broken = whole._replace(members={**whole.members, MEMBER: whole.members[MEMBER][:40]})

    with pytest.raises(InputError, match=r"'scene0000' of regions has no texts\.safetensors: let pixclip_text"):
        kept_embedding(drawn_from(plain)[0], ("a",), "a")
    with pytest.raises(InputError, match=r"its texts\.safetensors cannot be read"):
        kept_embedding(broken, ("a",), "a")
    with pytest.raises(InputError, match="3 texts are embedded, it has 1"):
        kept_embedding(whole, ("a",), "a")


def test_shards_of_no_or_of_several_language_models_are_refused(
    tmp_path: Path, folder: Path, plain: Shards, kept: Shards
) -> None:
    other = keep(tmp_path, write_language_model(tmp_path / "other", seed=1), plain)

    assert encoder_of({"a": kept, "b": kept})["path"] == str(folder)
    with pytest.raises(InputError, match=r"inputs\.shards\.b: .* has no embedded texts: let pixclip_text_embeddings"):
        encoder_of({"a": kept, "b": plain})
    with pytest.raises(InputError, match="their texts are of 2 language models"):
        encoder_of({"a": kept, "b": other})


def test_a_text_means_the_same_alone_and_in_company_and_its_template_is_read(folder: Path) -> None:
    encoder = encoder_in(folder)

    together = encoder.embed(["the red bar", TEXTS[0]])

    torch.testing.assert_close(together[:1], encoder.embed(["the red bar"]), atol=1e-5, rtol=1e-4)
    wrapped = encoder_in(folder, template="on the {text}").embed(["red bar"])
    torch.testing.assert_close(wrapped, encoder.embed(["on the red bar"]))
    causal = encoder_in(folder, bidirectional=False).embed(["the red bar"])
    assert not torch.allclose(causal, together[:1], atol=1e-4)
    assert torch.equal(encoder_in(folder, max_tokens=2).embed(["the red bar"]), encoder.embed(["the red"]))


def test_a_model_opens_its_language_model_when_texts_come_and_no_other(
    tmp_path: Path, folder: Path, kept: Shards
) -> None:
    network = PixClip(draw_blueprint(WORDED, encoder=encoder_of({"regions": kept})))
    draw_weights(network, 1)
    model = PixClipModel(network, None)

    read_ND = model.embed_texts(["the red bar", "the blue bar"])

    assert read_ND.shape == (2, 12)
    assert (read_ND**2).sum(axis=1) == pytest.approx([1, 1], rel=1e-5)
    assert network.blueprint.encoder is not None
    network.blueprint.encoder["path"] = str(write_language_model(tmp_path / "other", seed=1))
    with pytest.raises(InputError, match="is not the language model that read the texts"):
        PixClipModel(network, None).embed_texts(["a"])
    network.blueprint.encoder["path"] = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match="which is not there: put it there"):
        PixClipModel(network, None).embed_texts(["a"])


def test_a_folder_that_holds_no_language_model_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(InputError, match="holds no language model that can be read as a LLaMA"):
        encoder_in(tmp_path)
    folder = write_language_model(tmp_path / "half")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: weight for name, weight in weights.items() if "layers.1.mlp.up_proj" not in name},
        folder / "model.safetensors", metadata={"format": "pt"},
    )  # fmt: skip
    with pytest.raises(InputError, match=r"lacks layers\.1\.mlp\.up_proj\.weight: it is no whole LLaMA"):
        encoder_in(folder)


def test_planning_knows_how_long_embeddings_will_be_and_what_is_missing(tmp_path: Path, folder: Path) -> None:
    def stage(path: Path) -> PixClipTextEmbeddings:
        config = PixClipTextEmbeddings.Config(encoder=EncoderConfig(path=path))
        inputs = PixClipTextEmbeddings.Inputs(shards=Shards(tmp_path / "shards"))
        return PixClipTextEmbeddings(config, inputs, PixClipTextEmbeddings.Outputs(shards=Shards(tmp_path / "out")))

    assert "has no config.json" in stage(tmp_path / "none").faults()["config.encoder.path"]
    assert stage(tmp_path / "none").foresee({}) == {}
    foreseen = stage(folder).foresee({"shards": {"samples": 5}})["shards"]
    assert foreseen == {"samples": 5, TEXTS_FACT: {"size": 20, "max_tokens": 512}}
    assert {Path(name).name for name in stage(folder).outside()} >= {"config.json", "model.safetensors"}


def contrastive(model: object = None, **inputs: object) -> PixClipContrastive:
    train = TrainConfig(steps=1, global_batch=1, optim=OptimConfig(lr=1e-3))
    config = PixClipContrastive.Config(train=train, model=model)  # type: ignore[arg-type]
    given = {"shards": {"regions": Shards(Path("a"))}, **inputs}
    outputs = PixClipContrastive.Outputs(model=Checkpoint(Path("out")))
    return PixClipContrastive(config, PixClipContrastive.Inputs(**given), outputs)  # type: ignore[arg-type]


def test_texts_must_come_in_one_form() -> None:
    assert contrastive(WORDED).faults() == {}
    assert "needed by config.model.text" in contrastive(TINY).faults()["inputs.tokenizer"]
    assert "neither given" in contrastive().faults()["config.model"]


def test_the_planner_draws_the_model_from_what_its_inputs_will_say() -> None:
    facts = {"shards.regions": {TEXTS_FACT: {"size": 20, "max_tokens": 512}}}

    blueprint = contrastive(WORDED).blueprint(facts)

    assert blueprint is not None
    assert (blueprint.text_size, blueprint.max_tokens, blueprint.text) == (20, 512, None)
    assert contrastive(WORDED).blueprint({}) is None
    assert contrastive(TINY).blueprint({}) is None
    sized = contrastive(TINY).blueprint({"tokenizer": {"tokens": 300}})
    assert sized is not None
    assert sized.text is not None
    assert contrastive(WORDED).learning() == ("vision_model", "visual_projection", "text_adapter", "logit_scale")
