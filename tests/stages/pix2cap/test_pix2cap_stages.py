"""The stage of Pix2Cap, as a recipe sees it: faults before anything runs, folders that fill parts, categories."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.artifacts import Checkpoint, Shards, Tokenizer
from orchestrator.errors import InputError
from orchestrator.training.config import OptimConfig, TrainConfig
from stages.pix2cap.config import CaptionerConfig, Pix2CapConfig, SegmenterConfig
from stages.pix2cap.stages import Pix2CapTraining

TRAIN = TrainConfig(steps=1, global_batch=1, optim=OptimConfig(lr=1e-3))
SHARDS = {"segments": Shards(Path("a"))}


def training(model: Pix2CapConfig | None, /, **inputs: object) -> Pix2CapTraining:
    config = Pix2CapTraining.Config(train=TRAIN, model=model)
    given = Pix2CapTraining.Inputs(**{"shards": SHARDS, **inputs})
    return Pix2CapTraining(config, given, Pix2CapTraining.Outputs(model=Checkpoint(Path("out/train/model"))))


def shards_in(directory: Path, **facts: object) -> Shards:
    directory.mkdir(parents=True)
    shards = Shards(directory)
    shards.commit("f" * 64, facts={"samples": 3, **facts})
    return shards


def test_planning_imports_no_torch() -> None:
    code = (
        "import sys, stages.pix2cap.stages; assert 'torch' not in sys.modules; assert 'transformers' not in sys.modules"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_model_begins_or_goes_on_and_not_both() -> None:
    model, tokenizer = Checkpoint(Path("m")), Tokenizer(Path("t"))

    assert "config.model" in training(None).faults()
    assert "config.model" in training(Pix2CapConfig(), model=model).faults()
    assert training(Pix2CapConfig()).faults().keys() == {"inputs.tokenizer"}
    assert training(None, model=model, tokenizer=tokenizer).faults().keys() == {"inputs.tokenizer"}
    assert training(Pix2CapConfig(), tokenizer=tokenizer).faults() == {}
    assert training(None, model=model).faults() == {}


def test_folders_that_are_not_there_or_hold_another_model_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam"}), encoding="utf-8")
    segmenter, captioner = SegmenterConfig(path=tmp_path), CaptionerConfig(path=tmp_path / "none")

    faults = training(Pix2CapConfig(segmenter=segmenter, captioner=captioner)).faults()

    assert faults["config.model.segmenter.path"].endswith("is a sam; allowed: mask2former")
    assert "has no config.json" in faults["config.model.captioner.path"]


def test_shards_without_categories_are_refused_when_a_recipe_is_planned(tmp_path: Path) -> None:
    panoptic = shards_in(tmp_path / "panoptic", categories=[{"id": 1, "name": "bar", "thing": True}])
    plain = shards_in(tmp_path / "plain")
    stage = training(Pix2CapConfig(), tokenizer=Tokenizer(Path("t")), shards={"good": panoptic, "bad": plain})

    assert stage.faults().keys() == {"inputs.shards.bad"}


@pytest.mark.needs("torch")
def test_categories_are_those_of_all_shards_or_none(tmp_path: Path) -> None:
    from stages.pix2cap.begin import read_categories

    bar, post = {"id": 1, "name": "bar", "thing": True}, {"id": 2, "name": "post", "thing": False}
    first, second = shards_in(tmp_path / "a", categories=[bar, post]), shards_in(tmp_path / "b", categories=[bar])

    assert [(one.name, one.thing) for one in read_categories({"a": first})] == [("bar", True), ("post", False)]
    with pytest.raises(InputError, match=r"inputs\.shards\.b: its categories are not those of a"):
        read_categories({"a": first, "b": second})
    with pytest.raises(InputError, match="lists no categories"):
        read_categories({"c": shards_in(tmp_path / "c")})


@pytest.mark.slow
@pytest.mark.needs("torch")
def test_folders_of_transformers_fill_their_parts(tmp_path: Path) -> None:
    import torch
    from transformers import GitConfig, GitForCausalLM, Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    from stages.pix2cap.config import Category, draw_blueprint
    from stages.pix2cap.model import Pix2Cap
    from stages.pix2cap.pretrained import fill_from_folders
    from tests.stages.pix2cap_models import CATEGORIES, TINY, tiny_blueprint, vocabulary

    words = vocabulary()
    names = {number: one.name for number, one in enumerate(CATEGORIES)}
    segmenter = Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(**tiny_blueprint(words).segmenter, id2label=names)
    )
    segmenter.save_pretrained(tmp_path / "segmenter")
    vision = {"image_size": 16, "patch_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    git = GitForCausalLM(GitConfig(**tiny_blueprint(words).captioner, vision_config={**vision, "intermediate_size": 8}))
    git.save_pretrained(tmp_path / "git")
    config = replace(
        TINY,
        segmenter=SegmenterConfig(path=tmp_path / "segmenter"),
        captioner=replace(TINY.captioner, path=tmp_path / "git"),
    )
    assert config.faults() == {}
    model = Pix2Cap(draw_blueprint(config, words.size, CATEGORIES))

    loaded = fill_from_folders(model, config, CATEGORIES)

    fresh = {name for name, _ in model.named_parameters()} - loaded
    assert all(name.startswith(("captioner.object_projection", "captioner.visual_projection")) for name in fresh)
    assert fresh
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        seen = model.eval().see(pixels)
        expected = segmenter.eval()(pixels)
    torch.testing.assert_close(seen.class_logits_KBQC[-1], expected.class_queries_logits)
    torch.testing.assert_close(seen.mask_logits[-1], expected.masks_queries_logits)
    assert torch.equal(model.captioner.output.weight, git.git.embeddings.word_embeddings.weight)
    other = (*CATEGORIES[:2], Category(id=3, name="sky", thing=False))
    with pytest.raises(InputError, match="the first that differs is 'ground', here 'sky'"):
        fill_from_folders(model, config, other)
