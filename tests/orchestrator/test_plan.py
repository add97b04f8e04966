import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.artifacts import Checkpoint, Shards
from orchestrator.errors import DamagedArtifact, RecipeError
from orchestrator.plan import make_plan, open_stage, plan_recipe
from orchestrator.recipe import load_recipe
from tests.toyplans import House, build_house

ROOT = Path(__file__).parents[2]


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.syspath_prepend(str(tmp_path))
    return build_house(tmp_path)


def faults_of(house: House, *overrides: str) -> dict[str, str]:
    """Returns the faults of a recipe, whether they keep it from being planned or only from being launched."""
    try:
        faults = house.plan(*overrides).faults
    except RecipeError as error:
        faults = error.faults
    return {fault.key: fault.message for fault in faults}


def external(place: Path, kind: type[Shards] | type[Checkpoint], **facts: object) -> Path:
    place.mkdir()
    (place / "data.bin").write_text("data")
    kind(place).commit("elsewhere", facts)
    return place


def test_stages_are_ordered_by_what_they_read_whatever_the_recipe_says_first(house: House) -> None:
    house.recipe["stages"] = dict(reversed(house.recipe["stages"].items()))

    plan = house.plan()

    assert [stage.name for stage in plan.stages] == ["captions", "align", "tune", "score"]
    assert plan.stages[2].after == ("align", "captions")
    assert plan.stages[1].outputs["model"] == Checkpoint(house.run_dir / "align" / "model")
    assert plan.stages[1].inputs["shards"] == {"captions": Shards(house.run_dir / "captions" / "shards")}
    assert plan.stages[1].inputs["start"] is None
    assert plan.stages[1].steps == 10
    assert {stage.action for stage in plan.stages} == {"run"}


def test_four_mistakes_at_once_give_one_answer(house: House) -> None:
    stages = house.recipe["stages"]
    stages["captions"]["config"] = {"sauce": "coco"}
    stages["align"]["config"] = {"train": {"optim": {"lr": 0}}}
    stages["align"]["inputs"]["extra"] = "captions.shards"
    stages["tune"]["inputs"]["model"] = "captions.shards"

    faults = faults_of(house)

    assert faults == {
        "stages.captions.config.sauce": "is not known here; did you mean 'source'? allowed: source, root, listing",
        "stages.align.config.train.optim.lr": "must be above 0, not 0.0",
        "stages.align.inputs.extra": "is not known here; allowed: shards, start",
        "stages.tune.inputs.model": "'captions.shards' is shards, needs checkpoint",
    }


def test_faults_of_the_text_and_of_the_stages_are_told_together(house: House) -> None:
    house.recipe["colour"] = "red"
    house.recipe["stages"]["broken"] = {"inputs": {}}
    house.recipe["stages"]["score"]["inputs"]["model"] = "broken.model"
    house.recipe["stages"]["tune"]["stage"] = "tun"

    with pytest.raises(RecipeError) as caught:
        plan_recipe(house.write_recipe(), [], house.catalog)

    assert [fault.key for fault in caught.value.faults] == ["colour", "stages.broken.stage", "stages.tune.stage"]
    assert "did you mean 'tune'?" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "key", "message"),
    [
        ("stages.align.stage=algn", "stages.align.stage", "did you mean 'align'? allowed: convert, align,"),
        ("stages.align.config.train.step=1", "stages.align.config.train.step", "did you mean 'steps'?"),
        ("stages.align.config.train.steps=many", "stages.align.config.train.steps", "'many' is not a whole number"),
        ("stages.align.config.train=5", "stages.align.config.train", "5 is not a mapping"),
        ("stages.align.config.mixture.x=1", "stages.align.config.mixture.x", "names no input"),
        ("stages.align.inputs.shards.captions=caption.shards", "stages.align.inputs.shards.captions", "'captions'?"),
        ("stages.align.inputs.shards.captions=captions.shard", "stages.align.inputs.shards.captions", "'shards'?"),
        ("stages.align.inputs.shards.captions=captions", "stages.align.inputs.shards.captions", "STAGE.OUTPUT"),
        ("stages.align.inputs.shards.captions=3", "stages.align.inputs.shards.captions", "STAGE.OUTPUT"),
        ("stages.align.inputs.shards=captions.shards", "stages.align.inputs.shards", "is not a mapping"),
        ("stages.tune.inputs.model=null", "stages.tune.inputs.model", "is missing; needs checkpoint"),
        ("stages.tune.inputs.model=/none/such", "stages.tune.inputs.model", "/none/such does not exist"),
        ("stages.captions.config.root=/none/such", "stages.captions.config.root", "/none/such does not exist"),
    ],
)
def test_a_mistake_is_named_with_its_key(house: House, override: str, key: str, message: str) -> None:
    house.recipe["stages"]["captions"]["config"] = {}
    house.recipe["stages"]["align"]["config"] = {}

    faults = faults_of(house, override)

    assert key in faults
    assert message in faults[key]


