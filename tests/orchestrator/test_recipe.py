import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from orchestrator.errors import RecipeError
from orchestrator.recipe import Recipe, StageSpec, dump_recipe, load_recipe

GOOD = """
name: demo
seed: 17
tracking: {uri: "${oc.env:DEMO_TRACKING,sqlite:///mlflow.db}", experiment: demo}
vars: {data: /data}
stages:
  captions: {stage: convert, config: {root: "${vars.data}/llava", split: 2017-01-01}, resources: {cpus_per_task: 4}}
  align: {stage: align, inputs: {shards: {captions: captions.shards}}, config: {train: {optim: {lr: 1e-3}}}}
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "demo.yaml"
    path.write_text(GOOD)
    return path


def faults_of(path: Path, *overrides: str) -> dict[str, str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return {fault.key: fault.message for fault in caught.value.faults}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "written.yaml"
    path.write_text(text)
    return path


def test_a_recipe_keeps_what_was_written_with_variables_filled_in(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)

    assert recipe.name == "demo"
    assert list(recipe.stages) == ["captions", "align"]
    assert recipe.stages["captions"].config == {"root": "/data/llava", "split": "2017-01-01"}
    assert recipe.stages["align"].config["train"]["optim"]["lr"] == pytest.approx(1e-3)


def test_overrides_reach_variables_nested_configs_and_resources(recipe_file: Path) -> None:
    recipe = load_recipe(
        recipe_file,
        ["vars.data=/mnt", "stages.align.config.train.optim.lr=2e-5", "stages.align.resources.nodes=4", "seed=3"],
    )

    assert recipe.stages["captions"].config["root"] == "/mnt/llava"
    assert recipe.stages["align"].config["train"]["optim"]["lr"] == pytest.approx(2e-5)
    assert recipe.stages["align"].resources.nodes == 4
    assert recipe.seed == 3


def test_an_override_joins_a_mapping_to_what_is_written_and_an_empty_one_empties_it(recipe_file: Path) -> None:
    joined = load_recipe(recipe_file, ["stages.align.config.train={steps: 7}"]).stages["align"].config["train"]
    emptied = load_recipe(recipe_file, ["stages.align.config.train={}"]).stages["align"].config

    assert joined == {**load_recipe(recipe_file).stages["align"].config["train"], "steps": 7}
    assert "optim" in joined
    assert emptied["train"] == {}


def test_every_fault_is_told_at_once_with_its_key(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
name: demo
colour: red
stages:
  a: {stage: convert, config: {root: "${vars.dat}/x", s: "${oc.env:ORCH_TEST_UNSET}"}, resources: {gpu_per_node: 3}}
  b: {stag: convert}
  c: {stage: convert, resources: {nodes: many}}
vars: {data: /data}
""",
    )

    faults = faults_of(path, "stages.d.config.x=1", "nonsense")

    assert set(faults) == {
        "stages.d.config.x", "nonsense", "stages.a.config.root", "stages.a.config.s", "colour",
        "stages.a.resources.gpu_per_node", "stages.b.stag", "stages.b.stage", "stages.c.resources.nodes",
    }  # fmt: skip
    assert "did you mean 'data'?" in faults["stages.a.config.root"]
    assert "ORCH_TEST_UNSET, which is not set" in faults["stages.a.config.s"]
    assert "did you mean 'gpus_per_node'?" in faults["stages.a.resources.gpu_per_node"]
    assert "allowed: name, stages, runs, seed, tracking, retry, watch, notify, alerts, vars" in faults["colour"]
    assert "'many' is not a whole number" in faults["stages.c.resources.nodes"]


