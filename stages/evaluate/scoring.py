"""One evaluation from questions to a finished report: ask on every rank, gather, score, write, draw."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.artifacts import write_json
from orchestrator.errors import InputError
from orchestrator.stage import StageContext
from orchestrator.world import World
from stages.evaluate.asking import Asked, ask_all
from stages.evaluate.benchmark import Benchmark, Tools
from stages.evaluate.benchmarks import BENCHMARKS
from stages.evaluate.caption_scorers import open_caption_scorer
from stages.evaluate.drawing import draw_all
from stages.evaluate.items import HeldOut
from stages.evaluate.likeness import open_likeness
from stages.evaluate.panoptic_files import write_panoptic
from stages.evaluate.published import Setting, beside
from stages.evaluate.questions import QUESTIONS
from stages.evaluate.stage import Evaluate

log = logging.getLogger(__name__)


def evaluate(
    config: Evaluate.Config, inputs: Evaluate.Inputs, directory: Path, context: StageContext
) -> Mapping[str, Any]:
    """Writes metrics.json, predictions.jsonl and pictures/; returns facts. Collective: every rank must call."""
    held_out = HeldOut(inputs.shards, config.limit)
    tools = _open_tools(config, context.world)  # before hours of asking: what cannot be loaded is known at once
    asked = ask_all(config, inputs.model, held_out, context)
    facts: Mapping[str, Any] = {}
    if tools is not None:
        facts = _write(config, inputs, held_out, asked, tools, directory, context)
    held_out.close()
    return context.world.broadcast(facts)


def _open_tools(config: Evaluate.Config, world: World) -> Tools | None:
    """Loads what scores text, on the first rank; a failure is every rank's. Collective: every rank must call."""
    tools, problem = None, ""
    if world.is_main:
        try:
            tools = Tools(
                captions=open_caption_scorer(config.caption_scorer), likeness=open_likeness(config.phrase_encoder)
            )
        except InputError as error:
            problem = str(error)
    if problem := world.broadcast(problem):
        raise InputError(problem)
    return tools