def test_stages_that_wait_for_each_other_are_named_in_a_circle(house: House) -> None:
    house.recipe["stages"]["align"]["inputs"]["start"] = "tune.model"

    faults = faults_of(house)

    assert len(faults) == 1
    (message,) = faults.values()
    assert message in {"waits for itself: align -> tune -> align", "waits for itself: tune -> align -> tune"}


@pytest.mark.parametrize("name", ["a/b", "..", "archive", "lock", "a.b", "-x"])
def test_names_that_are_no_folder_of_a_stage_are_refused(house: House, name: str) -> None:
    house.recipe["stages"][name] = {"stage": "convert"}

    assert f"stages.{name}" in faults_of(house)


def test_every_missing_path_is_named_and_the_plan_can_still_be_shown(house: House) -> None:
    (house.place / "words.txt").write_text("words")
    house.recipe["stages"]["captions"]["config"] = {"root": "/none/a", "listing": "/none/b"}
    config = {"root": str(house.place / "words.txt"), "words": str(house.place)}
    house.recipe["stages"]["places"] = {"stage": "places", "config": config}

    plan = house.plan()

    assert {fault.key: fault.message for fault in plan.faults} == {
        "stages.captions.config.root": "/none/a does not exist",
        "stages.captions.config.listing": "/none/b does not exist",
        "stages.places.config.root": f"{house.place}/words.txt is a file, needs a folder",
        "stages.places.config.words": f"{house.place} is a folder, needs a file",
    }
    reasons = {stage.name: stage.reason for stage in plan.stages}
    assert reasons["captions"] == "cannot start: /none/a does not exist"
    assert reasons["align"] == "waits for captions, which cannot start"
    assert reasons["score"] == "waits for tune, which cannot start"
    assert plan.document()["valid"] is False
    with pytest.raises(RecipeError):
        plan.check()


def test_an_artifact_from_elsewhere_is_checked_file_by_file(house: House) -> None:
    shards = external(house.place / "shards", Shards)
    stages = house.recipe["stages"]
    stages["align"]["inputs"]["shards"] = {"a": str(shards), "b": str(house.place / "recipe.yaml")}
    stages["tune"]["inputs"]["model"] = str(shards)
    stages["tune"]["inputs"]["shards"] = {"empty": str(house.place / "nothing")}
    (house.place / "nothing").mkdir()
    house.write_recipe()
    (shards / "data.bin").write_text("more data")

    faults = faults_of(house)

    assert "data.bin has 9 bytes, its manifest says 4" in faults["stages.align.inputs.shards.a"]
    assert "is a file, needs the folder of a shards" in faults["stages.align.inputs.shards.b"]
    assert "is shards, needs checkpoint" in faults["stages.tune.inputs.model"]
    assert "holds no complete shards" in faults["stages.tune.inputs.shards.empty"]


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{", "is not a manifest"),
        ("[]", "is not a manifest"),
        ('{"kind": "shards"}', "is not a manifest"),
        ('{"kind": "shards", "digest": "x", "files": [{"path": "../../x"}]}', "outside its folder"),
        ('{"kind": "shards", "digest": "x", "files": [{"path": "/etc/passwd"}]}', "outside its folder"),
    ],
)
def test_a_broken_or_malicious_manifest_is_a_fault(house: House, manifest: str, message: str) -> None:
    shards = external(house.place / "shards", Shards)
    (shards / "manifest.json").write_text(manifest)

    faults = faults_of(house, f"stages.align.inputs.shards.captions={shards}/")

    assert message in faults["stages.align.inputs.shards.captions"]