@pytest.mark.parametrize(
    ("override", "key", "message"),
    [
        ("stages.algn.config.x=1", "stages.algn.config.x", "did you mean 'align'?"),
        ("stages.align.confg.x=1", "stages.align.confg.x", "did you mean 'config'?"),
        ("stages.align.resources.hour=1", "stages.align.resources.hour", "did you mean 'hours'?"),
        ("tracking.url=x", "tracking.url", "did you mean 'uri'?"),
        ("tracking.written_uri=x", "tracking.written_uri", "allowed: uri, experiment"),
        ("vars.dta=1", "vars.dta", "did you mean 'data'?"),
        ("sed=1", "sed", "did you mean 'seed'?"),
        ("stages.align.config.train=[1", "stages.align.config.train", "cannot be set to '[1'"),
        ("stages.align.config.lr", "stages.align.config.lr", "write KEY=VALUE"),
        ("+stages.x=1", "+stages.x=1", "write KEY=VALUE"),
        ("seed=soon", "seed", "'soon' is not a whole number"),
        ("seed=-1", "seed", "must be at least 0, not -1"),
        ("name=a/b", "name", "letters, digits"),
        ("stages.align.resources.nodes=0", "stages.align.resources.nodes", "must be at least 1, not 0"),
        ("stages.align.resources.hours=-2", "stages.align.resources.hours", "must be above 0"),
    ],
)
def test_a_wrong_override_is_named_with_what_was_meant(
    recipe_file: Path, override: str, key: str, message: str
) -> None:
    faults = faults_of(recipe_file, override)

    assert list(faults) == [key]
    assert message in faults[key]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [1\nstages: {}", "line 2, column 7"),
        ("name: x\nname: y\n", "found duplicate key"),
        ("- a\n- b\n", "holds a list"),
        ("\x00", "is not YAML"),
    ],
)
def test_what_is_no_yaml_mapping_is_refused_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)

    assert message in faults_of(path)[str(path)]


def test_a_text_that_is_no_recipe_is_shown_in_part(tmp_path: Path) -> None:
    (message,) = faults_of(written(tmp_path, "root:x:0:0 " * 100)).values()

    assert "holds nothing but the text 'root:x:0:0 root" in message
    assert len(message) < 200


def test_what_is_nested_too_deeply_is_no_mistake_of_ours(tmp_path: Path) -> None:
    (message,) = faults_of(written(tmp_path, "name: deep\nvars: {x: " + "[" * 3000 + "]" * 3000 + "}")).values()

    assert "nested too deeply" in message


def test_faults_of_a_name_hide_none_of_the_stages_and_none_of_its_neighbours(tmp_path: Path) -> None:
    text = """
name: bad name
sead: 3
stages: {a: {stage: convert, resources: {nodes: 0, gpu: 3}}, b: {stag: convert}}
"""

    assert sorted(faults_of(written(tmp_path, text))) == [
        "name", "sead", "stages.a.resources.gpu", "stages.a.resources.nodes", "stages.b.stag", "stages.b.stage",
    ]  # fmt: skip


def test_an_override_may_refer_to_the_recipes_own_variables(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["vars.data=/scratch", "stages.align.config.from=${vars.data}/align"])

    assert recipe.stages["align"].config["from"] == "/scratch/align"


def test_a_password_that_an_override_takes_from_the_environment_is_used_but_not_dumped(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TRACKING", "https://ada:s3cr3t-word@mlflow.example.org")

    recipe = load_recipe(recipe_file, ["tracking.uri=${oc.env:MY_TRACKING}"])

    assert recipe.tracking.uri == "https://ada:s3cr3t-word@mlflow.example.org"
    assert "s3cr3t" not in dump_recipe(recipe)


def test_a_missing_file_a_folder_and_binary_data_are_told_apart(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"name: \xff\xfe")

    assert "no such file" in faults_of(tmp_path / "none.yaml")[str(tmp_path / "none.yaml")]
    assert "is a folder" in faults_of(tmp_path)[str(tmp_path)]
    assert "is not UTF-8" in faults_of(binary)[str(binary)]


def test_a_value_left_open_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "name: x\nstages: {a: {stage: convert, config: {root: '???'}}}\n")

    assert "a value must be given" in faults_of(path)["stages.a.config.root"]
    assert load_recipe(path, ["stages.a.config.root=/x"]).stages["a"].config == {"root": "/x"}


