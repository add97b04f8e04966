"""What an artifact is made of and what was made from it, over run folders as planning and workers leave them."""

import json
import os
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.artifacts import MANIFEST, Artifact, Shards, write_json
from orchestrator.errors import InputError, SurroundingsError
from orchestrator.lineage.command import lineage
from orchestrator.lineage.graph import Way
from orchestrator.lineage.lines import lineage_lines
from orchestrator.lineage.picture import lineage_picture
from orchestrator.lineage.wanted import Lineage, find_lineage
from orchestrator.plan import Plan, PlannedStage, make_plan
from orchestrator.recipe import load_recipe
from orchestrator.run import Run
from tests.command_line import REPOSITORY, Orch
from tests.toyplans import House, build_house, input_digests

COMMIT = "c0ffee" * 6 + "c0ff"
FACTS: Mapping[str, Mapping[str, Any]] = {
    "shards": {"samples": 1200, "shards": 2, "counts": {"regions": 3400}, "source": "coco", "licence": "CC BY 4.0"},
    "checkpoint": {"family": "toy", "step": 10},
    "report": {"scores": {"gcg": {"miou": 0.5, "cider": 1.25}}, "passed": True},
}
UP: tuple[Way, ...] = ("up",)
DOWN: tuple[Way, ...] = ("down",)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return build_house(tmp_path)


def launched(house: House, name: str = "toy", *, content: str = "work") -> Plan:
    """Leaves a run as a launch does that finished every stage; planned and prepared for real."""
    house.recipe["name"] = name
    directory = house.place / "runs" / name

    def planned() -> Plan:
        return make_plan(load_recipe(house.write_recipe(), []), house.catalog, directory)

    Run(directory).prepare(planned(), REPOSITORY)
    for number in range(len(planned().stages)):
        stage = planned().stages[number]
        if stage.action != "reuse":
            worked(stage, content)
    return planned()


def worked(stage: PlannedStage, content: str) -> None:
    """Leaves what a worker leaves of a stage."""
    inputs = input_digests(stage)
    for name, output in stage.outputs.items():
        output.path.mkdir(exist_ok=True)
        (output.path / "data.bin").write_text(f"{content} of {stage.name}.{name}")
        told = {"inputs": inputs, "stage": stage.spec.stage, "commit": COMMIT}
        output.commit(stage.fingerprint, {**FACTS[output.kind], **told})
        write_json(output.path.parent / "inputs.json", inputs)


def second_recipe(house: House) -> None:
    """Makes the recipe one that begins with what the toy run made."""
    inputs = {"model": str(house.run_dir / "align/model"), "shards": {"more": str(house.run_dir / "captions/rest")}}
    house.recipe["stages"] = {"more": {"stage": "tune", "inputs": inputs}}


def forged(folder: Path, reads: Mapping[str, Path], **facts: Any) -> Path:
    """Writes the folder of a finished stage by hand; returns its output."""
    model = folder / "model"
    model.mkdir(parents=True)
    inputs = {role: {"kind": "checkpoint", "path": str(path)} for role, path in reads.items()}
    document = {
        "name": folder.name, "stage": "tune", "fingerprint": folder.name, "inputs": inputs, "steps": 3,
        "outputs": {"model": {"kind": "checkpoint", "path": str(model)}}, "identity": {}, "config": {},
    }  # fmt: skip
    (folder / "stage.json").write_text(json.dumps(document))
    manifest: dict[str, Any] = {"kind": "checkpoint", "fingerprint": folder.name, "digest": f"of {folder}", "files": []}
    manifest["facts"] = {"inputs": {}, "commit": COMMIT, **facts}
    (model / MANIFEST).write_text(json.dumps(manifest))
    return model


def looked(house: House, words: str | Path, ways: tuple[Way, ...] = UP) -> Lineage:
    return find_lineage(str(words), [house.place / "runs"], ways)


def told(found: Lineage) -> str:
    return "\n".join(line.branches + line.words for line in lineage_lines(found, 200))


def parsed(picture: str) -> ET.Element:
    return ET.fromstring(picture)  # noqa: S314 - our own


def names(found: Lineage, kind: str = "") -> set[str]:
    return {node["name"] for node in found.document()["nodes"] if kind in ("", node["kind"])}


