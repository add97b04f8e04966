"""An export holds what its family wrote, and a card that tells where it comes from."""

import json
from pathlib import Path

import pytest

import stages
from orchestrator.artifacts import Export, Report, Shards
from orchestrator.journal import Journal
from orchestrator.progress import Progress
from orchestrator.stage import StageContext
from orchestrator.world import World
from stages.evaluate.stage import Evaluate
from stages.export.stage import ExportModel
from tests.stages.oracle import write_oracle
from tests.stages.scenes import scene, write_shards

SCENES = [scene(number) for number in range(3)]


@pytest.fixture(autouse=True)
def _oracles_are_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(stages.FAMILIES, dict)
    monkeypatch.setitem(stages.FAMILIES, "oracle", "tests.stages.oracle:OracleFamily")


def context_in(directory: Path) -> StageContext:
    directory.mkdir(parents=True, exist_ok=True)
    return StageContext(
        directory=directory, name=directory.name, fingerprint="e" * 64, seed=3, world=World.alone(),
        journal=Journal(None), progress=Progress(directory), stop=lambda: False,
    )  # fmt: skip


def run_with_model(run: Path) -> ExportModel.Inputs:
    """Makes a run whose stage `gcg` wrote a checkpoint from shards, with its scores."""
    shards = write_shards(run / "held_out/shards", SCENES)
    model = write_oracle(run / "gcg/model", SCENES)
    stage = {
        "name": "gcg", "stage": "oracle_tuning", "fingerprint": "9" * 64,
        "inputs": {"model": None, "shards": {"bars": {"kind": "shards", "path": str(shards.path)}}},
    }  # fmt: skip
    (run / "gcg/stage.json").write_text(json.dumps(stage))
    (run / "recipe.yaml").write_text("name: bars\nnote: '```'\n")
    report = Report(run / "score/report")
    evaluate = Evaluate(
        Evaluate.Config(benchmarks=["gcg"], untrained=True, pictures=0, caption_scorer="plain"),
        Evaluate.Inputs(model=model, shards={"bars": shards}), Evaluate.Outputs(report=report),
    )  # fmt: skip
    report.commit("e" * 64, facts=evaluate.run(context_in(run / "score"))["report"])
    return ExportModel.Inputs(model=model, report=report)


def test_the_card_tells_recipe_lineage_and_scores(tmp_path: Path) -> None:
    inputs = run_with_model(tmp_path / "bars")
    export = Export(tmp_path / "bars/export/model")
    stage = ExportModel(
        ExportModel.Config(title="Bars\nfor all", licence="apache-2.0"), inputs, ExportModel.Outputs(model=export)
    )

    facts = stage.run(context_in(tmp_path / "bars/export"))["model"]

    card = (export.path / "README.md").read_text()
    assert "# Bars for all" in card
    assert "license: apache-2.0" in card
    assert "| miou | 1.000 | 0.000 |" in card
    assert "stage `gcg` (oracle_tuning), fingerprint `9999999999999999`" in card
    assert "shards.bars: shards `held_out/shards`, digest `" in card
    assert "````yaml\nname: bars" in card
    assert facts["family"] == "oracle"
    assert facts["checkpoint"] == inputs.model.digest()


def test_without_scores_the_card_says_so(tmp_path: Path) -> None:
    model = write_oracle(tmp_path / "bars/gcg/model", SCENES)
    export = Export(tmp_path / "bars/export/model")
    stage = ExportModel(ExportModel.Config(), ExportModel.Inputs(model=model), ExportModel.Outputs(model=export))

    stage.run(context_in(tmp_path / "bars/export"))

    assert "exported without an evaluation" in (export.path / "README.md").read_text()


def test_the_card_names_the_licence_of_all_data_and_the_weights_it_began_with(tmp_path: Path) -> None:
    inputs = run_with_model(tmp_path / "bars")
    shards = Shards(tmp_path / "bars/held_out/shards")
    told = {"source": "coco", "split": "train", "licence": "CC BY 4.0 | Flickr"}
    shards.commit("a" * 64, facts={**shards.facts(), **told})
    facts = {**inputs.model.facts(), "published": {"sources": {"/weights/vicuna-7b": "LLaMA or Vicuna (transformers)"}}}
    inputs.model.commit("f" * 64, facts=facts)
    export = Export(tmp_path / "bars/export/model")

    stage = ExportModel(ExportModel.Config(), inputs, ExportModel.Outputs(model=export))
    stage.run(context_in(tmp_path / "bars/export"))

    card = (export.path / "README.md").read_text()
    assert "| `held_out/shards` | coco | train | 3 | CC BY 4.0 \\| Flickr |" in card
    assert "- `vicuna-7b`: LLaMA or Vicuna (transformers)" in card


def test_data_without_a_licence_is_said_to_have_none(tmp_path: Path) -> None:
    inputs = run_with_model(tmp_path / "bars")
    export = Export(tmp_path / "bars/export/model")

    stage = ExportModel(ExportModel.Config(), inputs, ExportModel.Outputs(model=export))
    stage.run(context_in(tmp_path / "bars/export"))

    assert "not stated: find out before you publish" in (export.path / "README.md").read_text()


def test_a_form_that_is_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match="form: 'onnx' is unknown; allowed: merged, adapter"):
        ExportModel.Config(form="onnx")


def test_what_a_killed_attempt_left_does_not_stay(tmp_path: Path) -> None:
    model = write_oracle(tmp_path / "bars/gcg/model", SCENES)
    export = Export(tmp_path / "bars/export/model")
    export.path.mkdir(parents=True)
    (export.path / "half.safetensors").write_bytes(b"half")
    stage = ExportModel(ExportModel.Config(), ExportModel.Inputs(model=model), ExportModel.Outputs(model=export))

    stage.run(context_in(tmp_path / "bars/export"))

    assert sorted(path.name for path in export.path.iterdir()) == ["README.md", "truth.json"]
