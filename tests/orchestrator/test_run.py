import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import InputError, RecipeError, RunBusy, SurroundingsError
from orchestrator.plan import make_plan
from orchestrator.recipe import load_recipe
from orchestrator.run import Run, RunLock
from tests.toyplans import House, build_house, finish

ROOT = Path(__file__).parents[2]
TAKE = """
import sys, time
from pathlib import Path
from orchestrator.run import Run
lock = Run(Path(sys.argv[1])).lock("orch launch a recipe")
print("taken", flush=True)
time.sleep(60)
"""


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.syspath_prepend(str(tmp_path))
    return build_house(tmp_path)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """Makes a small working tree under git."""
    root = tmp_path / "tree"
    for name in ("orchestrator/__init__.py", "orchestrator/data/order.py", "recipes/a.yaml", "pyproject.toml", "NEWS"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("# first\n")
    (root / "orchestrator" / "__pycache__").mkdir()
    (root / "orchestrator" / "__pycache__" / "x.pyc").write_text("")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "first")
    return root


def git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def holder(directory: Path) -> subprocess.Popen[str]:
    """Starts another process that takes the run."""
    program = [sys.executable, "-c", TAKE, str(directory)]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.stdout is not None
    assert process.stdout.readline() == "taken\n"
    return process


def let_go(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_a_run_taken_by_another_process_is_refused_with_its_name(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    process = holder(run.directory)

    with pytest.raises(RunBusy) as caught:
        run.lock("orch launch")
    found = run.holder()
    let_go(process)

    assert found is not None
    assert found["pid"] == process.pid
    for told in (f"process {process.pid}", found["host"], found["user"], "orch launch a recipe", "started by"):
        assert told in str(caught.value)


def test_what_a_killed_holder_wrote_keeps_nobody_waiting(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    let_go(holder(run.directory))

    assert json.loads((run.directory / "lock").read_text())["command"] == "orch launch a recipe"
    assert run.holder() is None
    with run.lock("orch resume"):
        assert (run.holder() or {})["command"] == "orch resume"
    assert run.holder() is None


def test_a_lock_is_handed_over_without_a_gap(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    lock = run.lock("orch launch")
    program = (
        "import sys; from pathlib import Path; from orchestrator.run import RunLock\n"
        "lock = RunLock.adopt(Path(sys.argv[1]), int(sys.argv[2]), 'supervisor'); print('adopted', flush=True)\n"
        "sys.stdin.readline()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(run.directory), str(lock.fileno())],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=(lock.fileno(),),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "adopted\n"
    lock.close()

    assert (run.holder() or {})["command"] == "supervisor"
    with pytest.raises(RunBusy, match="supervisor"):
        run.lock("orch launch")
    process.communicate("\n")
    assert run.holder() is None


def test_a_closed_lock_has_no_descriptor(tmp_path: Path) -> None:
    lock = Run(tmp_path).lock("orch launch")
    lock.close()
    lock.close()

    with pytest.raises(ValueError, match="closed"):
        lock.fileno()
    assert isinstance(Run(tmp_path).lock("again"), RunLock)


def test_a_prepared_run_holds_all_that_stages_need(house: House, code: Path) -> None:
    run = Run(house.run_dir)
    plan = house.plan()

    run.prepare(plan, code)

    assert sorted(path.name for path in run.directory.iterdir()) == [
        "align", "captions", "code", "plan.json", "recipe.yaml", "score", "tune",
    ]  # fmt: skip
    assert run.stage_document("tune")["fingerprint"] == plan.stages[2].fingerprint
    assert [stage["name"] for stage in run.plan_document()["stages"]] == ["captions", "align", "tune", "score"]
    assert sorted(path.name for path in (run.directory / "code").iterdir()) == [
        "COMMIT", "orchestrator", "pyproject.toml", "recipes",
    ]  # fmt: skip
    assert not list((run.directory / "code").rglob("*.pyc"))


def test_launching_the_recipe_of_the_run_folder_plans_the_same(house: House, code: Path) -> None:
    override = "stages.tune.config.train.optim.lr=3e-5"
    Run(house.run_dir).prepare(house.plan(override), code)
    for stage in house.plan(override).stages:
        finish(stage)

    again = make_plan(load_recipe(house.run_dir / "recipe.yaml"), house.catalog, house.run_dir)

    assert {stage.name: stage.fingerprint for stage in again.stages} == house.fingerprints(override)
    assert {stage.action for stage in again.stages} == {"reuse"}


def test_the_snapshot_names_its_commit_and_what_was_changed_since(house: House, code: Path) -> None:
    run = Run(house.run_dir)
    run.prepare(house.plan(), code, require_clean=True)
    clean = json.loads((run.directory / "code" / "COMMIT").read_text())
    (code / "orchestrator" / "data" / "order.py").write_text("# second\n")
    (code / "orchestrator" / "new.py").write_text("# new\n")

    run.prepare(house.plan(), code)

    assert clean == {"commit": git(code, "rev-parse", "HEAD"), "dirty": False, "diff": None}
    dirty = json.loads((run.directory / "code" / "COMMIT").read_text())
    assert dirty == {"commit": clean["commit"], "dirty": True, "diff": "changes.diff"}
    assert "+# second" in (run.directory / "code" / "changes.diff").read_text()
    assert (run.directory / "code" / "orchestrator" / "new.py").read_text() == "# new\n"


def test_require_clean_refuses_changed_code_before_anything_is_written(house: House, code: Path) -> None:
    (code / "NEWS").write_text("not part of a run\n")
    Run(house.place / "runs" / "fine").prepare(house.plan(), code, require_clean=True)
    (code / "recipes" / "a.yaml").write_text("changed\n")

    with pytest.raises(InputError, match=r"differs from commit .*recipes/a\.yaml"):
        Run(house.run_dir).prepare(house.plan(), code, require_clean=True)

    assert not house.run_dir.exists()


def test_code_outside_of_git_is_copied_and_says_so(house: House, code: Path) -> None:
    shutil.rmtree(code / ".git")
    Run(house.run_dir).prepare(house.plan(), code)

    assert json.loads((house.run_dir / "code" / "COMMIT").read_text()) == {"commit": None, "dirty": False, "diff": None}
    with pytest.raises(InputError, match="not under git"):
        Run(house.run_dir).prepare(house.plan(), code, require_clean=True)


def test_code_that_is_edited_between_plan_and_launch_is_refused(house: House) -> None:
    plan = house.plan()
    tree = house.place / "tree"
    shutil.copytree(ROOT / "orchestrator", tree / "orchestrator", ignore=shutil.ignore_patterns("__pycache__"))
    world = tree / "orchestrator" / "world.py"
    world.write_text(world.read_text() + "\nLATE = 1\n")

    with pytest.raises(SurroundingsError, match=r"world\.py was edited while"):
        Run(house.run_dir).prepare(plan, tree)

    assert not (house.run_dir / "code").exists()
    assert not (house.run_dir / "recipe.yaml").exists()
    assert list(house.run_dir.iterdir()) == []


def test_a_plan_with_faults_is_not_prepared(house: House, code: Path) -> None:
    plan = house.plan("stages.captions.config.root=/none/such")

    with pytest.raises(RecipeError, match="/none/such does not exist"):
        Run(house.run_dir).prepare(plan, code)

    assert not house.run_dir.exists()


def test_runs_that_is_a_file_is_told_as_such(house: House, code: Path) -> None:
    (house.place / "runs").write_text("a file")

    with pytest.raises(SurroundingsError, match="is a file, needs a folder"):
        Run(house.run_dir).lock("orch launch")
    with pytest.raises(SurroundingsError, match="is a file, needs a folder"):
        Run(house.run_dir).prepare(house.plan(), code)


READ_ONLY = """
import sys
from pathlib import Path
import tests.toyplans as toyplans
from orchestrator.errors import SurroundingsError
from orchestrator.run import Run
place = Path(sys.argv[1])
house = toyplans.build_house(place)
try:
    Run(house.run_dir).prepare(house.plan(), Path(sys.argv[2]))
except SurroundingsError as error:
    print(error)
"""


def in_mount(place: Path, code: Path, options: str) -> subprocess.CompletedProcess[str]:
    """Prepares a run in a file system of its own, mounted in a namespace that ends with the process."""
    (place / "runs").mkdir(parents=True)
    mount = f"mount -t tmpfs -o {options} tmpfs {place}/runs"
    command = f'{mount} && exec "{sys.executable}" -c "$PROGRAM" {place} {code} && ls -A {place}/runs'
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", command], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PROGRAM": READ_ONLY},
    )  # fmt: skip


@pytest.mark.needs("root")
@pytest.mark.parametrize(("options", "message"), [("ro", "Read-only file system"), ("size=64k", "no space left")])
def test_a_file_system_that_takes_no_writes_is_told_as_such(
    tmp_path: Path, code: Path, options: str, message: str
) -> None:
    (code / "orchestrator" / "big.py").write_text("#" * 100_000)

    done = in_mount(tmp_path / "mounted", code, options)
    if "mount:" in done.stderr or "unshare" in done.stderr:
        pytest.skip("needs the right to mount")

    assert message in done.stdout, done.stderr


KILL = """
import os, signal, sys
from pathlib import Path
import tests.toyplans as toyplans
from orchestrator import artifacts
from orchestrator.run import Run
house = toyplans.build_house(Path(sys.argv[1]))
plan = house.plan()
calls = 0
def audit(event, arguments):
    global calls
    if event in ("os.rename", "os.mkdir", "open"):
        calls += 1
        if calls == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(audit)
Run(house.run_dir).prepare(plan, Path(sys.argv[2]))
print("whole")
"""


@pytest.mark.parametrize("moment", [1, 5, 12, 20, 28, 34, 37, 39])
def test_a_launch_killed_at_any_moment_leaves_no_run_that_looks_whole(tmp_path: Path, code: Path, moment: int) -> None:
    place = tmp_path / "house"
    place.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", KILL, str(place), str(code), str(moment)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    run_dir = place / "runs" / "toy"

    assert (run_dir / "recipe.yaml").exists() == (done.stdout == "whole\n")
    for path in run_dir.rglob("*.json"):
        json.loads(path.read_text())
    with Run(run_dir).lock("orch launch"):
        house = build_house(tmp_path / "again")
        house.place = place
        Run(run_dir).prepare(make_plan(load_recipe(place / "recipe.yaml"), house.catalog, run_dir), code)
    assert load_recipe(run_dir / "recipe.yaml").name == "toy"
    assert not list(run_dir.glob(".code.*"))


def test_an_unknown_run_is_answered_with_those_that_exist(house: House, code: Path) -> None:
    runs = house.place / "runs"
    Run(house.run_dir).prepare(house.plan(), code)
    (runs / "not_a_run").mkdir()

    assert Run.find("toy", runs).directory == house.run_dir
    assert Run.find(str(house.run_dir)).directory == house.run_dir
    with pytest.raises(InputError, match=r"did you mean 'toy'.*runs in .*: toy$"):
        Run.find("toi", runs)
    with pytest.raises(InputError, match="there are no runs in"):
        Run.find("toy", house.place / "none")


def test_a_stage_that_was_not_prepared_is_named(house: House, code: Path) -> None:
    run = Run(house.run_dir)
    run.prepare(house.plan(), code)

    with pytest.raises(InputError, match=r"nobody/stage\.json does not exist"):
        run.stage_document("nobody")