def test_a_model_is_told_from_its_data_on_with_code_steps_and_scores(house: House) -> None:
    plan = launched(house)

    text = told(looked(house, "toy:tune.model"))

    made = {stage.name: stage for stage in plan.stages}
    assert text.splitlines()[0] == "toy:tune.model"
    assert f"checkpoint {made['tune'].outputs['model'].digest()[:12]}, toy, step 10" in text
    assert f"by tune {made['tune'].fingerprint[:12]}, 10 steps, commit {COMMIT[:12]}" in text
    assert "scores of toy:score.report: gcg miou 0.5, cider 1.25, as wished" in text
    assert "├─ model: toy:align.model" in text
    assert "1,200 samples, 2 tars, 3,400 regions, licence CC BY 4.0" in text
    assert "└─ shards.captions: toy:captions.shards (above)" in text


def test_lineage_goes_on_in_the_run_whose_checkpoint_another_recipe_begins_with(house: House) -> None:
    launched(house)
    second_recipe(house)
    launched(house, "other")

    found = looked(house, "other:more.model")

    assert names(found, "checkpoint") == {"other:more.model", "toy:align.model"}
    assert names(found, "shards") == {"toy:captions.rest", "toy:captions.shards"}


def test_an_input_leads_to_a_run_that_no_runs_folder_holds(house: House) -> None:
    launched(house)
    second_recipe(house)
    launched(house, "other")
    (house.place / "elsewhere").mkdir()
    (house.place / "runs/other").rename(house.place / "elsewhere/other")

    found = find_lineage("other:more.model", [house.place / "elsewhere"], UP)

    assert "toy:captions.shards" in names(found, "shards")


def test_what_was_made_from_data_is_told_over_all_runs(house: House) -> None:
    launched(house)
    second_recipe(house)
    launched(house, "other")

    found = looked(house, "toy:captions.shards", DOWN)

    assert names(found, "checkpoint") == {"toy:align.model", "toy:tune.model", "other:more.model"}
    assert names(found, "report") == {"toy:score.report"}
    assert "as model: other:more.model" in told(found)


def test_what_was_archived_since_is_found_by_its_content_and_not_mistaken_for_what_lies_there_now(house: House) -> None:
    launched(house)
    second_recipe(house)
    launched(house, "other")
    house.recipe["stages"] = build_house(house.place).recipe["stages"]
    house.recipe["stages"]["align"]["config"] = {"train": {"steps": 20}}
    launched(house, content="later work")

    up = looked(house, "other:more.model")

    assert "model: toy:align.model (archived)" in told(up)
    assert f"! was read as {house.run_dir}/align/model, which holds other content by now" in told(up)
    assert names(looked(house, "toy:align.model", DOWN), "checkpoint") == {"toy:align.model", "toy:tune.model"}


def test_what_is_found_nowhere_is_said_to_be_lost_with_its_digest(house: House) -> None:
    launched(house)
    second_recipe(house)
    digest = launched(house, "other").stages[0].inputs["model"].digest()
    shutil.rmtree(house.run_dir / "align")

    found = looked(house, "other:more.model")

    lost = next(node for node in found.document()["nodes"] if node["kind"] == "checkpoint" and not node["there"])
    assert lost["digest"] == digest
    assert "! not found: moved out of the runs folders, overwritten or removed" in told(found)


def test_an_output_that_was_removed_still_has_its_stage(house: House) -> None:
    launched(house)
    shutil.rmtree(house.run_dir / "align/model")

    found = looked(house, "toy:tune.model")

    assert {"toy:tune", "toy:align", "toy:captions"} <= names(found, "stage")


def test_a_run_that_was_moved_is_read_where_it_is(house: House) -> None:
    launched(house)
    house.run_dir.rename(house.place / "runs/renamed")

    found = looked(house, "renamed:score.report")

    assert names(found, "checkpoint") == {"renamed:align.model", "renamed:tune.model"}
    assert f"! was moved here from {house.run_dir}" in told(found)


def test_a_copy_knows_its_original(house: House) -> None:
    launched(house)
    shutil.copytree(house.run_dir / "tune/model", house.place / "given/away")

    found = looked(house, house.place / "given/away/data.bin")

    assert "└─ copy: toy:tune.model" in told(found)
    assert "toy:captions.shards" in names(found)


def test_an_artifact_all_alone_tells_its_stage_its_commit_and_what_it_read(house: House) -> None:
    plan = launched(house)
    shutil.copytree(house.run_dir / "tune/model", house.place / "given/away")
    shutil.rmtree(house.run_dir)

    found = looked(house, house.place / "given/away")

    fingerprint = next(stage for stage in plan.stages if stage.name == "tune").fingerprint
    assert f"by tune {fingerprint[:12]}, commit {COMMIT[:12]}" in told(found)
    assert {edge["role"] for edge in found.document()["edges"]} == {"model", "shards.captions", "code", "away"}


