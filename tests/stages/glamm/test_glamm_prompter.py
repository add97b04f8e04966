"""A GLaMM that takes a CLOC as its image encoder and the CLOC's Prompter as its region encoder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from orchestrator.artifacts import Checkpoint, Export, Shards, Tokenizer
from orchestrator.errors import InputError
from orchestrator.plan import Catalog, plan_recipe
from orchestrator.training.config import OptimConfig, TrainConfig
from stages import FAMILIES, STAGES
from stages.cloc.family import ClocFamily
from stages.exporting import PREPROCESSOR
from stages.glamm.begin import begin_fresh
from stages.glamm.collate import Collator, Example
from stages.glamm.config import Blueprint, GlammConfig, VisionConfig, draw_blueprint
from stages.glamm.family import GlammFamily
from stages.glamm.initial import draw_weights
from stages.glamm.model import Glamm
from stages.glamm.pretrained import fill_from_published
from stages.glamm.prompts import Conversation, make_prompt
from stages.glamm.region import PromptedRegions
from stages.glamm.stages import RegionPretraining, WordPretraining
from stages.glamm.task import Weights, glamm_loss
from tests.stages import cloc_models
from tests.stages.glamm_models import TINY, picture, vocabulary, write_checkpoint

pytestmark = pytest.mark.needs("torch")

PROMPTED = replace(TINY, region_encoder="prompter")
WORDS = vocabulary()
PICTURES = [picture(1, (50, 30)), picture(2, (20, 44))]
BOXES = [[(3.0, 3.0, 9.0, 28.0), (0.0, 0.0, 50.0, 30.0)], [(5.0, 10.0, 18.0, 40.0)]]


@pytest.fixture(scope="module")
def cloc(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return cloc_models.tiny_checkpoint(tmp_path_factory.mktemp("cloc") / "model")


@pytest.fixture(scope="module")
def encoder(cloc: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Exports the CLOC, with a manifest as the stage writes it."""
    export = Export(tmp_path_factory.mktemp("encoder") / "model")
    export.path.mkdir()
    facts = ClocFamily(device="cpu").export(cloc.path, export.path, card="")
    export.commit("e" * 64, facts={**facts, "family": "cloc", "model": cloc.facts()["model"]})
    return export


def seeing(encoder: Export, model: GlammConfig = PROMPTED) -> GlammConfig:
    """Names the export as a recipe may."""
    return replace(model, vision=VisionConfig(path=encoder.path))


@pytest.fixture(scope="module")
def glamm(encoder: Export) -> Glamm:
    config = seeing(encoder)
    model = Glamm(draw_blueprint(config, WORDS.size))
    draw_weights(model, 3, keep=fill_from_published(model, config).report.loaded)
    return model


def test_regions_are_embedded_as_the_cloc_embeds_them(glamm: Glamm, cloc: Checkpoint) -> None:
    """Whatever the shape of the picture: both pad it, and both count boxes in units of the square."""
    collator, regions = Collator(glamm.blueprint, WORDS), glamm.region_encoder
    assert isinstance(regions, PromptedRegions)
    pixels_BCHW = torch.stack([collator.clip_pixels(image) for image in PICTURES])
    boxes_R4 = torch.cat([collator.boxes(boxes, image) for boxes, image in zip(BOXES, PICTURES, strict=True)])

    with torch.no_grad():
        (tokens_BND,) = glamm.see(glamm.encode(pixels_BCHW))[1]
        found_RD = regions.prompter.by_boxes(tokens_BND[[0, 0, 1]], boxes_R4[:, None])[:, 0]

    wanted = ClocFamily(device="cpu").load(cloc.path).embed_regions(PICTURES, BOXES, [[None] * 2, [None]])
    assert np.allclose(found_RD.numpy(), np.concatenate(wanted), atol=1e-5)
    assert not torch.allclose(found_RD[0], found_RD[1], atol=1e-3)


