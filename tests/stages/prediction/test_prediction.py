"""Predictions over shards: every image once, the same whoever asks, kept when an attempt dies, read like any shards."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stages
from orchestrator.artifacts import Checkpoint, Shards
from orchestrator.data.reader import ShardSet
from orchestrator.errors import Preempted
from orchestrator.journal import Journal
from orchestrator.progress import Progress
from orchestrator.stage import StageContext
from orchestrator.world import World
from stages.prediction.stage import Predict
from stages.samples import Sample
from stages.vision import rle_from_mask
from tests.ranks import run_ranks
from tests.stages.glamm_models import tiny_checkpoint
from tests.stages.oracle import write_oracle
from tests.stages.scenes import scene, write_shards

SCENES = [scene(number) for number in range(7)]


@pytest.fixture(autouse=True)
def _oracles_are_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(stages.FAMILIES, dict)
    monkeypatch.setitem(stages.FAMILIES, "oracle", "tests.stages.oracle:OracleFamily")


@pytest.fixture
def inputs(tmp_path: Path) -> Predict.Inputs:
    shards = write_shards(tmp_path / "bars", SCENES)
    return Predict.Inputs(model=write_oracle(tmp_path / "model", SCENES), shards={"bars": shards})


def never() -> bool:
    return False


def predict(
    directory: Path,
    inputs: Predict.Inputs,
    *,
    world: World | None = None,
    stop: Callable[[], bool] = never,
    **config: Any,
) -> dict[str, Any]:
    directory.mkdir(parents=True, exist_ok=True)
    stage = Predict(
        Predict.Config(**{"samples_per_shard": 3, "batch_size": 2, **config}),
        inputs,
        Predict.Outputs(shards=Shards(directory / "shards")),
    )
    context = StageContext(
        directory=directory, name="said", fingerprint="e" * 64, seed=3, world=world or World.alone(),
        journal=Journal(None), progress=Progress(directory), stop=stop,
    )  # fmt: skip
    return dict(stage.run(context)["shards"])


def said(directory: Path) -> list[Sample]:
    samples = ShardSet(directory / "shards")
    found = [Sample.from_members(*samples.read(number)) for number in range(len(samples))]
    samples.close()
    return found


def commit(directory: Path, facts: dict[str, Any]) -> None:
    Shards(directory / "shards").commit("e" * 64, facts=facts, sha256=facts["sha256"])


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (directory / "shards").iterdir() if path.name != "manifest.json"}


def test_what_a_model_says_reads_like_any_shards(inputs: Predict.Inputs, tmp_path: Path) -> None:
    facts = predict(tmp_path / "said", inputs)
    commit(tmp_path / "said", facts)

    samples = said(tmp_path / "said")
    assert [sample.key for sample in samples] == [sample.key for sample in SCENES]
    assert [(sample.image, sample.caption) for sample in samples] == [(one.image, one.caption) for one in SCENES]
    first, truth = samples[0].regions, SCENES[0].regions
    assert [(region.phrase, region.spans, region.source) for region in first] == [
        (region.phrase, region.spans, "model") for region in truth
    ]
    assert [(region.mask, region.box_xyxy_px) for region in first] == [
        (region.mask, region.box_xyxy_px) for region in truth
    ]
    assert (facts["samples"], facts["samples_per_tar"], facts["regions"]) == (7, [3, 3, 1], 14)
    assert facts["checkpoint"] == inputs.model.digest()
    assert not Shards(tmp_path / "said/shards").damage(deep=True)


def test_regions_are_described_by_their_boxes_and_expressions_are_pointed_at(
    inputs: Predict.Inputs, tmp_path: Path
) -> None:
    for task in ("regions", "refer"):
        commit(tmp_path / task, predict(tmp_path / task, inputs, task=task))

    described, pointed = said(tmp_path / "regions"), said(tmp_path / "refer")
    assert [[region.caption for region in sample.regions] for sample in described] == [
        [region.caption for region in sample.regions] for sample in SCENES
    ]
    assert [[(region.phrase, region.mask) for region in sample.regions] for sample in pointed] == [
        [(region.caption, region.mask) for region in sample.regions] for sample in SCENES
    ]


def test_phrases_without_pixels_stay_words(tmp_path: Path) -> None:
    shards = {"bars": write_shards(tmp_path / "bars", SCENES[:1])}
    nothing = rle_from_mask(np.zeros((40, 40), dtype=np.bool_))
    empty = replace(SCENES[0], regions=(replace(SCENES[0].regions[0], mask=nothing), SCENES[0].regions[1]))
    inputs = Predict.Inputs(model=write_oracle(tmp_path / "model", [empty]), shards=shards)

    commit(tmp_path / "said", predict(tmp_path / "said", inputs))

    (sample,) = said(tmp_path / "said")
    assert sample.caption == SCENES[0].caption
    assert [region.phrase for region in sample.regions] == [SCENES[0].regions[1].phrase]


def test_inputs_are_kept_apart_and_cut_to_the_limit(tmp_path: Path) -> None:
    model = write_oracle(tmp_path / "model", SCENES)
    shards = {name: write_shards(tmp_path / name, SCENES) for name in ("one", "two")}

    commit(tmp_path / "said", predict(tmp_path / "said", Predict.Inputs(model=model, shards=shards), limit=2))

    keys = [sample.key for sample in said(tmp_path / "said")]
    assert keys == ["one-scene0000", "one-scene0001", "two-scene0000", "two-scene0001"]


def test_an_image_that_cannot_be_seen_is_kept_without_a_word_and_counted(tmp_path: Path) -> None:
    half = replace(SCENES[3], image=SCENES[3].image[:90])
    shards = {"bars": write_shards(tmp_path / "bars", [SCENES[0], half, SCENES[1]])}
    inputs = Predict.Inputs(model=write_oracle(tmp_path / "model", SCENES), shards=shards)

    facts = predict(tmp_path / "said", inputs)
    commit(tmp_path / "said", facts)

    assert (facts["samples"], facts["unanswered"]) == (3, 1)
    assert [sample.caption for sample in said(tmp_path / "said")] == [SCENES[0].caption, "", SCENES[1].caption]


def test_finished_tars_are_kept_and_the_next_attempt_goes_on(
    inputs: Predict.Inputs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    predict(tmp_path / "whole", inputs)
    asked = iter([False] * 3 + [True])

    with pytest.raises(Preempted, match="finished tars are kept"):
        predict(tmp_path / "said", inputs, stop=lambda: next(asked))

    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "said/shards").iterdir()}
    assert sorted(before) == ["shard-000000.idx", "shard-000000.tar"]
    with caplog.at_level("INFO"):
        predict(tmp_path / "said", inputs)
    assert "1 tars of an earlier attempt are finished" in caplog.text
    assert files(tmp_path / "said") == files(tmp_path / "whole")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "said/shards").glob("shard-000000.*")} == before


def test_tars_of_another_plan_are_made_again(inputs: Predict.Inputs, tmp_path: Path) -> None:
    predict(tmp_path / "said", inputs)

    facts = predict(tmp_path / "said", inputs, task="regions", limit=4)
    commit(tmp_path / "said", facts)

    assert facts["samples_per_tar"] == [3, 1]
    assert sorted(files(tmp_path / "said")) == [f"shard-00000{n}.{end}" for n in (0, 1) for end in ("idx", "tar")]
    assert not any(sample.caption for sample in said(tmp_path / "said"))


def ask_on_rank(world: World, folder: Path) -> dict[str, Any]:
    stages.FAMILIES["oracle"] = "tests.stages.oracle:OracleFamily"  # type: ignore[index]
    inputs = Predict.Inputs(model=Checkpoint(folder / "model"), shards={"bars": Shards(folder / "bars")})
    return predict(folder / "said", inputs, world=world)


@pytest.mark.slow
@pytest.mark.needs("torch")
def test_two_ranks_write_what_one_writes(inputs: Predict.Inputs, tmp_path: Path) -> None:
    facts = run_ranks(2, ask_on_rank, tmp_path, directory=tmp_path)

    assert facts[0] == facts[1]
    assert facts[0] == predict(tmp_path / "alone", inputs)
    assert files(tmp_path / "said") == files(tmp_path / "alone")


def test_a_glamm_speaks_about_shards(tmp_path: Path) -> None:
    shards = {"bars": write_shards(tmp_path / "bars", SCENES[:2])}
    inputs = Predict.Inputs(model=tiny_checkpoint(tmp_path / "model"), shards=shards)

    for task in ("caption", "regions", "refer"):
        commit(tmp_path / task, predict(tmp_path / task, inputs, task=task, max_new_tokens=12))

    assert all(sample.caption for sample in said(tmp_path / "caption"))
    assert all(region.source == "model" for sample in said(tmp_path / "refer") for region in sample.regions)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"task": "draw"}, "task: 'draw' is unknown; allowed: caption, regions, refer"),
        ({"batch_size": 0}, "batch_size must be 1 or more, not 0"),
        ({"limit": 0}, "limit must be 1 or more, or null for all"),
    ],
)
def test_what_cannot_be_asked_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Predict.Config(**wrong)
