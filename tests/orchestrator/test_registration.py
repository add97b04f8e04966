"""`tracking.register`: what it may say, and what a recipe must have for it, all found before anything runs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.errors import RecipeError
from orchestrator.plan import Catalog, plan_recipe
from orchestrator.promotion import resolved
from orchestrator.recipe import dump_recipe, load_recipe
from orchestrator.registration import Registration
from stages import FAMILIES, STAGES

TINY = Path(__file__).parents[2] / "recipes" / "tiny" / "glamm.yaml"
CATALOG = Catalog(stages=STAGES, families=FAMILIES)
FLOOR = {"score": {"gcg": {"miou": ">= 0.5"}}}


def recipe(place: Path, register: Any, **changes: Any) -> Path:
    """Writes the tiny chain with a registration, and with changes to its stages."""
    plain = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    plain["tracking"] = {"uri": "sqlite:///mlflow.db", "register": register}
    plain["stages"] |= {name: plain["stages"].get(name, {}) | change for name, change in changes.items()}
    path = place / "recipe.yaml"
    path.write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
    return path


def faults_of(path: Path) -> dict[str, str]:
    with pytest.raises(RecipeError) as caught:
        plan_recipe(path, [], CATALOG, directory=path.parent / "run")
    return {fault.key: fault.message for fault in caught.value.faults}


@pytest.mark.parametrize(
    ("register", "key", "message"),
    [
        ("a/b", "", "name must be letters"),
        ({"nam": "tiny"}, ".nam", "did you mean 'name'?"),
        ({"name": "a:b"}, ".name", "must be letters"),
        ({"name": "tiny", "alias": "Latest"}, ".alias", "MLflow keeps 'Latest' for itself"),
        ({"name": "tiny", "alias": "to day"}, ".alias", "must be letters"),
        ({"name": "tiny", "stage": "exprot"}, ".stage", "did you mean 'export'?"),
        ({"name": "tiny", "stage": "sft"}, ".stage", "'sft' writes no export; those that do: export"),
        ({"name": "tiny", "when": {"scor": FLOOR["score"]}}, ".when.scor", "did you mean 'score'?"),
        ({"name": "tiny", "when": {"sft": FLOOR["score"]}}, ".when.sft", "writes no report, so it has no scores"),
        ({"name": "tiny", "when": {"score": {"gcgs": {}}}}, ".when.score.gcgs", "did you mean 'gcg'?"),
        ({"name": "tiny", "when": {"score": {"gcg": {"iou": "> 1"}}}}, ".when.score.gcg.iou", "did you mean 'miou'?"),
        ({"name": "tiny", "when": {"score": {"gcg": {"miou": "=> 1"}}}}, ".when.score.gcg.miou", "one of >=, >, <=, <"),
        ({"name": "tiny", "when": {"score": {"gcg": {"miou": 0.5}}}}, ".when.score.gcg.miou", "and is '0.5'"),
        ({"name": "tiny", "when": {"score": {"gcg": {"miou": ">= nan"}}}}, ".when.score.gcg.miou", "one of >=, >"),
        ({"name": "tiny", "when": {"score": ">= 0.5"}}, ".when.score", "is not a mapping"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_anything_runs(
    tmp_path: Path, register: Any, key: str, message: str
) -> None:
    faults = faults_of(recipe(tmp_path, register))

    assert f"tracking.register{key}" in faults
    assert message in faults[f"tracking.register{key}"]


def test_scores_of_another_model_promote_nothing(tmp_path: Path) -> None:
    inputs = {"model": "gcg.model", "shards": {"held_out": "held_out.shards"}}

    faults = faults_of(recipe(tmp_path, {"name": "tiny", "when": FLOOR}, score={"inputs": inputs}))

    assert faults == {
        "tracking.register.when.score": "evaluates gcg.model, but export exports sft.model: its scores say nothing of "
        "that model"
    }


def test_of_two_exports_one_must_be_named(tmp_path: Path) -> None:
    second = {"stage": "export", "inputs": {"model": "gcg.model"}}

    faults = faults_of(recipe(tmp_path, "tiny", second=second))

    assert faults == {"tracking.register.stage": "must name one of the stages that export: export, second"}


def test_nobody_registers_where_nothing_is_tracked(tmp_path: Path) -> None:
    path = recipe(tmp_path, "tiny")

    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["tracking.uri=null"])

    (fault,) = caught.value.faults
    assert fault.key == "tracking.register"
    assert "uri is null" in fault.message


def test_a_name_alone_is_enough_where_one_stage_exports(tmp_path: Path) -> None:
    plan = plan_recipe(recipe(tmp_path, "tiny"), [], CATALOG, directory=tmp_path / "run")

    assert resolved(plan) == Registration(name="tiny", stage="export", alias="champion", when={})


def test_a_run_folder_keeps_what_was_written(tmp_path: Path) -> None:
    first = load_recipe(recipe(tmp_path, {"name": "tiny", "when": FLOOR}), ["tracking.register.alias=null"])
    (tmp_path / "again.yaml").write_text(dump_recipe(first), encoding="utf-8")

    again = load_recipe(tmp_path / "again.yaml")

    assert again.tracking == first.tracking
    assert first.tracking.registration == Registration(name="tiny", alias=None, when=FLOOR)


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        (">= 0.5", 0.5, True), (">0.5", 0.5, False), ("<= 2", 2.0, True), ("< -1e-3", 0.0, False),
        (">= 0.5", float("nan"), False), ("<= 0.5", float("nan"), False),
    ],
)  # fmt: skip
def test_a_score_is_compared_as_written(text: str, value: float, holds: bool) -> None:  # noqa: FBT001 - a parameter
    ((benchmark, score, condition),) = Registration(name="x", when={"s": {"b": {"v": text}}}).conditions("s")

    assert (benchmark, score, condition.holds(value)) == ("b", "v", holds)
