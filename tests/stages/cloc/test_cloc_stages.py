"""The stage of CLOC, as a recipe sees it: faults before anything runs, and what model there will be."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.artifacts import Checkpoint, Shards, Tokenizer
from orchestrator.resources import Resources
from orchestrator.training.config import EngineConfig, OptimConfig, TrainConfig
from stages.cloc.config import Blueprint, ClocConfig, ImageConfig, draw_blueprint, vocabulary_in
from stages.cloc.stages import ClocContrastive
from stages.promptable import PrompterConfig
from tests.stages.cloc_models import TINY, tiny_checkpoint, word_pieces
from tests.stages.scenes import scene, write_shards

pytestmark = pytest.mark.needs("torch")

TRAIN = TrainConfig(steps=1, global_batch=8, optim=OptimConfig(lr=1e-3), workers=0)
TOKENIZER = Tokenizer(Path("tokenizer"))


def stage(
    model: ClocConfig | None = TINY,
    *,
    tokenizer: Tokenizer | None = TOKENIZER,
    begun: Path | None = None,
    **config: Any,
) -> ClocContrastive:
    """Makes a stage that is not run."""
    settings = ClocContrastive.Config(**{"train": TRAIN, "model": model, **config})
    inputs = ClocContrastive.Inputs(
        shards={"grounded": Shards(Path("a"))}, tokenizer=tokenizer, model=None if begun is None else Checkpoint(begun)
    )
    return ClocContrastive(settings, inputs, ClocContrastive.Outputs(model=Checkpoint(Path("out"))))


def test_planning_imports_no_torch() -> None:
    code = "import sys, stages.cloc.stages; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_fresh_model_with_a_tokenizer_has_no_faults() -> None:
    assert stage().faults() == {}


def test_exactly_one_model_is_needed() -> None:
    assert "neither given" in stage(None).faults()["config.model"]
    assert "both given" in stage(begun=Path("model")).faults()["config.model"]


def test_exactly_one_tokenizer_is_needed(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    named = replace(TINY, tokenizer=tmp_path)

    assert "names no folder" in stage(tokenizer=None).faults()["inputs.tokenizer"]
    assert "remove one" in stage(named).faults()["inputs.tokenizer"]
    assert "remove one" in stage(None, begun=Path("model")).faults()["inputs.tokenizer"]
    assert stage(named, tokenizer=None).faults() == {}


def test_a_batch_is_never_split_into_contrasts_of_its_own() -> None:
    faults = stage(train=replace(TRAIN, micro_batch=2)).faults()

    assert "allowed: null" in faults["config.train.micro_batch"]
    assert "config.chunk" in faults["config.train.micro_batch"]


def test_ranks_that_read_the_same_images_are_refused() -> None:
    faults = stage(train=replace(TRAIN, engine=EngineConfig(tensor_parallel=2))).faults()

    assert "allowed: 1" in faults["config.train.engine.tensor_parallel"]


def test_a_share_that_does_not_divide_into_chunks_is_a_fault() -> None:
    two = Resources(tasks_per_node=2)

    assert "allowed: 1, 2, 4" in stage(chunk=3).faults_on(two)["config.chunk"]
    assert "config.train.global_batch" in stage().faults_on(Resources(tasks_per_node=3))
    assert stage(chunk=2).faults_on(two) == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_regions", 0), ("chunk", 0), ("region_weight", -1.0), ("conflict", 1.0), ("grounding_weight", -0.5)],
)
def test_a_number_that_makes_no_sense_is_named(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{key} must"):
        stage(**{key: value})


def test_sizes_that_do_not_fit_are_named() -> None:
    odd = replace(TINY, image=ImageConfig(image_size=18, patch_size=4, hidden_size=18, heads=4))

    assert {"image.image_size", "image.hidden_size"} == set(odd.faults())
    with pytest.raises(ValueError, match="temperature must be above 0"):
        PrompterConfig(temperature=0.0)


def test_folders_that_are_not_there_are_faults(tmp_path: Path) -> None:
    faults = stage(ClocConfig(path=tmp_path / "clip", tokenizer=tmp_path), tokenizer=None).faults()

    assert "has no config.json" in faults["config.model.path"]
    assert "has no tokenizer.json" in faults["config.model.tokenizer"]


def test_half_a_clip_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {}}), encoding="utf-8")

    assert "no text_config" in ClocConfig(path=tmp_path).faults()["path"]


def test_the_model_is_foreseen_before_its_tokenizer_is_there() -> None:
    plain = stage().foresee({"tokenizer": {"tokens": 321}})["model"]

    assert plain["family"] == "cloc"
    assert Blueprint.from_plain(plain["model"]) == draw_blueprint(TINY, 321)
    assert stage().foresee({}) == {}


def test_tokens_of_a_folder_are_counted_without_opening_it(tmp_path: Path) -> None:
    for name, content in word_pieces().files().items():
        (tmp_path / name).write_bytes(content)

    assert vocabulary_in(tmp_path) == word_pieces().size
    assert vocabulary_in(tmp_path / "nowhere") is None


def test_a_stage_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    shards = write_shards(tmp_path / "shards", [scene(number) for number in range(4)])
    inputs = ClocContrastive.Inputs(shards={"grounded": shards}, model=checkpoint)
    config = ClocContrastive.Config(train=TRAIN)

    task = ClocContrastive(config, inputs, ClocContrastive.Outputs(model=Checkpoint(tmp_path / "out"))).build_task()

    assert task.describe()["model"] == checkpoint.facts()["model"]
    assert set(task.extras()) == {"tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"}


def test_memory_is_planned_of_a_chunk() -> None:
    sketch = stage(chunk=2).sketch({"tokenizer": {"tokens": 321}})

    assert sketch is not None
    assert sketch.train.micro_batch == 2