def _write(
    config: Evaluate.Config,
    inputs: Evaluate.Inputs,
    held_out: HeldOut,
    asked: Sequence[Asked],
    tools: Tools,
    directory: Path,
    context: StageContext,
) -> dict[str, Any]:
    shutil.rmtree(directory, ignore_errors=True)  # what a killed attempt left
    (directory / "pictures").mkdir(parents=True)
    with (directory / "predictions.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(one.to_plain(), ensure_ascii=False) + "\n" for one in asked)
    _write_panoptic(inputs, asked, directory)
    shown = {source: _setting(config, inputs, held_out, tools, source) for source in sorted(inputs.shards)}
    benchmarks = {
        name: _scores_of(name, [one for one in asked if one.benchmark == name], shown) for name in config.benchmarks
    }
    checks = list(_checks(config, benchmarks))
    family = inputs.model.facts()["family"]
    metrics: dict[str, Any] = {
        "benchmarks": benchmarks,
        "checks": checks,
        "family": family,
        "checkpoint": inputs.model.digest(),
        "pictures": draw_all(config, held_out, asked, directory / "pictures", context),
    }
    write_json(directory / "metrics.json", metrics)
    _tell(benchmarks, checks, int(inputs.model.facts().get("step", 0)), context)
    scores = {name: found["scores"] for name, found in benchmarks.items()}
    return {"scores": scores, "passed": all(check["passed"] for check in checks), "family": family}


def _write_panoptic(inputs: Evaluate.Inputs, asked: Sequence[Asked], directory: Path) -> None:
    """Writes what the model said of panoptic segments once more, as other tools read it."""
    answers = [(one.key, one.answers["trained"], one.reference) for one in asked if one.benchmark == "panoptic"]
    listed = {one["id"]: one for shards in inputs.shards.values() for one in shards.facts().get("categories", ())}
    if answers and listed:
        write_panoptic(answers, list(listed.values()), directory)


def _tell(benchmarks: Mapping[str, Any], checks: Sequence[Mapping[str, Any]], step: int, context: StageContext) -> None:
    """Tells log and journal the scores, and the log what was wished for in vain."""
    for name, found in benchmarks.items():
        log.info("%s over %d images: %s", name, found["images"], _shown(found["scores"]))
        context.journal.metrics(step, {f"eval/{name}/{score}": value for score, value in found["scores"].items()})
        untrained = found["untrained"] or {}
        context.journal.metrics(step, {f"eval_untrained/{name}/{score}": value for score, value in untrained.items()})
    for check in (check for check in checks if not check["passed"]):
        log.warning("%s is %.4g, wanted is %s %.4g", check["score"], check["is"], check["limit"], check["wanted"])


def _setting(config: Evaluate.Config, inputs: Evaluate.Inputs, held_out: HeldOut, tools: Tools, source: str) -> Setting:
    return Setting(
        facts=inputs.shards[source].facts(),
        limited=source in held_out.limited,
        max_new_tokens=config.max_new_tokens,
        tools=tools,
    )


def _scores_of(name: str, asked: Sequence[Asked], settings: Mapping[str, Setting]) -> dict[str, Any]:
    """Scores all answers together, and those of each input where there are several."""
    if not asked:
        raise InputError(f"benchmarks: not one sample of the shards can be asked about for {name}")
    benchmark, sources = BENCHMARKS[name], sorted({one.place.source for one in asked})
    together = _scored(name, asked, [settings[source] for source in sources])
    by_shards = {
        source: _scored(name, [one for one in asked if one.place.source == source], [settings[source]])
        for source in sources
    } if len(sources) > 1 else {}  # fmt: skip
    return {
        **together,
        "by_shards": by_shards,
        "sources": sources,
        "protocol": " ".join((benchmark.protocol, *_told(benchmark, settings[sources[0]].tools))),
        "meanings": dict(benchmark.meanings),
        "modes": {score: "compat" if score in benchmark.compat else "strict" for score in benchmark.meanings},
    }


def _told(benchmark: Benchmark, tools: Tools) -> list[str]:
    told = {tools.captions.told: benchmark.worded, tools.likeness.told: benchmark.likened}
    return [text for text, scores in told.items() if scores]


def _scored(name: str, asked: Sequence[Asked], settings: Sequence[Setting]) -> dict[str, Any]:
    benchmark, references = BENCHMARKS[name], [one.reference for one in asked]
    scores = {
        model: benchmark.score([one.answers[model] for one in asked], references, settings[0].tools)
        for model in asked[0].answers
    }
    return {
        "images": len(asked),
        "phrases": sum(len(reference.said) for reference in references),
        "scores": scores["trained"],
        "untrained": scores.get("untrained"),
        "published": beside(name, benchmark, settings),
    }


def _checks(config: Evaluate.Config, benchmarks: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Compares the scores with what the recipe wished for."""
    found = []
    for field, wishes in config.wishes().items():
        for name, wanted in wishes.items():
            for score, number in wanted.items():
                found.append(_check(benchmarks[name], name, score, field, number))
    return found


def _check(benchmark: Mapping[str, Any], name: str, score: str, field: str, number: float) -> dict[str, Any]:
    """Compares one score; one that falls as a model learns must not be above what is wanted."""
    value, falls = benchmark["scores"][score], score in QUESTIONS[name].falling
    gain, wanted, better = {}, number, True
    if field == "gains":
        before = benchmark["untrained"][score]
        gain, wanted = {"gain": number}, before / number if falls else before * number
        better = value < before if falls else value > before  # three times nothing is nothing: 0 must be beaten, too
    passed = better and (value <= wanted if falls else value >= wanted)
    limit = "at most" if falls else "at least"
    return {"score": f"{name}.{score}", "limit": limit, "wanted": wanted, "is": value, "passed": passed, **gain}


def _shown(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
