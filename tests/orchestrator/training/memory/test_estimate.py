"""What `orch plan` says of memory, cost and failures: asked once, without torch where the planning is done."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.artifacts import Shards
from orchestrator.drafts import Catalog
from orchestrator.errors import Fault
from orchestrator.hardware import Hardware
from orchestrator.interval import best_interval_s, expected_goodput
from orchestrator.local import LocalLauncher
from orchestrator.outlook import look_ahead
from orchestrator.plan import Plan, plan_recipe
from orchestrator.training.memory import asking
from orchestrator.training.memory.estimate import estimate_plan
from orchestrator.training.memory.telling import advice_lines, costs_in_words
from tests import toysitting

ROOT = Path(__file__).parents[4]
BIG = Hardware(memory_gb_per_gpu=80, tflops_per_gpu=100, utilisation=0.5, node_mtbf_hours=1000, storage_gb_per_s=1)
CATALOG = Catalog(stages=toysitting.STAGES, families={})


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Is the cache of all tests here: what is the same for all is asked about once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(kept: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))
    return kept / "orch" / "memory"


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "orch" / "memory"


def stage(kind: str = "train", *, gpus: int = 8, **train: Any) -> dict[str, Any]:
    return {
        "stage": kind, "inputs": {"shards": {"letters": "./nowhere/"}},
        "config": {
            "mixture": {}, "train": {"steps": 100, "global_batch": 64, "optim": {"lr": 1e-3}, **train},
        },
        "resources": {"gpus_per_node": gpus},
    }  # fmt: skip


def planned(folder: Path, stages: Mapping[str, Any]) -> Plan:
    (folder / "nowhere").mkdir(exist_ok=True)
    for entry in stages.values():
        entry["inputs"]["shards"]["letters"] = str(folder / "nowhere") + "/"
    shards(folder / "nowhere")
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"name": "toy", "runs": str(folder / "runs"), "stages": dict(stages)}))
    plan = plan_recipe(recipe, [], CATALOG)
    plan.check()
    return plan


class Place(LocalLauncher):
    """This machine, with GPUs that it does not have."""

    def hardware(self) -> Hardware:
        return BIG

    def check(self, plan: Plan) -> list[Fault]:
        del plan
        return []


def shards(folder: Path) -> None:
    if not Shards(folder).ready():
        Shards(folder).commit("f" * 64, facts={"samples": 1000})


def test_a_stage_that_describes_itself_has_an_estimate_and_others_have_none(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"told": stage(), "untold": stage("silent")})

    found, note = estimate_plan(plan, BIG)

    assert (found.keys(), note) == ({"told"}, "")
    told = found["told"]
    assert told.fits is True
    assert told.memory.weights > 0
    assert {"blocks.0", "blocks.1", "other"} <= told.parts.keys()
    assert sum(told.parts.values()) == pytest.approx(told.memory.activations, rel=0.2)
    assert [str(words) for words in costs_in_words(None)] == ["-", "-", "-"]


def test_the_json_of_a_plan_carries_the_numbers(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"told": stage(), "untold": stage("silent")})
    told, untold = look_ahead(plan, Place()).document()["stages"]

    assert told["memory_gb_per_gpu"] == told["estimate"]["memory"]["total_gb"] > 0
    assert told["gpu_hours"] == told["estimate"]["gpu_hours"] > 0
    assert told["estimate"]["gpu_hours_with_failures"] > told["estimate"]["gpu_hours"]
    assert (untold["memory_gb_per_gpu"], untold["estimate"]) == (None, None)
    json.dumps([told, untold])


def test_gpu_hours_are_operations_over_what_gpus_reach(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"told": stage()})
    fast = Hardware(tflops_per_gpu=200, utilisation=0.5)

    (slow_found, _), (fast_found, _) = estimate_plan(plan, BIG), estimate_plan(plan, fast)

    slow, quick = slow_found["told"], fast_found["told"]
    assert slow.rate_from == "computed"
    assert slow.step_s == pytest.approx(2 * quick.step_s)
    assert slow.gpu_hours == pytest.approx(slow.step_s * 100 / 3600 * 8)
    assert quick.goodput is None  # nobody says how often its nodes fail


@pytest.mark.parametrize("in_background", [True, False])
def test_goodput_is_that_of_saving_as_the_recipe_says(tmp_path: Path, in_background: bool) -> None:  # noqa: FBT001 - a case
    plan = planned(tmp_path, {"told": stage(save={"every_steps": 50, "in_background": in_background})})

    told = estimate_plan(plan, BIG)[0]["told"]

    size_gb = told.memory.optimizer * 8 / 1e9  # of eight ranks, masters and moments
    stall_s, save_s, mtbf_s = size_gb / 8 / 10, size_gb, 3_600_000
    lost_s = 300 + save_s if in_background else 300
    still_s = stall_s if in_background else save_s
    assert told.step_s is not None
    assert told.goodput == pytest.approx(expected_goodput(still_s, mtbf_s, lost_s, 50 * told.step_s), rel=1e-3)
    assert told.best_every_steps == pytest.approx(best_interval_s(still_s, mtbf_s) / told.step_s, rel=1e-2)


def test_goodput_goes_by_what_the_last_save_cost(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"told": stage(save={"every_steps": 50})})
    folder = plan.directory / "told"
    folder.mkdir(parents=True)
    (folder / "journal.jsonl").write_text('{"event": "saved", "step": 50, "stall_s": 4.0, "save_s": 90.0}\n')

    told = estimate_plan(plan, BIG)[0]["told"]

    assert told.step_s is not None
    assert told.goodput == pytest.approx(expected_goodput(4.0, 3_600_000, 390, 50 * told.step_s))


def test_an_earlier_attempt_in_the_run_says_how_fast_it_is(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"told": stage()})
    folder = plan.directory / "told"
    folder.mkdir(parents=True)
    (folder / "stage.json").write_text(json.dumps(plan.stages[0].document()))
    lines = [{"event": "metrics", "step": n, "values": {"samples_per_s": rate}} for n, rate in enumerate((30, 32, 90))]
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    told = estimate_plan(plan, BIG)[0]["told"]
    other = estimate_plan(planned(tmp_path, {"told": stage(gpus=4)}), BIG)[0]["told"]

    assert (told.rate_from, told.step_s) == ("measured", 64 / 32)
    assert other.rate_from == "computed"  # on other GPUs it was not measured


def test_a_stage_that_does_not_fit_is_told_the_cheapest_setting_that_does(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"told": stage(engine={"zero_stage": 3, "bucket_elements": 1000})})
    needs = estimate_plan(plan, BIG)[0]["told"].memory.total

    # room for half of what its activations need
    told = estimate_plan(plan, Hardware(memory_gb_per_gpu=(needs - 0.5 * activations(plan)) / 1e9))[0]["told"]

    assert told.fits is False
    assert told.advice is not None
    assert told.advice.changes.keys() == {"config.train.micro_batch"}
    assert told.advice.changes["config.train.micro_batch"] in {1, 2, 4}
    assert told.advice.memory.total <= needs - 0.5 * activations(plan)
    (line,) = advice_lines({"told": told})
    assert "stages.told.config.train.micro_batch=" in line


def activations(plan: Plan) -> float:
    return estimate_plan(plan, BIG)[0]["told"].memory.activations


def test_where_nothing_fits_the_least_is_said(tmp_path: Path) -> None:
    told = estimate_plan(planned(tmp_path, {"told": stage()}), Hardware(memory_gb_per_gpu=0.001))[0]["told"]

    assert told.advice is not None
    assert not told.advice.changes
    (line,) = advice_lines({"told": told})
    assert "the least is" in line


def test_a_thousand_equal_stages_are_asked_about_once_and_then_never_again(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Hardware(memory_gb_per_gpu=0.001, tflops_per_gpu=1, node_mtbf_hours=1)
    plan = planned(tmp_path, {f"s{number}": stage() for number in range(1000)})

    found, note = estimate_plan(plan, small)
    monkeypatch.setattr(asking, "PROGRAM", "no_such_module")  # whoever asked a child now would hear nothing
    again, silence = estimate_plan(plan, small)

    assert (len(found), note, silence) == (1000, "", "")
    assert len(list(empty_cache.glob("*.json"))) == 2  # and that it cannot compute activations again
    assert again == found


def test_planning_and_estimating_load_nothing_heavy(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"told": stage()})
    code = (
        "import sys\nfrom pathlib import Path\nfrom orchestrator.drafts import Catalog\nfrom tests import toysitting\n"
        "from orchestrator.hardware import Hardware\nfrom orchestrator.plan import plan_recipe\n"
        "from orchestrator.outlook import look_ahead\n"
        f"plan = plan_recipe(Path({str(plan.directory.parents[1] / 'recipe.yaml')!r}), [], "
        "Catalog(stages=toysitting.STAGES, families={}))\n"
        "estimate, = look_ahead(plan, None).estimates.values()\n"
        "assert estimate.memory.total > 0\n"
        "print(sorted({'torch', 'deepspeed', 'numpy', 'transformers', 'mlflow'} & set(sys.modules)))"
    )
    estimate_plan(plan, BIG)  # whoever measures is another process in any case
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_without_torch_a_plan_is_shown_all_the_same_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    monkeypatch.setattr(asking, "PROGRAM", "no_such_module")

    found, note = estimate_plan(planned(tmp_path, {"told": stage()}), BIG)

    assert found == {}
    assert "not estimated" in note
    assert "no_such_module" in note


def test_a_damaged_answer_in_the_cache_is_asked_for_again(tmp_path: Path, empty_cache: Path) -> None:
    plan = planned(tmp_path, {"told": stage()})
    first, _ = estimate_plan(plan, BIG)
    for path in empty_cache.glob("*.json"):
        path.write_text('{"numels": 3}')

    again, _ = estimate_plan(plan, BIG)

    assert again["told"].memory == first["told"].memory


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"memory_gb_per_gpu": 0.0}, "memory_gb_per_gpu"),
        ({"tflops_per_gpu": -1.0}, "tflops_per_gpu"),
        ({"utilisation": 1.2}, "utilisation"),
        ({"node_mtbf_hours": float("nan")}, "node_mtbf_hours"),
        ({"restart_s": -1.0}, "restart_s"),
        ({"storage_gb_per_s": 0.0}, "storage_gb_per_s"),
    ],
)
def test_hardware_that_cannot_be_is_refused(changes: dict[str, float], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Hardware(**changes)