def test_only_what_a_cloc_has_comes_from_it(encoder: Export) -> None:
    config = seeing(encoder)
    filled = fill_from_published(Glamm(draw_blueprint(config, WORDS.size)), config)

    came = {name.partition(".")[0] for name in filled.report.loaded}
    assert came == {"vision_tower", "region_encoder"}
    assert {name for name in filled.fresh if name.startswith("region")} == {
        "region_encoder.project.weight", "region_encoder.project.bias",
    }  # fmt: skip
    assert set(filled.sources.values()) == {"CLOC (orch)"}


def test_an_encoder_with_half_a_prompter_is_refused(encoder: Export, tmp_path: Path) -> None:
    (weights,) = encoder.path.glob("*.safetensors")
    some = {name: tensor for name, tensor in load_file(weights).items() if name != "prompter.norm.bias"}
    save_file(some, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((encoder.path / "config.json").read_bytes())
    config = replace(PROMPTED, vision=VisionConfig(path=tmp_path))

    with pytest.raises(InputError, match=r"lacking: region_encoder\.prompter\.norm\.bias"):
        fill_from_published(Glamm(draw_blueprint(config, WORDS.size)), config)


@pytest.mark.parametrize("boxes", [BOXES[0], []])
def test_a_step_reaches_every_weight_with_boxes_and_without(glamm: Glamm, boxes: list[tuple[float, ...]]) -> None:
    """Under ZeRO-3 a rank whose batch has no boxes must ask for the same weights as the others."""
    asked = " and ".join("<bbox>" for _ in boxes) or "anything"
    prompt = make_prompt(f"What is in {asked}?")
    told = Conversation(
        text=f"{prompt} A red bar.", answers=((len(prompt), len(prompt) + 11),), boxes_xyxy_px=tuple(boxes)
    )
    batch = Collator(glamm.blueprint, WORDS).batch([Example(image=PICTURES[0], conversation=told)])
    glamm.zero_grad()

    glamm_loss(glamm, batch, Weights(), canvas=glamm.canvas, vocabulary=WORDS.size).total.backward()

    slopes = {name: p.grad for name, p in glamm.region_encoder.named_parameters()}
    assert all(slope is not None for slope in slopes.values())
    assert any(bool(slope.any()) for slope in slopes.values() if slope is not None) == bool(boxes)


def test_a_checkpoint_and_its_export_say_the_same(glamm: Glamm, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model", glamm, WORDS)
    (tmp_path / "export").mkdir()
    family = GlammFamily(device="cpu")

    family.export(checkpoint.path, tmp_path / "export", card="")

    before, after = family.load(checkpoint.path), family.load_export(tmp_path / "export")
    assert before.network.blueprint.prompter == after.network.blueprint.prompter == glamm.blueprint.prompter
    said = [model.describe_regions(PICTURES, BOXES, max_new_tokens=6) for model in (before, after)]
    assert said[0] == said[1]
    assert '"pad_size"' in (tmp_path / "export" / PREPROCESSOR).read_text(encoding="utf-8").partition('"sam"')[0]


def test_a_checkpoint_from_before_there_were_prompters_is_read() -> None:
    plain = draw_blueprint(TINY, WORDS.size).to_plain()
    del plain["prompter"]

    assert Blueprint.from_plain(plain) == draw_blueprint(TINY, WORDS.size)


TRAIN = TrainConfig(steps=1, global_batch=1, optim=OptimConfig(lr=1e-3))


def stage(model: GlammConfig | None = PROMPTED, /, **inputs: Any) -> RegionPretraining:
    """Makes a stage that is not run."""
    given = RegionPretraining.Inputs(shards={"regions": Shards(Path("a"))}, **inputs)
    config = RegionPretraining.Config(train=TRAIN, model=model)
    return RegionPretraining(config, given, RegionPretraining.Outputs(model=Checkpoint(Path("run/region/model"))))


TOKENIZER = Tokenizer(Path("tokenizer"))


def test_a_prompter_that_nobody_brings_is_a_fault() -> None:
    found = stage(tokenizer=TOKENIZER).faults()

    assert "inputs.vision" in found["config.model.region_encoder"]
    assert "allowed: roi" in found["config.model.region_encoder"]


def test_two_image_encoders_are_a_fault(encoder: Export) -> None:
    assert "remove one" in stage(seeing(encoder), tokenizer=TOKENIZER, vision=encoder).faults()["inputs.vision"]
    assert "remove one" in stage(None, model=Checkpoint(Path("m")), vision=encoder).faults()["inputs.vision"]
    assert stage(tokenizer=TOKENIZER, vision=encoder).faults() == {}
    assert stage(seeing(encoder), tokenizer=TOKENIZER).faults() == {}


def test_an_encoder_without_a_prompter_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vision_config": {}}', encoding="utf-8")

    named = stage(replace(PROMPTED, vision=VisionConfig(path=tmp_path)), tokenizer=TOKENIZER).faults()
    given = stage(tokenizer=TOKENIZER, vision=Export(Path("run/other/model")))

    assert "has no Prompter" in named["config.model.vision.path"]
    assert (
        "'pixclip'" in given.faults_given({"vision": {"family": "pixclip", "model": {"vision": {}}}})["inputs.vision"]
    )
    assert given.faults_given({}) == {}


def test_a_chain_that_cannot_see_is_refused_before_anything_of_it_runs() -> None:
    """The export that is wired is of a GLaMM; planning knows that, though nothing is there yet."""
    recipe = Path(__file__).parents[3] / "recipes" / "tiny" / "glamm_region_caption.yaml"
    chained = ("stages.on_vg.inputs.vision=export_refcoco.model", "stages.on_vg.config.model.region_encoder=prompter")

    plan = plan_recipe(recipe, chained, Catalog(stages=STAGES, families=FAMILIES))

    assert [(fault.key, "'glamm'" in fault.message) for fault in plan.faults] == [("stages.on_vg.inputs.vision", True)]


def test_quirks_of_other_region_encoders_are_faults(encoder: Export) -> None:
    odd = replace(seeing(encoder), centre_crop=True, roi_side_px=224)

    found = stage(odd, tokenizer=TOKENIZER).faults()

    assert found["config.model.centre_crop"].endswith("allowed: false")
    assert found["config.model.roi_side_px"].endswith("allowed: null")


def test_the_model_is_foreseen_before_its_encoder_is_there(encoder: Export) -> None:
    """A recipe chains both: nothing of the CLOC exists when the GLaMM is planned."""
    facts = {"tokenizer": {"tokens": WORDS.size}, "vision": encoder.facts()}
    begins = stage(tokenizer=TOKENIZER, vision=Export(Path("run/encoder/model")))

    foreseen = Blueprint.from_plain(begins.foresee(facts)["model"]["model"])

    assert foreseen == draw_blueprint(seeing(encoder), WORDS.size)
    assert begins.sketch(facts) is not None
    assert begins.foresee({"tokenizer": facts["tokenizer"]}) == {}


def test_a_stage_begins_with_the_encoder_it_is_given(encoder: Export, cloc: Checkpoint, tmp_path: Path) -> None:
    for name, content in WORDS.files().items():
        (tmp_path / name).write_bytes(content)
    inputs = WordPretraining.Inputs(shards={}, tokenizer=Tokenizer(tmp_path), vision=encoder)
    task = begin_fresh(RegionPretraining.Config(train=TRAIN, model=PROMPTED), PROMPTED, {}, inputs)
    model = task.build_model()

    task.load_weights(model)

    weights, theirs = dict(model.named_parameters()), ClocFamily(device="cpu").load(cloc.path).network
    for name, weight in theirs.prompter.named_parameters():
        if not name.startswith("text_prompt"):
            assert torch.equal(weights[f"region_encoder.prompter.{name}"], weight), name
    assert Blueprint.from_plain(task.describe()["model"]).padded
