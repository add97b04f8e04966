"""Every recipe in recipes/ plans, and says what it misses, without loading torch."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
RECIPES = sorted((REPOSITORY / "recipes").rglob("*.yaml"))
FULL_SIZE = {path for path in RECIPES if "vars.models" in path.read_text(encoding="utf-8")}  # theirs is on a cluster

PLAN = """
import json, sys
from pathlib import Path
from orchestrator.plan import Catalog, plan_recipe
from stages import FAMILIES, STAGES
told = {}
for recipe in json.loads(sys.argv[1]):
    plan = plan_recipe(Path(recipe), sys.argv[2:], Catalog(stages=STAGES, families=FAMILIES))
    heavy = sorted({"torch", "deepspeed", "mlflow", "transformers", "webdataset", "numpy"} & set(sys.modules))
    told[recipe] = {"stages": [stage.name for stage in plan.stages],
                    "faults": [[fault.key, fault.message] for fault in plan.faults], "heavy": heavy}
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def plans() -> dict[str, dict[str, list[str]]]:
    """Plans every recipe, all of them in one process of their own."""
    return planned(RECIPES)


def planned(recipes: Sequence[Path], *overrides: str) -> dict[str, dict[str, list[str]]]:
    done = subprocess.run(
        [sys.executable, "-c", PLAN, json.dumps([str(recipe) for recipe in recipes]), *overrides],
        cwd=REPOSITORY,
        text=True,
        capture_output=True,
        check=True,
        timeout=300,
    )
    answer: dict[str, dict[str, list[str]]] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_recipe_plans_and_loads_nothing_heavy(recipe: Path, plans: dict[str, dict[str, list[str]]]) -> None:
    plan = plans[str(recipe)]

    assert plan["stages"]
    assert plan["heavy"] == []
    if recipe not in FULL_SIZE:
        assert plan["faults"] == []


@pytest.mark.parametrize("recipe", sorted(FULL_SIZE), ids=lambda path: path.stem)
def test_a_full_size_recipe_names_missing_paths_and_nothing_else(
    recipe: Path, plans: dict[str, dict[str, list[str]]]
) -> None:
    faults = plans[str(recipe)]["faults"]

    assert faults
    assert all("does not exist" in message for _, message in faults)


def test_glamm_full_names_every_missing_path(plans: dict[str, dict[str, list[str]]]) -> None:
    plan = plans[str(REPOSITORY / "recipes" / "glamm_full.yaml")]

    keys = {fault[0] for fault in plan["faults"]}
    sources = ("captions", "regions", "refcocog", "psg", "flickr", "human", "pix2cap", "held_out")
    assert keys == {f"stages.{name}.config.root" for name in sources} | {
        f"stages.align.config.model.{part}.path" for part in ("language", "vision", "grounding")
    }


def test_what_the_nodes_of_a_stage_cannot_do_is_a_fault_of_the_plan() -> None:
    recipe = REPOSITORY / "recipes" / "tiny" / "glamm.yaml"

    plan = planned([recipe], "stages.gcg.config.train.engine.precision=fp16")[str(recipe)]

    (fault,) = plan["faults"]

    assert fault[0] == "stages.gcg.config.train.engine.precision"
    assert "resources.gpus_per_node: 0" in fault[1]
