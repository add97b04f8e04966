"""What the commands answer, above all to mistakes."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

COUNT = {"first": {"stage": "count"}}


def test_help_answers_at_once(orch: Any) -> None:
    durations = []
    for _ in range(3):
        begun = time.monotonic()
        orch("--help")
        durations.append(time.monotonic() - begun)

    assert min(durations) < 1.5  # with torch it would be many seconds


def commands(group: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields every command with the text of its help."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} ")
        else:
            yield f"{prefix}{name}", command.help or ""


def test_every_command_has_help_with_an_example() -> None:
    from orchestrator.cli import app

    known = dict(commands(typer.main.get_command(app)))

    assert {"plan", "doctor", "data peek", "cluster up"} <= set(known)
    assert [name for name, text in known.items() if f"Example: orch {name}" not in text] == []


def test_planning_imports_nothing_heavy(orch: Any) -> None:
    recipe = orch.recipe(COUNT)
    code = (
        "import sys; from pathlib import Path; from orchestrator import session; "
        f"session.make_plan(Path({str(recipe)!r}), []); import orchestrator.display, orchestrator.start; "
        "print([m for m in ('torch', 'deepspeed', 'mlflow', 'transformers', 'webdataset') if m in sys.modules])"
    )

    assert orch.python("-c", code).stdout.strip() == "[]"


def test_plan_shows_what_would_be_done_and_starts_nothing(orch: Any) -> None:
    recipe = orch.recipe(COUNT)
    shown = orch("plan", recipe)

    assert "first" in shown.stdout
    assert "run" in shown.stdout
    assert "code = the statements of" in shown.stdout
    assert not orch.run_folder.exists()


def test_plan_says_what_changed(orch: Any) -> None:
    recipe = orch.recipe(COUNT)
    orch("launch", recipe)
    shown = orch("plan", recipe, "stages.first.config.steps=7", "stages.first.config.save_every=3")
    document = orch.json("plan", recipe, "stages.first.config.steps=7")

    assert "config.steps: 5 → 7 (+1 more)" in shown.stdout
    (stage,) = document["stages"]
    assert (stage["action"], stage["steps"]) == ("run", 7)
    assert stage["changes"] == [{"key": "config.steps", "was": "5", "is": "7"}]


def test_plan_json_has_the_keys_of_the_interface(orch: Any) -> None:
    document = orch.json("plan", orch.recipe(COUNT))

    assert document["valid"] is True
    assert "tests.toychain:Count" in document["stages"][0]["code"]
    assert {"recipe", "run", "valid", "stages"} <= document.keys()
    assert {
        "name", "stage", "after", "action", "reason", "changes", "from_step", "steps", "fingerprint", "resources",
        "memory_gb_per_gpu", "gpu_hours",
    } <= document["stages"][0].keys()  # fmt: skip


def test_status_json_has_the_keys_of_the_interface(orch: Any) -> None:
    orch("launch", orch.recipe(COUNT))
    document = orch.json("status", "toy")

    assert {"run", "recipe", "state", "mlflow_run_id", "goodput", "stages"} <= document.keys()
    (stage,) = document["stages"]
    assert {
        "name", "state", "reason", "step", "steps", "eta_s", "fingerprint", "mlflow_run_id", "outputs", "attempts",
    } <= stage.keys()  # fmt: skip
    assert (stage["step"], stage["steps"]) == (5, 5)
    assert stage["outputs"].keys() == {"value"}
    (attempt,) = stage["attempts"]
    assert attempt.keys() >= {
        "number", "launcher", "job_id", "nodes", "started", "ended", "state", "cause", "detail", "from_step", "to_step",
    }  # fmt: skip


def test_all_faults_of_a_recipe_are_told_at_once_with_their_keys(orch: Any) -> None:
    recipe = orch.recipe(
        {"first": {"stage": "cuont"}, "second": {"stage": "count", "config": {"stepps": 3, "save_every": "often"}}}
    )
    shown = orch("launch", recipe, code=2)
    document = orch.json("plan", recipe, code=2)

    for key in ("stages.first.stage", "stages.second.config.stepps", "stages.second.config.save_every"):
        assert key in shown.stderr
        assert key in {fault["key"] for fault in document["faults"]}
    assert document["valid"] is False
    assert not orch.run_folder.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["plan", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["launch", "recipe.yaml", "--on", "mars"], 2, "mars"),
        (["launch", "recipe.yaml", "stages.first.config.stepps=3"], 2, "stages.first.config.stepps"),
        (["launch", "recipe.yaml", "nonsense"], 2, "KEY=VALUE"),
        (["launch", "recipe.yaml", "--name", "../up"], 2, "name"),
        (["resume", "nothing"], 2, "nothing"),
        (["status", "nothing"], 2, "nothing"),
        (["status"], 2, "there is no run"),
        (["logs", "nothing", "first"], 2, "nothing"),
        (["cancel", "nothing"], 2, "nothing"),
        (["stages", "cuont"], 2, "did you mean 'count'"),
        (["plan"], 2, "RECIPE"),
        (["plan", "recipe.yaml", "--jsno"], 2, "--json"),
        (["conjure"], 2, "conjure"),
    ],
)
def test_mistakes_are_told_in_words(orch: Any, arguments: list[str], code: int, words: str) -> None:
    orch.recipe(COUNT)

    assert words in orch(*arguments, code=code).stderr


def test_a_run_folder_that_is_a_file_is_told_in_words(orch: Any) -> None:
    (orch.folder / "runs").write_text("not a folder", encoding="ascii")
    shown = orch.start("launch", orch.recipe(COUNT))
    _, errors = shown.communicate(timeout=30)

    assert shown.returncode == 3
    assert errors == "orch: runs/toy cannot be a run folder: runs is a file, needs a folder\n"


def test_logs_names_what_there_is(orch: Any) -> None:
    orch("launch", orch.recipe(COUNT))

    assert "no attempt 7; it has 1" in orch("logs", "toy", "first", "--attempt", 7, code=2).stderr
    assert "no rank 3; it has 0" in orch("logs", "toy", "first", "--rank", 3, code=2).stderr
    assert "it has first" in orch("logs", "toy", "second", code=2).stderr


def test_logs_follow_a_stage_to_its_end(orch: Any) -> None:
    orch("launch", orch.recipe({"first": {"stage": "count", "config": {"steps": 5, "pause_s": 0.2}}}), "--detach")
    orch.pid("first")

    assert "done in" in orch("logs", "toy", "first", "--follow").stdout


def test_runs_lists_the_latest_first(orch: Any) -> None:
    orch("launch", orch.recipe(COUNT))
    orch("launch", orch.recipe(COUNT), "--name", "later")

    assert [run["run"] for run in orch.json("runs")] == ["runs/later", "runs/toy"]
    assert "1 of 1" in orch("runs").stdout


def test_stages_describes_every_key(orch: Any) -> None:
    described = orch.json("stages", "count")

    assert described["config"][0] == {"key": "steps", "type": "int", "required": False, "default": 5}
    assert described["outputs"] == {"value": "Report"}
    assert "config.save_every: int  = 2" in orch("stages", "count").stdout
    assert "Adds to the value it reads." in orch("stages").stdout
    assert {stage["name"] for stage in orch.json("stages")} == {"count", "add", "fail", "nap", "greet"}


def test_launch_json_is_the_status_at_the_end(orch: Any) -> None:
    document = orch.json("launch", orch.recipe(COUNT))

    assert document["state"] == "done"


def test_a_launched_recipe_can_be_launched_from_its_run_folder(orch: Any) -> None:
    orch("launch", orch.recipe(COUNT))
    document = orch.json("plan", orch.run_folder / "recipe.yaml")

    assert [stage["action"] for stage in document["stages"]] == ["reuse"]


def test_a_mistake_in_orch_itself_is_a_line_and_a_file(orch: Any, tmp_path: Path) -> None:
    (tmp_path / "broken_catalog.py").write_text("STAGES = 3\nFAMILIES = 4\n", encoding="ascii")
    shown = orch.python("-m", "orchestrator.cli", "stages", catalog="broken_catalog", path=tmp_path)

    assert shown.returncode == 1
    assert "Traceback" not in shown.stderr
    story = Path(shown.stderr.rpartition(" is in ")[2].strip(" )\n"))
    assert "Traceback" in story.read_text(encoding="utf-8")
    story.unlink()


def test_a_reader_that_leaves_ends_a_command_quietly(orch: Any) -> None:
    recipe = orch.recipe({f"stage{n}": {"stage": "count"} for n in range(400)})
    process = orch.start("plan", recipe, "--json")
    process.stdout.close()
    with process.stderr as stream:
        errors = stream.read()

    assert errors == ""
    assert process.wait(30) == 141  # as of any program that a pipe has ended; 1 would be a stage that failed


def test_a_reader_that_leaves_before_a_short_answer_is_no_mistake(orch: Any) -> None:
    process = orch.start("stages")
    process.stdout.close()
    with process.stderr as stream:
        errors = stream.read()

    assert errors == ""
    assert process.wait(30) == 141


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("status", "nothing"), "there is no run"),
        (("plan",), "RECIPE"),
        (("plan", "r.yaml", "--onn", "local"), "--on"),
        (("status", "--goodputt"), "--goodput"),
        (("data", "verify"), "PATH"),
    ],
)
def test_the_json_of_a_mistake_is_json(words: tuple[str, ...], said: str, orch: Any) -> None:
    shown = orch(*words, "--json", code=2)

    (fault,) = json.loads(shown.stdout)["faults"]
    assert said in fault["message"]
    assert shown.stderr == ""


def test_a_terminal_without_arrows_gets_an_answer_all_the_same(orch: Any) -> None:
    recipe = orch.recipe({"first": {"stage": "count"}})
    orch("launch", recipe)
    orch._environment["PYTHONIOENCODING"] = "ascii"

    assert "config.steps: 5 ? 9" in orch("plan", recipe, "stages.first.config.steps=9").stdout


@pytest.mark.parametrize("words", [("plan", "no.yaml", "--json"), ("stages", "--json"), ("stages",)])
def test_an_output_that_is_full_is_told_where_there_is_room(words: tuple[str, ...], orch: Any) -> None:
    with Path("/dev/full").open("w", encoding="ascii") as full:
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *words], cwd=orch.folder, env=orch._environment, stdout=full,
            stderr=subprocess.PIPE, text=True, timeout=180, check=False,
        )  # fmt: skip

    assert done.returncode in {2, 3}
    assert done.stderr.startswith("orch: ")
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_a_closed_output_is_no_mistake(orch: Any) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m orchestrator.cli stages >&-"], cwd=orch.folder, env=orch._environment,
        stderr=subprocess.PIPE, text=True, timeout=180, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")


def test_a_mistake_on_a_full_disk_is_still_told_in_a_line(orch: Any, tmp_path: Path) -> None:
    (tmp_path / "broken_catalog.py").write_text("STAGES = 3\nFAMILIES = 4\n", encoding="ascii")
    code = (
        "import sys, tempfile; tempfile.tempdir = '/proc/self'; sys.argv = ['orch', 'stages']; "
        "from orchestrator.cli import main; main()"
    )

    shown = orch.python("-c", code, catalog="broken_catalog", path=tmp_path)

    assert shown.returncode == 1
    assert "could not be written down" in shown.stderr
    assert "Traceback" not in shown.stderr
