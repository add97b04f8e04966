import json
import shutil
from pathlib import Path

import pytest

from orchestrator.artifacts import Shards
from orchestrator.history import Parents, judge
from orchestrator.plan import PlannedStage
from orchestrator.run import Run
from tests.toyplans import House, build_house, finish, save_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.syspath_prepend(str(tmp_path))
    return build_house(tmp_path)


def launch(house: House, *overrides: str, finishing: bool = True, content: str = "work") -> dict[str, str]:
    """Prepares a run and leaves what its stages would; returns what was planned about each."""
    plan = house.plan(*overrides)
    Run(house.run_dir).prepare(plan, ROOT)
    for stage in plan.stages:
        if finishing and stage.action != "reuse":
            finish(stage, content)
    return {stage.name: stage.action for stage in plan.stages}


def changes(stage: PlannedStage) -> dict[str, tuple[str, str]]:
    return {change.key: (change.was, change.is_) for change in stage.changes}


def test_a_finished_run_is_reused_as_a_whole(house: House) -> None:
    launch(house)

    assert set(house.actions().values()) == {"reuse"}
    assert house.stage("tune").reason == "done, nothing changed"


def test_one_changed_key_runs_that_stage_and_what_follows_and_says_why(house: House) -> None:
    launch(house)

    override = "stages.tune.config.train.optim.lr=0.5"

    assert house.actions(override) == {"captions": "reuse", "align": "reuse", "tune": "run", "score": "run"}
    tune, score = house.stage("tune", override), house.stage("score", override)
    assert tune.reason == "config.train.optim.lr: 0.001 -> 0.5"
    assert changes(tune) == {"config.train.optim.lr": ("0.001", "0.5")}
    assert list(changes(score)) == ["input model"]
    assert changes(score)["input model"][1] == "tune runs again"


def test_changed_code_is_named_by_its_module(house: House) -> None:
    launch(house)
    house.module("inner/losses").write_text("def loss(x):\n    return 3 * x\n")

    assert list(changes(house.stage("align"))) == [f"code: {house.package}.inner.losses"]
    assert house.actions()["captions"] == "reuse"


def test_a_changed_seed_and_changed_raw_files_are_named(house: House) -> None:
    (house.place / "raw").mkdir()
    root = f"stages.captions.config.root={house.place / 'raw'}"
    launch(house, root)
    (house.place / "raw" / "image.jpg").write_text("new")

    assert changes(house.stage("captions", root, "seed=2")) == {"outside: root": ("0", "1"), "seed": ("1", "2")}


def test_another_order_of_a_config_mapping_is_told_as_such(house: House) -> None:
    shards = {"a": "captions.shards", "b": "captions.rest"}
    house.recipe["stages"]["align"].update(inputs={"shards": shards}, config={"mixture": {"a": 1, "b": 2}})
    launch(house)
    house.recipe["stages"]["align"]["config"] = {"mixture": {"b": 2, "a": 1}}

    assert changes(house.stage("align")) == {"config": ("the same values in another order", "as written now")}


def test_a_stage_is_resumed_from_its_last_complete_checkpoint(house: House) -> None:
    launch(house, finishing=False)
    directory = house.run_dir / "align"
    save_checkpoint(directory, 4)
    save_checkpoint(directory, 8)
    save_checkpoint(directory, 12, complete=False)

    align = house.stage("align")

    assert (align.action, align.from_step, align.found) == ("resume", 8, directory)
    assert align.reason == "model is not finished; saved at step 8"


def test_a_checkpoint_of_another_fingerprint_is_not_resumed(house: House) -> None:
    launch(house, finishing=False)
    save_checkpoint(house.run_dir / "align", 4)

    assert house.stage("align", "stages.align.config.train.steps=20").action == "run"


@pytest.mark.parametrize("harm", ["missing", "shorter", "no manifest", "broken manifest", "wrong fingerprint"])
def test_damaged_output_is_not_reused(house: House, harm: str) -> None:
    launch(house)
    model = house.run_dir / "tune" / "model"
    manifest = json.loads((model / "manifest.json").read_text())
    {
        "missing": (model / "data.bin").unlink,
        "shorter": lambda: (model / "data.bin").write_text("w"),
        "no manifest": (model / "manifest.json").unlink,
        "broken manifest": lambda: (model / "manifest.json").write_text("{"),
        "wrong fingerprint": lambda: (model / "manifest.json").write_text(json.dumps({**manifest, "fingerprint": "0"})),
    }[harm]()

    assert house.actions() == {"captions": "reuse", "align": "reuse", "tune": "run", "score": "reuse"}
    launch(house, finishing=False)
    assert not (model / "manifest.json").exists()
    assert not house.stage("tune").outputs["model"].ready()


