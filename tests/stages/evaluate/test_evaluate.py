"""An evaluation from shards and a checkpoint to a report, with an oracle whose errors are known."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import stages
from orchestrator.artifacts import Checkpoint, Report, Shards
from orchestrator.errors import InputError, Preempted
from orchestrator.journal import Journal, read_events
from orchestrator.progress import Progress
from orchestrator.stage import StageContext
from orchestrator.world import World
from stages.evaluate.benchmarks import BENCHMARKS
from stages.evaluate.grounded import read_grounded
from stages.evaluate.items import HeldOut, rounds_of
from stages.evaluate.questions import QUESTIONS
from stages.evaluate.regions import read_regions
from stages.evaluate.scoring import _check
from stages.evaluate.stage import Evaluate
from stages.samples import Region, Sample
from tests.ranks import run_ranks
from tests.stages.oracle import write_oracle
from tests.stages.scenes import scene, write_shards

ORACLE = "tests.stages.oracle:OracleFamily"
PLAIN: dict[str, Any] = {"caption_scorer": "plain"}  # the other one starts Java; test_caption_scorers.py looks after it
SCENES = [scene(number) for number in range(7)]


@pytest.fixture(autouse=True)
def _oracles_are_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dict_of_families(), "oracle", ORACLE)


def dict_of_families() -> dict[str, str]:
    families = stages.FAMILIES
    assert isinstance(families, dict)
    return families


def context_in(directory: Path, world: World | None = None, *, stop: bool = False) -> StageContext:
    directory.mkdir(parents=True, exist_ok=True)
    return StageContext(
        directory=directory, name="score", fingerprint="e" * 64, seed=3, world=world or World.alone(),
        journal=Journal(directory), progress=Progress(directory), stop=lambda: stop,
    )  # fmt: skip


def evaluate(directory: Path, model: Checkpoint, shards: dict[str, Shards], **config: Any) -> dict[str, Any]:
    report = Report(directory / "report")
    stage = Evaluate(
        Evaluate.Config(**{**PLAIN, **config}),
        Evaluate.Inputs(model=model, shards=shards),
        Evaluate.Outputs(report=report),
    )
    context = context_in(directory)
    try:
        facts = stage.run(context)
    finally:
        context.journal.close()
    report.commit("e" * 64, facts=facts["report"])
    metrics: dict[str, Any] = json.loads((report.path / "metrics.json").read_text())
    return metrics


def test_a_model_that_knows_the_truth_has_full_scores_and_fresh_weights_have_none(tmp_path: Path) -> None:
    metrics = evaluate(
        tmp_path / "score", write_oracle(tmp_path / "model", SCENES), {"bars": write_shards(tmp_path / "bars", SCENES)},
        benchmarks=["gcg", "region_captions"], untrained=True, batch_size=2,
    )  # fmt: skip

    gcg, regions = metrics["benchmarks"]["gcg"], metrics["benchmarks"]["region_captions"]
    for score in set(QUESTIONS["gcg"].scores) - {"meteor", "cider"}:
        assert gcg["scores"][score] == pytest.approx(1.0), score
        assert gcg["untrained"][score] == 0.0, score
    assert gcg["scores"]["cider"] > 5 > gcg["untrained"]["cider"]
    assert regions["scores"]["exact"] == 1.0
    assert (gcg["images"], gcg["phrases"], regions["phrases"]) == (7, 14, 14)


def test_referring_is_scored_for_every_expression_strictly_and_as_the_release_does(tmp_path: Path) -> None:
    # bars of 300 px, moved by 2 of 10 columns: 240 px shared, 360 together
    model = write_oracle(tmp_path / "model", SCENES, shift_px=2)
    shards = {"bars": write_shards(tmp_path / "bars", SCENES)}

    found = evaluate(tmp_path / "score", model, shards, benchmarks=["refer", "refer_compat"])["benchmarks"]

    strict, compat = found["refer"]["scores"], found["refer_compat"]["scores"]
    assert strict == pytest.approx({"ciou": 2 / 3, "giou": 2 / 3, "precision50": 1.0, "pointed_once": 1.0})
    assert compat["ciou"] == pytest.approx(2 / 3)
    assert compat["giou"] == pytest.approx(14 * 240 / (360 + 1e-5) / (14 + 1e-5), rel=1e-12)


def test_known_errors_give_known_scores(tmp_path: Path) -> None:
    # masks 10 px wide, moved by 2 px: IoU 8 / 12; one of two phrases forgotten
    model = write_oracle(tmp_path / "model", SCENES, shift_px=2, forget=1)
    shards = {"bars": write_shards(tmp_path / "bars", SCENES)}

    scores = evaluate(tmp_path / "score", model, shards, benchmarks=["gcg"])["benchmarks"]["gcg"]["scores"]

    assert scores["miou"] == pytest.approx(8 / 12)
    assert scores["miou_strict"] == pytest.approx(8 / 12 / 2)
    assert scores["mask_recall"] == 0.5
    assert scores["phrase_exact"] == 0.0
    assert scores["phrases_found"] == 0.5
    assert scores["phrases_right"] == 1.0


def test_the_report_holds_predictions_pictures_and_a_sheet(tmp_path: Path) -> None:
    shards = {"bars": write_shards(tmp_path / "bars", SCENES)}
    model = write_oracle(tmp_path / "model", SCENES)

    metrics = evaluate(tmp_path / "score", model, shards, benchmarks=["gcg"], untrained=True, pictures=2)

    lines = (tmp_path / "score/report/predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == [sample.key for sample in SCENES]
    assert json.loads(lines[0])["trained"]["caption"] == SCENES[0].caption
    assert [picture["path"] for picture in metrics["pictures"]] == ["pictures/gcg_000.png", "pictures/gcg_001.png"]
    with Image.open(tmp_path / "score/report/pictures/gcg_000.png") as picture:
        assert picture.width > 3 * 300
    events = list(read_events(tmp_path / "score"))
    shown = [event["path"] for event in events if event["event"] == "picture"]
    assert shown == [f"report/pictures/{name}.png" for name in ("gcg_000", "gcg_001", "sheet")]
    assert {event["step"] for event in events if event["event"] == "metrics"} == {7}
    assert any("eval_untrained/gcg/miou" in event.get("values", {}) for event in events)


def test_equal_evaluations_write_equal_reports(tmp_path: Path) -> None:
    shards = {"bars": write_shards(tmp_path / "bars", SCENES)}
    model = write_oracle(tmp_path / "model", SCENES, shift_px=1)

    digests = []
    for name, batch_size in (("one", 1), ("two", 5)):
        evaluate(tmp_path / name, model, shards, benchmarks=["gcg"], batch_size=batch_size)
        digests.append(Report(tmp_path / name / "report").digest())

    assert digests[0] == digests[1]


def test_scores_are_also_given_for_each_set_of_shards(tmp_path: Path) -> None:
    shards = {"few": write_shards(tmp_path / "few", SCENES[:2]), "more": write_shards(tmp_path / "more", SCENES[2:])}

    metrics = evaluate(
        tmp_path / "score", write_oracle(tmp_path / "model", SCENES[:2]), shards, benchmarks=["gcg"], limit=3
    )

    gcg = metrics["benchmarks"]["gcg"]
    assert gcg["images"] == 5
    assert gcg["by_shards"]["few"]["scores"]["miou"] == 1.0
    assert gcg["by_shards"]["more"]["scores"]["miou"] == 0.0
    assert gcg["scores"]["miou"] == pytest.approx(2 / 5)


def test_wishes_are_checked_against_the_scores(tmp_path: Path) -> None:
    metrics = evaluate(
        tmp_path / "score", write_oracle(tmp_path / "model", SCENES, shift_px=2),
        {"bars": write_shards(tmp_path / "bars", SCENES)}, benchmarks=["gcg"], untrained=True,
        at_least={"gcg": {"miou": 0.9}}, gains={"gcg": {"miou": 3.0}},
    )  # fmt: skip

    assert [(check["score"], check["passed"]) for check in metrics["checks"]] == [
        ("gcg.miou", False), ("gcg.miou", True),
    ]  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3, 8, 11])
def test_every_sample_is_asked_about_on_exactly_one_rank(tmp_path: Path, size: int) -> None:
    places = HeldOut({"bars": write_shards(tmp_path / "bars", SCENES)}, None).places

    rounds = [rounds_of(places, World.alone(rank=rank, size=size), 2) for rank in range(size)]

    asked = [place for batches in rounds for batch in batches for place in batch]
    assert sorted(place.number for place in asked) == list(range(7))
    assert len({len(batches) for batches in rounds}) == 1


def test_asked_to_stop_it_leaves_without_a_report(tmp_path: Path) -> None:
    stage = Evaluate(
        Evaluate.Config(benchmarks=["gcg"], **PLAIN),
        Evaluate.Inputs(
            model=write_oracle(tmp_path / "model", SCENES), shards={"bars": write_shards(tmp_path / "bars", SCENES)}
        ),
        Evaluate.Outputs(report=Report(tmp_path / "score/report")),
    )

    context = context_in(tmp_path / "score", stop=True)
    with pytest.raises(Preempted):
        stage.run(context)
    context.journal.close()

    assert not (tmp_path / "score/report").exists()


def test_shards_without_anything_to_ask_about_are_refused_by_name(tmp_path: Path) -> None:
    bare = [Sample(key=sample.key, image=sample.image, width_px=40, height_px=40) for sample in SCENES[:2]]

    with pytest.raises(InputError, match="not one sample of the shards can be asked about for gcg"):
        evaluate(
            tmp_path / "score", write_oracle(tmp_path / "model", bare), {"bare": write_shards(tmp_path / "bare", bare)},
            benchmarks=["gcg"],
        )  # fmt: skip


def test_an_unknown_family_is_named_with_the_known_ones(tmp_path: Path) -> None:
    model = write_oracle(tmp_path / "model", SCENES)
    model.commit("f" * 64, facts={"family": "gpt", "model": {}})

    with pytest.raises(InputError, match=r"'gpt'; known are .*oracle"):
        evaluate(tmp_path / "s", model, {"bars": write_shards(tmp_path / "bars", SCENES)}, benchmarks=["gcg"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"benchmarks": []}, "benchmarks must name at least one of gcg, region_captions, refer, refer_compat"),
        (
            {"benchmarks": ["gcg", "bleu"]},
            "benchmarks: 'bleu' is unknown; known are gcg, region_captions, refer, refer_compat",
        ),
        ({"benchmarks": ["gcg"], "batch_size": 0}, "batch_size must be 1 or more, not 0"),
        ({"benchmarks": ["gcg"], "limit": 0}, "limit must be 1 or more, or null for all, not 0"),
        (
            {"benchmarks": ["gcg"], "at_least": {"gcg": {"mIoU": 0.5}}},
            "at_least.gcg: 'mIoU' is unknown; known are miou",
        ),
    ],
)
def test_a_wrong_config_names_field_given_and_allowed(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Evaluate.Config(**config)


@pytest.mark.parametrize(
    ("untrained", "trained", "passed"), [(0.25, 0.75, True), (0.25, 0.5, False), (0.0, 0.2, True), (0.0, 0.0, False)]
)
def test_a_gain_over_nothing_must_be_something(untrained: float, trained: float, passed: bool) -> None:  # noqa: FBT001 - a case of the table
    benchmark = {"scores": {"miou": trained}, "untrained": {"miou": untrained}}

    assert _check(benchmark, "gcg", "miou", "gains", 3.0)["passed"] == passed


def test_gains_need_the_untrained_model(tmp_path: Path) -> None:
    config = Evaluate.Config(benchmarks=["gcg"], gains={"gcg": {"miou": 3.0}, "region_captions": {"meteor": 2.0}})
    inputs = Evaluate.Inputs(model=Checkpoint(tmp_path), shards={"a": Shards(tmp_path)})

    faults = Evaluate(config, inputs, Evaluate.Outputs(report=Report(tmp_path))).faults()

    assert set(faults) == {"config.gains", "config.gains.region_captions"}


def test_what_a_family_cannot_do_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(stages.ABILITIES, dict)
    monkeypatch.setitem(stages.ABILITIES, "painter", ("Refers",))
    config = Evaluate.Config(benchmarks=["refer", "gcg"])
    inputs = Evaluate.Inputs(model=Checkpoint(tmp_path), shards={"a": Shards(tmp_path)})

    stage = Evaluate(config, inputs, Evaluate.Outputs(report=Report(tmp_path)))

    (told,) = stage.faults_with("painter").items()
    assert told == ("config.benchmarks[1]", "a painter model cannot be asked 'gcg'; it can: refer, refer_compat")
    assert not stage.faults_with("a plug-in's")


def test_what_planning_knows_of_the_benchmarks_is_true() -> None:
    assert {name: (question.ability, set(question.scores)) for name, question in QUESTIONS.items()} == {
        name: (benchmark.ability.__name__, set(benchmark.meanings)) for name, benchmark in BENCHMARKS.items()
    }
    assert all(question.falling <= set(question.scores) for question in QUESTIONS.values())


def test_regions_of_one_phrase_are_one_mask_and_a_phrase_said_twice_counts_once() -> None:
    left, right = SCENES[0].regions
    span = left.spans[0]
    joined = Sample(
        key="k", image=SCENES[0].image, width_px=40, height_px=40, caption=SCENES[0].caption,
        regions=(left, Region(box_xyxy_px=right.box_xyxy_px, mask=right.mask, phrase="x", spans=(*right.spans, span))),
    )  # fmt: skip

    answer = read_grounded(joined)

    assert answer is not None
    assert [said.span for said in answer.said] == [span]
    assert answer.said[0].phrase == "A red bar"


def test_a_phrase_of_the_caption_is_no_region_caption() -> None:
    box = (0.0, 0.0, 5.0, 5.0)
    sample = Sample(
        key="k", image=SCENES[0].image, width_px=40, height_px=40, caption="A dog.",
        regions=(
            Region(box_xyxy_px=box, mask=None, phrase="A dog", spans=((0, 5),)),
            Region(box_xyxy_px=box, mask=None, phrase="brown dog"),
            Region(box_xyxy_px=box, mask=None, phrase="dog", caption="A brown dog sleeps."),
            Region(box_xyxy_px=box, mask=None, phrase="many dogs", crowd=True),
        ),
    )  # fmt: skip

    answer = read_regions(sample)

    assert answer is not None
    assert [said.phrase for said in answer.said] == ["brown dog", "A brown dog sleeps."]


ALL = ["gcg", "region_captions", "refer", "refer_compat"]


def score_on_rank(world: World, directory: Path) -> dict[str, Any]:
    """Runs the evaluation of `directory` on one of several ranks; rank 0 writes."""
    dict_of_families()["oracle"] = ORACLE
    context = context_in(directory / f"rank{world.rank}", world)
    stage = Evaluate(
        Evaluate.Config(benchmarks=ALL, untrained=True, **PLAIN, batch_size=2, pictures=1),
        Evaluate.Inputs(model=Checkpoint(directory / "model"), shards={"bars": Shards(directory / "bars")}),
        Evaluate.Outputs(report=Report(directory / "rank0/report")),
    )
    facts = dict(stage.run(context)["report"])
    context.journal.close()
    return facts


@pytest.mark.slow
@pytest.mark.needs("torch")
def test_three_ranks_count_every_item_once_and_write_the_report_that_one_rank_writes(tmp_path: Path) -> None:
    shards = {"bars": write_shards(tmp_path / "bars", SCENES)}
    model = write_oracle(tmp_path / "model", SCENES, shift_px=2)
    alone = evaluate(tmp_path / "alone", model, shards, benchmarks=ALL, untrained=True, pictures=1)

    facts = run_ranks(3, score_on_rank, tmp_path, directory=tmp_path)

    for name in ("metrics.json", "predictions.jsonl"):
        assert (tmp_path / "rank0/report" / name).read_bytes() == (tmp_path / "alone/report" / name).read_bytes()
    assert facts[0] == facts[1] == facts[2]
    assert [alone["benchmarks"][name]["phrases"] for name in ALL] == [14, 14, 14, 14]  # 7 images on 3 ranks: no padding


def refused_on_rank(world: World, directory: Path) -> str:
    dict_of_families()["oracle"] = ORACLE
    context = context_in(directory / f"rank{world.rank}", world)
    (directory / "empty").mkdir(exist_ok=True)
    stage = Evaluate(
        Evaluate.Config(benchmarks=["gcg"], phrase_encoder=directory / "empty"),
        Evaluate.Inputs(model=Checkpoint(directory / "model"), shards={"bars": Shards(directory / "bars")}),
        Evaluate.Outputs(report=Report(directory / "rank0/report")),
    )
    with pytest.raises(InputError) as refused:
        stage.run(context)
    context.journal.close()
    return str(refused.value)


@pytest.mark.slow
@pytest.mark.needs("torch")
def test_an_encoder_that_cannot_be_loaded_ends_every_rank(tmp_path: Path) -> None:
    write_shards(tmp_path / "bars", SCENES)
    write_oracle(tmp_path / "model", SCENES)

    told = run_ranks(2, refused_on_rank, tmp_path, directory=tmp_path)

    assert told[0] == told[1]
    assert told[0].startswith("config.phrase_encoder: ")


def test_planning_an_evaluation_and_an_export_imports_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "PIL", "scipy", "nltk", "pycocotools"}
    program = f"import sys, stages.evaluate.stage, stages.export.stage; print(sorted({heavy!r} & sys.modules.keys()))"

    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert shown.stdout.strip() == "[]"