def test_a_stage_that_has_not_run_is_shown_as_what_it_is(house: House) -> None:
    plan = house.plan()
    Run(house.run_dir).prepare(plan, REPOSITORY)
    worked(plan.stages[0], "work")

    text = told(looked(house, "toy:captions.shards", DOWN))

    assert "as shards.captions: toy:align.model" in text
    assert "! not made: its stage is waiting" in text


def test_the_whole_run_is_told_from_its_ends(house: House) -> None:
    launched(house)

    heads = [line.words for line in lineage_lines(looked(house, "toy"), 200) if not line.branches]

    assert heads == ["toy:captions.rest", "toy:score.report"]


def test_a_folder_that_only_stages_know_has_its_readers(house: House, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    forged(tmp_path / "runs/toy/a", {"raw": raw})

    found = looked(house, raw, DOWN)

    assert names(found, "checkpoint") == {"toy:a.model"}


def test_the_document_has_the_keys_that_scripts_rely_on(house: House) -> None:
    launched(house)
    write_json(house.run_dir / "align/tracking.json", {"mlflow_run_id": "r1"})

    document = looked(house, "toy:align.model", ("up", "down")).document()

    assert all({"id", "kind", "name", "digest", "mlflow_id"} <= set(node) for node in document["nodes"])
    assert {node["kind"] for node in document["nodes"]} == {"shards", "checkpoint", "report", "stage", "code"}
    ids = {node["id"] for node in document["nodes"]}
    assert all({edge["from"], edge["to"]} <= ids for edge in document["edges"])
    assert next(node["mlflow_id"] for node in document["nodes"] if node["name"] == "toy:align") == "r1"


def test_stages_that_claim_to_be_made_of_each_other_come_to_an_end(house: House) -> None:
    runs = house.place / "runs/toy"
    forged(runs / "a", {"model": runs / "b/model"})
    forged(runs / "b", {"model": runs / "a/model"})

    found = looked(house, runs / "a/model", ("up", "down"))

    assert names(found, "checkpoint") == {"toy:a.model", "toy:b.model"}
    assert "(above)" in told(found)
    assert parsed(lineage_picture(found)).tag.endswith("svg")


def test_a_chain_of_a_thousand_stages_is_told_whole_and_stays_readable(house: House) -> None:
    runs = house.place / "runs/toy"
    before: dict[str, Path] = {}
    for number in range(1000):
        before = {"model": forged(runs / f"s{number:04}", before)}

    found = looked(house, runs / "s0999/model")
    lines = list(lineage_lines(found, 100))

    assert sum(line.words.startswith("by tune s") for line in lines) == 1000
    assert max(len(line.branches) for line in lines) < 40
    assert lineage_picture(found).count('<g class="node') == 1000


HOSTILE = "\x1b]0;owned\x07\u202e<script>alert(1)</script>\n\x00"


def test_names_from_outside_do_no_harm(house: House, tmp_path: Path) -> None:
    runs = house.place / "runs/toy"
    model = forged(runs / "a", {HOSTILE: tmp_path / "gone"}, family=HOSTILE, step=7, licence=HOSTILE, commit=HOSTILE)
    document = json.loads((runs / "a/stage.json").read_text())
    write_json(runs / "a/stage.json", {**document, "name": HOSTILE, "stage": HOSTILE})

    found = looked(house, model)
    text, picture = told(found), lineage_picture(found)

    assert "step 7" in text
    assert not set(text) & {"\x1b", "\x07", "\x00", "\u202e"}
    assert "<script" not in picture
    assert parsed(picture).tag.endswith("svg")


def test_secrets_stay_out(house: House, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "plantedsecret")
    runs = house.place / "runs/toy"
    model = forged(runs / "a", {}, family="https://ada:hunter22@host/x", licence="plantedsecret")
    picture = house.place / "drawn.svg"

    lineage(str(model), runs=[house.place / "runs"], as_json=True, svg=picture)
    lineage(str(model), runs=[house.place / "runs"])

    everything = capsys.readouterr().out + picture.read_text()
    assert "host/x" in everything
    assert "hunter22" not in everything
    assert "plantedsecret" not in everything


@pytest.mark.parametrize(
    "document",
    [
        "[" * 100_000,
        "{",
        "7",
        '{"inputs": 3, "outputs": [1], "identity": "x", "fingerprint": {}, "steps": "many", "config": [[["/"]]]}',
        '{"inputs": {"a": {"path": 7}, "b": {"path": "/x\\u0000y"}, "c": [1]}, "outputs": {"model": {"path": ".."}}}',
        '{"outputs": {"../../up": {"path": "/etc/../.."}, "model": {"path": "/nowhere/model"}}, "fingerprint": "x"}',
    ],
)
def test_a_broken_or_forged_stage_beside_does_not_keep_us_from_the_others(house: House, document: str) -> None:
    runs = house.place / "runs/toy"
    model = forged(runs / "a", {})
    (runs / "b/model").mkdir(parents=True)
    (runs / "b/stage.json").write_text(document)
    (runs / "b/model" / MANIFEST).write_text('{"kind": "checkpoint", "fingerprint": "x", "facts": {"inputs": [1]}}')

    found = looked(house, model, ("up", "down"))

    assert names(found, "checkpoint") == {"toy:a.model"}


def test_a_manifest_that_is_a_pipe_keeps_nobody_waiting(house: House) -> None:
    model = forged(house.place / "runs/toy/a", {})
    (model / MANIFEST).unlink()
    os.mkfifo(model / MANIFEST)

    assert "! not made: its stage is waiting" in told(looked(house, model))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("toi", "there is no run 'toi'; did you mean 'toy'?"),
        ("toy:alin.model", "no stage 'alin'; did you mean 'align'?"),
        ("toy:align.modle", "no output 'modle'; did you mean 'model'?"),
        ("runs/toy/align/model/typo", "does not exist"),
        ("/nowhere/at/all", "does not exist, and no stage that is known has read it; allowed: the folder"),
        ("bad\0path", "cannot be a path"),
    ],
)
def test_what_cannot_be_meant_is_said_with_what_is_allowed(house: House, words: str, message: str) -> None:
    launched(house)

    with pytest.raises(InputError, match=re.escape(message)):
        looked(house, words)


