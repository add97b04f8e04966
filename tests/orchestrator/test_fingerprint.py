import ast
import importlib.util
from pathlib import Path

import pytest

from orchestrator.fingerprint import NEUTRAL, sources_of
from orchestrator.imports import digest
from orchestrator.plan import Catalog, make_plan
from orchestrator.recipe import load_recipe
from tests.toyplans import House, build_house

HEAVY = {"torch", "numpy", "random", "deepspeed", "transformers", "webdataset"}


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.syspath_prepend(str(tmp_path))
    return build_house(tmp_path)


def changed(house: House, *overrides: str, before: dict[str, str]) -> set[str]:
    """Returns the stages whose fingerprints are not what they were."""
    return {name for name, fingerprint in house.fingerprints(*overrides).items() if fingerprint != before[name]}


def test_the_same_recipe_has_the_same_fingerprints_from_any_folder(
    house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = house.fingerprints()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    assert changed(house, before=before) == set()


@pytest.mark.parametrize(
    "text",
    [
        '"""Losses, said otherwise."""\n\n\ndef loss(x):\n    """Returns it."""\n    return 2.0 * x\n',
        "# a comment\ndef loss(x):\n    # and another\n\n    return (2.0 *\n            x)\n",
        "from typing import TYPE_CHECKING\n",
    ],
    ids=["docstring", "comment and layout", "statement"],
)
def test_comments_docstrings_and_layout_change_nothing_but_statements_do(house: House, text: str) -> None:
    before = house.fingerprints()
    house.module("inner/losses").write_text(text)

    expected = {"align", "tune", "score"} if "import" in text else set()
    assert changed(house, before=before) == expected


@pytest.mark.parametrize(
    ("module", "text", "expected"),
    [
        ("inner/losses", "def loss(x):\n    return 2.5 * x\n", {"align", "tune", "score"}),
        ("inner/__init__", "SCALE = 2\n", {"align", "tune", "score"}),
        ("__init__", "import os\n", {"captions", "align", "tune", "score"}),
        ("sources/coco", "def read():\n    return 3\n", {"captions", "align", "tune", "score"}),
        ("sources/grand", "def read():\n    return 3\n", set()),
        ("family", "class Toy:\n    size = 2\n", {"score"}),
    ],
)
def test_changed_code_concerns_the_stages_that_run_it_and_those_after_them(
    house: House, module: str, text: str, expected: set[str]
) -> None:
    before = house.fingerprints()
    house.module(module).write_text(text)

    assert changed(house, before=before) == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stages.tune.config.train.steps=11", {"tune", "score"}),
        ("stages.tune.config.train.steps=10", set()),
        ("stages.tune.config.train.log_every=99", set()),
        ("stages.tune.resources.nodes=4", set()),
        ("tracking.uri=null", set()),
        ("name=another", set()),
        ("runs=elsewhere", set()),
        ("seed=2", {"captions", "align", "tune", "score"}),
        ("stages.captions.config.source=grand", {"captions", "align", "tune", "score"}),
        ("stages.tune.inputs.shards.captions=captions.rest", {"tune", "score"}),
    ],
)
def test_only_what_can_change_the_result_changes_the_fingerprint(
    house: House, override: str, expected: set[str]
) -> None:
    before = house.fingerprints()

    assert changed(house, override, before=before) == expected


def test_what_a_stage_names_outside_the_recipe_counts(house: House) -> None:
    (house.place / "raw").mkdir()
    override = f"stages.captions.config.root={house.place / 'raw'}"
    before = house.fingerprints(override)
    (house.place / "raw" / "image.jpg").write_text("new")

    assert changed(house, override, before=before) == {"captions", "align", "tune", "score"}


def test_the_order_of_inputs_counts_for_nothing_but_the_order_of_a_config_mapping_does(house: House) -> None:
    shards = {"a": "captions.shards", "b": "captions.rest"}
    house.recipe["stages"]["align"].update(inputs={"shards": shards}, config={"mixture": {"a": 1, "b": 2}})
    before = house.fingerprints()
    house.recipe["stages"]["align"]["inputs"] = {"shards": dict(reversed(shards.items()))}

    assert changed(house, before=before) == set()
    house.recipe["stages"]["align"]["config"] = {"mixture": {"b": 2, "a": 1}}
    assert changed(house, before=before) == {"align", "tune", "score"}


def test_stages_that_share_a_module_do_not_share_its_changes(house: House) -> None:
    before = house.fingerprints()
    stages = house.module("stages")
    text = stages.read_text()
    stages.write_text(text.replace("asks_family = True", "asks_family = True\n    beams = 2"))

    assert changed(house, before=before) == {"score"}
    stages.write_text(text.replace('family = "toy"', 'family = "toy"\n    trainable = ("all",)'))
    assert changed(house, before=before) == {"align", "tune", "score"}  # tune inherits from align
    stages.write_text(text.replace("lr: float = 1e-3", "lr: float = 2e-3"))
    assert changed(house, before=before) == {"align", "tune", "score"}
    stages.write_text(f"from {house.package}.sources import grand\n{text}\n\ndef helper():\n    return grand\n")
    assert changed(house, before=before) == set()  # nobody uses the new name
    stages.write_text(text.replace('"""Toy stages."""', '"""Evaluate, Align, Tune and Convert."""'))
    assert changed(house, before=before) == set()
    stages.write_text(f"import {house.package}.sources.grand\n{text}")
    assert changed(house, before=before) == {"captions", "align", "tune", "score"}  # it may do something by itself
    stages.write_text(text + "\n\nLATE = 1\n")
    assert changed(house, before=before) == {"captions", "align", "tune", "score"}


