"""The rules of the house that no linter knows: who imports whom, what planning may load, how large things may be."""

import ast
import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import errors
from stages import FAMILIES, STAGES

ROOT = Path(__file__).parents[2]
ROOMS = ("orchestrator", "stages", "slurm")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "base", "misc"}
LONGEST_FILE, LONGEST_FUNCTION = 300, 60
HEAVY = ("torch", "deepspeed", "mlflow", "webdataset", "transformers", "peft", "megatron")
PLANNING = (
    "orchestrator.cli", "orchestrator.recipe", "orchestrator.plan", "orchestrator.checks", "orchestrator.stage",
    "orchestrator.artifacts", "orchestrator.run", "orchestrator.launcher", "orchestrator.local",
    "orchestrator.training.config", "orchestrator.training.stage", "orchestrator.tracking.forwarder",
    "orchestrator.goodput", "orchestrator.vigil", "orchestrator.watch",
)  # fmt: skip


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)


def functions_of(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", (node.end_lineno or 0) - node.lineno + 1


def test_every_module_imports_only_what_its_room_may_know() -> None:
    program = Path(sys.executable).parent / "lint-imports"

    checked = subprocess.run([program], capture_output=True, text=True, cwd=ROOT, check=False)

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_planning_loads_nothing_heavy() -> None:
    code = f"import importlib, json, sys\nfor name in {PLANNING!r}: importlib.import_module(name)\n"

    done = run_python(code + f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_every_stage_a_recipe_can_name_exists_and_loads_nothing_heavy() -> None:
    targets = {target: name for name, target in STAGES.items()}
    code = (
        "import importlib, json, sys\nfrom orchestrator.stage import Stage\n"
        f"for target in {sorted(targets)!r}:\n"
        "    module, _, name = target.partition(':')\n"
        "    assert issubclass(getattr(importlib.import_module(module), name), Stage), target\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )

    done = run_python(code)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


@pytest.mark.needs("torch")
@pytest.mark.parametrize("target", sorted(FAMILIES.values()))
def test_every_family_answers_what_families_are_asked(target: str) -> None:
    module, _, name = target.partition(":")

    family = getattr(importlib.import_module(module), name)

    assert all(callable(getattr(family, asked)) for asked in ("load", "untrained", "export", "load_export"))


def test_every_exception_is_in_the_drawn_tree_with_its_exit_code() -> None:
    tree = errors.__doc__ or ""
    drawn = {}
    for line in tree.splitlines():
        words = line.replace("|--", " ").replace("`--", " ").replace("|", " ").split()
        if len(words) > 1 and words[0] in vars(errors):
            drawn[words[0]] = words[1]

    defined = {name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)}

    assert set(defined) == set(drawn)
    assert {name: code for name, code in drawn.items() if code != "-"} == {
        name: str(kind.exit_code) for name, kind in defined.items() if drawn[name] != "-"
    }


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [path for path in FILES if path.stem in FORBIDDEN_NAMES or path.parent.name in FORBIDDEN_NAMES] == []


def test_no_module_is_longer_than_a_person_reads() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}

    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_no_function_is_longer_than_a_screen() -> None:
    lengths = dict(entry for path in FILES for entry in functions_of(path))

    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION} == {}


def test_every_module_says_in_one_line_what_it_is_for() -> None:
    silent = [path for path in FILES if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]

    assert silent == []
