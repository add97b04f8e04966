"""What the documents promise: links lead somewhere, commands parse, stages and make targets exist."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from orchestrator.cli import app
from orchestrator.plan import Catalog, make_plan
from orchestrator.recipe import load_recipe
from stages import FAMILIES, STAGES

ROOT = Path(__file__).parents[2]
ROOMS = ("orchestrator", "stages", "slurm", "recipes", "tests", "benchmarks")
PAGES = sorted([*ROOT.glob("*.md"), *(page for room in ROOMS for page in (ROOT / room).rglob("*.md"))])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def command_lines(page: Path) -> list[str]:
    blocks = [text for language, text in BLOCK.findall(page.read_text(encoding="utf-8")) if language == "sh"]
    lines = [line.partition(" #")[0].strip() for text in blocks for line in text.splitlines()]
    return [line for line in lines if line]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    targets = [link.partition("#")[0] for link in LINK.findall(page.read_text(encoding="utf-8"))]

    missing = [link for link in targets if link and "://" not in link and not (page.parent / link).exists()]

    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_orch_command_of_a_page_parses(page: Path) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    for line in command_lines(page):
        words = shlex.split(line)
        if words[0].rpartition("/")[2] != "orch":
            continue
        command, rest = group.commands.get(words[1]), words[2:]
        if isinstance(command, TyperGroup):
            command, rest = command.commands.get(rest[0]), rest[1:]
        assert command is not None, f"{line}: there is no such command"
        command.make_context(line, [word for word in rest if word != "&"])  # raises if it does not parse


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_make_target_of_a_page_exists(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))

    used = {words[1] for line in command_lines(page) if (words := shlex.split(line))[0] == "make" and len(words) > 1}

    assert used <= targets


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "recipes" / "README.md"], ids=named)
def test_every_recipe_of_a_page_plans(page: Path, tmp_path: Path) -> None:
    recipes = [text for language, text in BLOCK.findall(page.read_text(encoding="utf-8")) if language == "yaml"]
    assert recipes
    for text in recipes:
        (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")

        plan = make_plan(
            load_recipe(tmp_path / "recipe.yaml", []), Catalog(stages=STAGES, families=FAMILIES), tmp_path / "run"
        )

        # the folders it names are somebody else's: they, and nothing else, may be missing
        assert {fault.key.rpartition(".")[2] for fault in plan.faults} <= {"root", "model"}


def test_the_readme_names_every_command() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    assert [name for name in group.commands if f"orch {name}" not in text] == []


def test_the_readme_of_the_stages_names_every_stage() -> None:
    text = (ROOT / "stages" / "README.md").read_text(encoding="utf-8")

    assert [name for name in STAGES if f"`{name}`" not in text] == []


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_page(room: str) -> None:
    first = (ROOT / room / "README.md").read_text(encoding="utf-8").splitlines()[0]

    assert first.startswith("# ")


def test_every_pinned_version_is_exact() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()

    pins = [line for line in lines if line and not line.startswith("#")]

    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []
    assert "torch==2.13.0" in pins


def test_every_dependency_is_pinned() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {re.split(r"[\[<>=!~]", name)[0].lower() for name in wanted}
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}

    assert names - pinned == set()