def test_another_class_under_the_same_key_is_another_stage(house: House) -> None:
    stages = house.module("stages")
    stages.write_text(stages.read_text() + "\n\nclass Twin(Evaluate):\n    pass\n")
    recipe = load_recipe(house.write_recipe())
    catalog = Catalog(
        stages={**house.catalog.stages, "evaluate": f"{house.package}.stages:Twin"}, families=house.catalog.families
    )

    one, other = (make_plan(recipe, known, house.run_dir).stages for known in (house.catalog, catalog))

    assert one[3].fingerprint != other[3].fingerprint
    assert one[2].fingerprint == other[2].fingerprint


def closure(tmp_path: Path, modules: dict[str, str], start: str) -> set[str]:
    for name, text in modules.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    package = start.partition(".")[0]
    return {module.partition(".")[2] for module in sources_of([f"{package}.x:Y"]).closure([start])}


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("import PKG.b.c", {"a", "", "b", "b.c"}),
        ("from PKG import b", {"a", "", "b"}),
        ("from PKG.b import c", {"a", "", "b", "b.c"}),
        ("from PKG.b import name", {"a", "", "b"}),
        ("from PKG.b.c import name", {"a", "", "b", "b.c"}),
        ("from . import b", {"a", "", "b"}),
        ("from .b import c", {"a", "", "b", "b.c"}),
        ("from .b.c import *", {"a", "", "b", "b.c"}),
        ("def f():\n    from .b import c", {"a", "", "b", "b.c"}),
        ("try:\n    import PKG.b.c\nexcept ImportError:\n    pass", {"a", "", "b", "b.c"}),
        ("import importlib\nimportlib.import_module('PKG.b.c')", {"a", "", "b", "b.c"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import PKG.b.c", {"a", ""}),
        ("import typing\nif typing.TYPE_CHECKING:\n    import PKG.b.c\nelse:\n    import PKG.d", {"a", "", "d"}),
        ("import json, PKG.d", {"a", "", "d"}),
        ("try:\n    pass\nexcept OSError:\n    import PKG.d\nfinally:\n    import PKG.b.c", {"a", "", "d", "b", "b.c"}),
        ("match 1:\n    case 1:\n        with f():\n            import PKG.d", {"a", "", "d"}),
        ("class A:\n    async def f(self):\n        for x in y:\n            from PKG import d", {"a", "", "d"}),
        ("while x:\n    pass\nelse:\n    if y:\n        pass\n    elif z:\n        import PKG.d", {"a", "", "d"}),
    ],
)
def test_imports_are_followed_as_python_follows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, statement: str, expected: set[str]
) -> None:
    package = f"walk_{abs(hash(request.node.name))}"
    monkeypatch.syspath_prepend(str(tmp_path))
    texts = {
        "__init__": "",
        "a": statement.replace("PKG", package),
        "b/__init__": "name = 1",
        "b/c": "name = 2",
        "d": "",
    }

    assert closure(tmp_path, {f"{package}/{name}": text for name, text in texts.items()}, f"{package}.a") == expected


def test_modules_that_import_each_other_and_relative_imports_of_packages_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    texts = {
        "ring/__init__": "from .b import c", "ring/a": "import ring.b.c", "ring/b/__init__": "from ..a import x",
        "ring/b/c": "from ... import nothing\nfrom .. import a",
    }  # fmt: skip

    assert closure(tmp_path, texts, "ring.a") == {"", "a", "b", "b.c"}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("x = 1", "x = 1  # one", True),
        ("def f():\n    'doc'", "def f():\n    'other'", True),
        ("x = 'a'", "x = 'b'", False),
        ("x = 1", "x = 1.0", False),
        ("x = 1", "x = True", False),
        ("x = '1'", "x = b'1'", False),
        ("f(a, b)", "f(b, a)", False),
        ("f([a], b)", "f([a, b])", False),
        ("def f(): pass", "async def f(): pass", False),
        ("x: int = 1", "x: float = 1", False),
        ("f(a=1)", "f(b=1)", False),
        ("if a:\n    b()\nc()", "if a:\n    b()\n    c()", False),
        ("x = -1", "x = ~1", False),
        ("a < b", "a <= b", False),
        ("x = f'{a}'", "x = f'{a!r}'", False),
    ],
)
def test_a_digest_tells_code_apart_exactly_where_it_does_something_else(one: str, other: str, *, same: bool) -> None:
    assert (digest(ast.parse(one)) == digest(ast.parse(other))) is same


def test_the_digest_of_code_is_the_same_on_every_version_of_python() -> None:
    code = (
        "@d\nclass A(B):\n    def f(self, *a: int, **k) -> str:\n"
        "        return f'{a!r:>{k}}' if a else [x for x in k]\n"
    )

    assert digest(ast.parse(code)) == "2bee9d8a31887f2fa0d526395aae9c869b5776f058582e6732bb4e546b3d539f"


def test_neutral_modules_cannot_compute_anything() -> None:
    for name in sorted(NEUTRAL):
        spec = None if name.endswith("*") else importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        nodes = list(ast.walk(ast.parse(Path(spec.origin).read_bytes())))
        imported = {
            alias.name.partition(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names
        }
        imported |= {str(node.module).partition(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
        assert not imported & HEAVY, f"{name} imports {imported & HEAVY}: is it still neutral?"


def test_collectives_training_and_data_order_are_never_neutral() -> None:
    for name in ("orchestrator.world", "orchestrator.training.loop", "orchestrator.data.order", "stages.samples"):
        assert name not in NEUTRAL
        assert f"{name.rpartition('.')[0]}.*" not in NEUTRAL


def test_every_stage_depends_on_the_collectives_it_is_handed(house: House) -> None:
    assert all("orchestrator.world" in stage.identity["code"] for stage in house.plan().stages)
