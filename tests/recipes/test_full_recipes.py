"""The recipes of published trainings: they plan clean on the example clusters, and mix what was published."""

from collections import defaultdict
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from orchestrator.plan import Catalog, Plan, plan_recipe
from orchestrator.recipe import load_recipe
from slurm.cluster import FOLDER, read_cluster
from slurm.launcher import SlurmLauncher
from stages import FAMILIES, STAGES
from tests.recipes.full_size import lay_out

RECIPES = Path(__file__).parents[2] / "recipes"
TWINS = {path.stem: path.stem for path in RECIPES.glob("*.yaml") if "vars.models" in path.read_text(encoding="utf-8")}
TWINS["glamm_full"] = "glamm"
PUBLISHED = {"glamm_grand_pretrain", "glamm_gcg", "glamm_refseg", "glamm_region_caption", "glamm_fullscope"}
SEGMENTS = {"semantic": 4, "referring": 3, "refcocog_gcg": 2, "psg_gcg": 2, "flickr_gcg": 2, "human_gcg": 1}


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return lay_out(tmp_path_factory.mktemp("full_size"))


@cache
def planned(recipe: str, overrides: tuple[str, ...]) -> Plan:
    return plan_recipe(RECIPES / f"{recipe}.yaml", overrides, Catalog(stages=STAGES, families=FAMILIES))


def trainings(plan: Plan) -> dict[str, Any]:
    return {stage.name: stage.config for stage in plan.stages if "train" in stage.spec.config}


def taught(recipe: str) -> tuple[list[str], set[str]]:
    """Lists the stages of training as a recipe writes them, and the tasks that they name."""
    stages = [stage for stage in load_recipe(RECIPES / f"{recipe}.yaml").stages.values() if "train" in stage.config]
    return sorted(one.stage for one in stages), {
        kind for one in stages for kind in one.config.get("tasks", {}).values()
    }


@pytest.mark.parametrize("cluster", sorted(path.stem for path in FOLDER.glob("*.yaml")))
@pytest.mark.parametrize("recipe", sorted(TWINS))
def test_a_full_recipe_plans_clean_for_every_example_cluster(
    recipe: str, cluster: str, overrides: tuple[str, ...]
) -> None:
    plan = planned(recipe, overrides)

    assert [str(fault) for fault in (*plan.faults, *SlurmLauncher(read_cluster(cluster)).check(plan))] == []
    looked_at = [one for one in plan.stages if one.name in trainings(plan)]
    assert {stage.foresight.sketch is not None for stage in looked_at} <= {True}


@pytest.mark.parametrize("recipe", sorted(TWINS.keys() - {"glamm_full"}))
def test_a_twin_has_the_stages_and_tasks_of_its_full_recipe(recipe: str) -> None:
    stages, tasks = taught(recipe)

    assert stages
    assert taught(f"tiny/{TWINS[recipe]}") == (stages, tasks)


@pytest.mark.parametrize("recipe", sorted(PUBLISHED))
def test_a_published_training_has_its_published_batch_and_rate(recipe: str, overrides: tuple[str, ...]) -> None:
    for config in trainings(planned(recipe, overrides)).values():
        optim, lora = config.train.optim, config.model.lora
        assert (config.train.global_batch, optim.lr, optim.warmup_steps, optim.schedule) == (160, 3e-4, 100, "linear")
        assert (optim.betas, optim.weight_decay, optim.clip_norm) == ((0.9, 0.95), 0.0, 1.0)
        assert (lora.rank, lora.alpha, lora.targets) == (8, 16, ("q_proj", "v_proj"))
        assert (config.text_weight, config.bce_weight, config.dice_weight) == (1.0, 2.0, 0.5)


def test_the_full_scope_mixture_is_the_published_one(overrides: tuple[str, ...]) -> None:
    config = trainings(planned("glamm_fullscope", overrides))["fullscope"]
    shares: dict[str, Fraction] = defaultdict(Fraction)
    for name, kind in config.tasks.items():
        shares[name if kind == "gcg" else kind] += Fraction(config.mixture[name])
    total = sum(shares.values())

    assert shares["caption"] / total == Fraction("0.15")
    assert (shares["region"] + shares["region_group"]) / total == Fraction("0.40")
    for name, weight in SEGMENTS.items():
        assert shares[name] / total == Fraction("0.45") * Fraction(weight, sum(SEGMENTS.values()))


def test_the_gcg_mixture_is_the_published_one(overrides: tuple[str, ...]) -> None:
    config = trainings(planned("glamm_gcg", overrides))["gcg"]

    semantic = [config.mixture[name] for name in config.tasks]
    assert len(set(semantic)) == 1
    assert sum(semantic) == pytest.approx(3)
    grounded = [config.mixture[name] for name in ("refcocog_gcg", "psg_gcg", "flickr_gcg", "human_gcg")]
    assert grounded == [9, 9, 9, 1]