def test_a_checkpoint_from_elsewhere_must_name_a_family_that_is_known(house: House) -> None:
    nameless = external(house.place / "nameless", Checkpoint)
    other = external(house.place / "other", Checkpoint, family="tory")
    good = external(house.place / "good", Checkpoint, family="toy")
    key = "stages.score.inputs.model"

    assert "names no model family" in faults_of(house, f"{key}={nameless}")[key]
    assert "did you mean 'toy'?" in faults_of(house, f"{key}={other}")[key]
    assert faults_of(house, f"{key}={good}") == {}


def test_a_stage_that_cannot_be_imported_is_a_fault_and_not_a_traceback(house: House) -> None:
    house.module("stages").write_text("import a_library_that_is_not_there\n")

    assert "a_library_that_is_not_there" in faults_of(house)["stages.captions.stage"]


def test_a_stage_without_outputs_is_refused_for_nobody_could_tell_when_it_is_done(house: House) -> None:
    house.recipe["stages"]["forever"] = {"stage": "endless"}

    assert "must declare Outputs" in faults_of(house)["stages.forever.stage"]


def test_a_worker_builds_the_same_stage_from_the_plain_document(house: House) -> None:
    planned = house.stage("tune", "stages.tune.config.train.optim.lr=0.5")
    document = json.loads(json.dumps(planned.document()))

    stage = open_stage(document)

    assert stage.config == planned.config
    assert stage.config.train.optim.lr == pytest.approx(0.5)
    assert stage.inputs.shards["captions"].path == house.run_dir / "captions" / "shards"
    assert stage.outputs.model == planned.outputs["model"]


def test_a_document_of_another_version_of_the_stage_is_refused(house: House) -> None:
    document = house.stage("align").document()
    document["config"]["train"]["gone"] = 1

    with pytest.raises(DamagedArtifact, match=r"config\.train\.gone"):
        open_stage(document)


def test_the_json_of_a_plan_has_the_keys_that_scripts_rely_on(house: House) -> None:
    document = house.plan("stages.align.resources={nodes: 2, gpus_per_node: 8, hours: 3}").document()

    assert {"recipe", "run", "valid", "stages"} <= document.keys()
    align = document["stages"][1]
    assert {
        "name", "stage", "after", "action", "reason", "changes", "from_step", "steps", "fingerprint", "resources",
        "memory_gb_per_gpu", "gpu_hours",
    } <= align.keys()  # fmt: skip
    assert align["gpu_hours"] == 48
    json.dumps(document)


def test_planning_leaves_heavy_libraries_alone(house: House) -> None:
    program = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(house.place)!r})
from orchestrator.plan import Catalog, make_plan
from orchestrator.recipe import load_recipe
from orchestrator.run import Run
catalog = Catalog(stages={dict(house.catalog.stages)!r}, families={dict(house.catalog.families)!r})
make_plan(load_recipe(Path({str(house.write_recipe())!r})), catalog, Path({str(house.run_dir)!r}))
heavy = {{"torch", "deepspeed", "mlflow", "transformers", "webdataset", "numpy", "submitit"}} & set(sys.modules)
print(sorted(heavy))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)

    assert done.stdout.strip() == "[]"


def test_a_thousand_stages_are_ordered_without_running_out_of_stack(house: House) -> None:
    stages = {"s0": {"stage": "align", "inputs": {"shards": {"a": str(external(house.place / "shards", Shards))}}}}
    for number in range(1, 1000):
        stages[f"s{number}"] = {
            "stage": "tune",
            "inputs": {"model": f"s{number - 1}.model", "shards": {"a": str(house.place / "shards")}},
        }
    house.recipe["stages"] = dict(reversed(stages.items()))

    plan = make_plan(load_recipe(house.write_recipe()), house.catalog, house.run_dir)

    assert [stage.name for stage in plan.stages] == list(stages)
    assert len({stage.fingerprint for stage in plan.stages}) == 1000