def test_finished_work_stays_when_a_deleted_input_is_made_again(house: House) -> None:
    launch(house)
    shutil.rmtree(house.run_dir / "align" / "model")

    tune = house.stage("tune")

    assert house.actions() == {"captions": "reuse", "align": "run", "tune": "reuse", "score": "reuse"}
    assert tune.reason == "done, nothing changed; align runs again from the same recipe, which does not undo it"


def test_work_is_done_again_if_its_input_came_out_different(house: House) -> None:
    launch(house)
    shutil.rmtree(house.run_dir / "align" / "model")
    launch(house, content="other work")

    tune = house.stage("tune")

    assert tune.action == "run"
    assert tune.reason == "input model has other content than the one that was read"
    assert list(changes(tune)) == ["input model"]


def test_returning_to_an_earlier_recipe_brings_its_work_back(house: House) -> None:
    override = "stages.tune.config.train.steps=20"
    launch(house)
    first = (house.run_dir / "tune" / "stage.json").read_text()
    assert launch(house, override)["tune"] == "run"

    back = house.stage("tune")

    assert (back.action, back.reason) == ("reuse", "done, nothing changed; comes back from the archive")
    assert launch(house) == {"captions": "reuse", "align": "reuse", "tune": "reuse", "score": "reuse"}
    assert (house.run_dir / "tune" / "stage.json").read_text() == first
    assert house.actions() == {"captions": "reuse", "align": "reuse", "tune": "reuse", "score": "reuse"}
    assert launch(house, override)["tune"] == "reuse"
    assert house.actions(override)["tune"] == "reuse"


def test_half_done_work_is_resumed_from_the_archive(house: House) -> None:
    launch(house, finishing=False)
    save_checkpoint(house.run_dir / "align", 4)
    launch(house, "stages.align.config.train.steps=20", finishing=False)

    align = house.stage("align")
    launch(house, finishing=False)

    assert (align.action, align.from_step) == ("resume", 4)
    assert (house.run_dir / "align" / "checkpoints" / "step_00000004" / "manifest.json").exists()
    assert house.stage("align").found == house.run_dir / "align"


def test_a_swap_that_was_killed_half_way_loses_nothing(house: House) -> None:
    launch(house)
    archive = house.run_dir / "archive" / "tune"
    archive.mkdir(parents=True)
    (house.run_dir / "tune").rename(archive / house.fingerprints()["tune"][:12])

    assert house.actions()["tune"] == "reuse"
    assert house.stage("tune").found != house.run_dir / "tune"
    launch(house)
    assert house.stage("tune").found == house.run_dir / "tune"


def test_checkpoints_made_from_other_input_are_put_away_when_the_stage_starts(house: House) -> None:
    run = Run(house.run_dir)
    launch(house, finishing=False)
    finish(house.stage("captions"))
    run.record_inputs("align")
    save_checkpoint(house.run_dir / "align", 4)
    run.record_inputs("align")
    assert house.stage("align").from_step == 4
    finish(house.stage("captions"), "other")

    run.record_inputs("align")

    assert house.stage("align").action == "run"
    assert len(list((house.run_dir / "archive" / "align").glob("*/checkpoints/step_00000004/manifest.json"))) == 1


def test_work_of_unreadable_origin_is_kept_aside(house: House) -> None:
    launch(house)
    (house.run_dir / "tune" / "stage.json").write_text("{")

    assert launch(house)["tune"] == "run"
    assert (house.run_dir / "archive" / "tune" / "unknown" / "model" / "manifest.json").exists()


@pytest.mark.parametrize(("keeps_parts", "said"), [(True, "finished parts of it are kept"), (False, "no checkpoint")])
def test_what_an_unfinished_stage_keeps_is_said(tmp_path: Path, *, keeps_parts: bool, said: str) -> None:
    stage = tmp_path / "captions"
    stage.mkdir()
    (stage / "stage.json").write_text(json.dumps({"fingerprint": "f", "identity": {}}))
    nothing = Parents(digests={}, again={})

    verdict = judge(
        tmp_path, "captions", {}, "f", {"shards": Shards(stage / "shards")}, nothing, keeps_parts=keeps_parts
    )

    assert verdict.action == "run"
    assert said in verdict.reason