def test_a_variable_that_refers_to_itself_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "name: x\nvars: {a: '${vars.b}', b: '${vars.a}'}\nstages: {a: {stage: s}}\n")

    assert {"vars.a", "vars.b"} == set(faults_of(path))


def test_a_dumped_recipe_reads_back_as_the_same_stages(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file)

    again = load_recipe(written(tmp_path, dump_recipe(recipe)))

    assert again.stages == recipe.stages
    assert (again.name, again.seed, again.runs, again.tracking) == (
        recipe.name, recipe.seed, recipe.runs, recipe.tracking,
    )  # fmt: skip


def test_a_password_from_the_environment_is_used_but_not_dumped(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEMO_TRACKING", "https://me:secret@mlflow.example")

    recipe = load_recipe(recipe_file)

    assert recipe.tracking.uri == "https://me:secret@mlflow.example"
    assert "secret" not in dump_recipe(recipe)
    assert "${oc.env:DEMO_TRACKING," in dump_recipe(recipe)


def test_a_password_in_the_recipe_itself_is_refused(tmp_path: Path) -> None:
    text = "name: x\ntracking: {uri: 'https://me:pw@host'}\nstages: {a: {stage: s, config: {url: 'http://u:p@h/x'}}}\n"

    faults = faults_of(written(tmp_path, text))

    assert set(faults) == {"tracking.uri", "stages.a.config.url"}
    assert "${oc.env:" in faults["tracking.uri"]


def test_a_token_in_the_recipe_is_refused_by_its_name_its_shape_or_the_variable_it_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_SECRET", "a-word-like-others")
    config = "{api_key: abc, weights: hf_abcdefghijklmnopqrst, prompt: '${oc.env:TOY_SECRET}', pad_token: <unk>}"

    faults = faults_of(written(tmp_path, f"name: x\nstages: {{a: {{stage: s, config: {config}}}}}\n"))

    assert set(faults) == {f"stages.a.config.{name}" for name in ("api_key", "weights", "prompt")}
    assert "TOY_SECRET" in faults["stages.a.config.prompt"]
    assert "a-word-like-others" not in str(faults)


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), children, max_size=3)
    ),
    max_leaves=10,
)


@settings(max_examples=25, deadline=None)
@given(config=st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), plain_values, max_size=4))
def test_any_config_survives_being_written_and_read(
    config: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("dump") / "recipe.yaml"
    path.write_text(dump_recipe(Recipe(name="x", stages={"a": StageSpec(stage="s", config=config)})), encoding="utf-8")

    assume_plain = json.loads(json.dumps(config))

    assert load_recipe(path).stages["a"].config == assume_plain


def test_the_environment_does_not_leak_into_a_dump_unasked(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_TEST_SECRET", "do-not-write-me")

    assert os.environ["ORCH_TEST_SECRET"] not in dump_recipe(load_recipe(recipe_file))
    assert OmegaConf.create(dump_recipe(load_recipe(recipe_file))).name == "demo"


def test_rules_of_retrying_and_watching_are_typed_kept_and_overridden(tmp_path: Path) -> None:
    text = """
name: demo
retry: {attempts: 5, never: [diverged]}
stages: {a: {stage: convert}}
"""
    recipe = load_recipe(written(tmp_path, text), ["watch.step_s=2.5"])
    again = load_recipe(written(tmp_path, dump_recipe(recipe)))

    assert (recipe.retry.attempts, recipe.retry.never, recipe.watch.step_s) == (5, ("diverged",), 2.5)
    assert (again.retry, again.watch) == (recipe.retry, recipe.watch)


def test_rules_of_retrying_that_make_no_sense_are_refused_with_what_would(tmp_path: Path) -> None:
    text = """
name: demo
retry: {attempts: 0, never: [bad_luck]}
watch: {factor: 1, steps_s: 3}
stages: {a: {stage: convert}}
"""
    faults = faults_of(written(tmp_path, text), "retry.attempt=2")

    assert "out_of_memory" in faults["retry.never.0"]
    assert "did you mean 'step_s'?" in faults["watch.steps_s"]
    assert "did you mean 'attempts'?" in faults["retry.attempt"]