def test_a_run_goes_before_a_folder_of_its_name(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    launched(house)
    (house.place / "toy").mkdir()
    monkeypatch.chdir(house.place)

    assert looked(house, "toy").starts == find_lineage("runs/toy", [], UP).starts
    assert looked(house, "runs/toy:tune.model").starts == looked(house, "toy:tune.model").starts


def test_what_was_removed_is_still_known_by_its_place(house: House) -> None:
    launched(house)
    shutil.rmtree(house.run_dir / "tune")

    assert "! not found" in told(looked(house, house.run_dir / "tune/model"))


def test_a_folder_that_nobody_knows_is_no_artifact(house: House) -> None:
    launched(house)

    with pytest.raises(InputError, match="holds no artifact, and no stage that is known has read it"):
        looked(house, house.place / house.package)


def test_a_runs_folder_that_is_none_is_refused(house: House) -> None:
    with pytest.raises(InputError, match="gone is not a folder"):
        find_lineage("toy", [house.place / "gone"], UP)


def test_ways_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InputError, match="allowed is one of them"):
        lineage("toy", up=True, both=True)


def test_the_picture_loads_nothing_and_knows_light_and_dark(house: House) -> None:
    launched(house)
    path = house.place / "drawn.svg"

    lineage("toy:score.report", runs=[house.place / "runs"], svg=path)

    text = path.read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    assert "href" not in text
    assert "url(" not in text
    assert "@import" not in text
    titles = [element.text for element in parsed(text).iter("{http://www.w3.org/2000/svg}text")]
    assert {"score.report", "tune.model", "align.model", "captions.shards"} <= set(titles)


def test_a_picture_that_cannot_be_written_leaves_nothing(house: House) -> None:
    launched(house)
    (house.place / "drawn.svg").mkdir()

    with pytest.raises(SurroundingsError, match="cannot be written"):
        lineage("toy", runs=[house.place / "runs"], svg=house.place / "drawn.svg")

    assert not list(house.place.glob(".drawn*"))


def test_real_runs_of_two_recipes_are_one_lineage(orch: Orch) -> None:
    orch(
        "launch",
        orch.recipe({"count": {"stage": "count"}, "add": {"stage": "add", "inputs": {"value": "count.value"}}}),
    )
    again = {"again": {"stage": "add", "inputs": {"value": str(orch.run_folder / "add/value")}}}
    orch("launch", orch.recipe(again, name="other"))

    document = orch.json("lineage", "other:again.value")

    made = [node["name"] for node in document["nodes"] if node["kind"] == "report"]
    assert made == ["other:again.value", "toy:add.value", "toy:count.value"]
    written = Artifact(orch.run_folder / "count/value").digest()
    assert next(node["digest"] for node in document["nodes"] if node["name"] == "toy:count.value") == written


def test_shards_outside_of_every_run_are_told_by_their_manifest(house: House) -> None:
    folder = house.place / "adopted"
    folder.mkdir()
    (house.place / "runs").mkdir()
    (folder / "shard.idx").write_text("index")
    Shards(folder).commit("adopted", {"samples": 5})

    assert f"{folder}\n   shards {Shards(folder).digest()[:12]}, 5 samples" in told(looked(house, folder))
