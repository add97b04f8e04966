"""Every recipe in recipes/ plans, and says what it misses, without loading torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
RECIPES = sorted((REPOSITORY / "recipes").rglob("*.yaml"))
WITHOUT_DATA = {"glamm_full"}  # full size: the data and the weights are on a cluster

PLAN = """
import json, sys
from pathlib import Path
from orchestrator.plan import Catalog, plan_recipe
from stages import FAMILIES, STAGES
plan = plan_recipe(Path(sys.argv[1]), sys.argv[2:], Catalog(stages=STAGES, families=FAMILIES))
heavy = sorted({"torch", "deepspeed", "mlflow", "transformers", "webdataset", "numpy"} & set(sys.modules))
print(json.dumps({"stages": [stage.name for stage in plan.stages],
                  "faults": [[fault.key, fault.message] for fault in plan.faults], "heavy": heavy}))
"""


def planned(recipe: Path, *overrides: str) -> dict[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", PLAN, str(recipe), *overrides],
        cwd=REPOSITORY,
        text=True,
        capture_output=True,
        check=True,
        timeout=60,
    )
    answer: dict[str, list[str]] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_recipe_plans_and_loads_nothing_heavy(recipe: Path) -> None:
    plan = planned(recipe)

    assert plan["stages"]
    assert plan["heavy"] == []
    if recipe.stem not in WITHOUT_DATA:
        assert plan["faults"] == []


def test_the_full_size_recipe_names_every_missing_path_and_nothing_else() -> None:
    plan = planned(REPOSITORY / "recipes" / "glamm_full.yaml")

    keys = {fault[0] for fault in plan["faults"]}
    sources = ("captions", "regions", "refcocog", "psg", "flickr", "human", "pix2cap", "held_out")
    assert keys == {f"stages.{name}.config.root" for name in sources} | {
        f"stages.align.config.model.{part}.path" for part in ("language", "vision", "grounding")
    }
    assert all("does not exist" in fault[1] for fault in plan["faults"])


def test_what_the_nodes_of_a_stage_cannot_do_is_a_fault_of_the_plan() -> None:
    recipe = REPOSITORY / "recipes" / "tiny" / "glamm.yaml"

    (fault,) = planned(recipe, "stages.gcg.config.train.engine.precision=fp16")["faults"]

    assert fault[0] == "stages.gcg.config.train.engine.precision"
    assert "resources.gpus_per_node: 0" in fault[1]
