"""One evaluation from questions to a finished report: ask on every rank, gather, score, write, draw."""

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.artifacts import Checkpoint, write_json
from orchestrator.errors import InputError, Preempted
from orchestrator.records import record
from orchestrator.stage import StageContext
from stages.evaluate.answers import Answer, panel_of
from stages.evaluate.benchmarks import BENCHMARKS
from stages.evaluate.items import HeldOut, Place, rounds_of
from stages.evaluate.layers import write_layers
from stages.evaluate.stage import Evaluate
from stages.family import Model, load_family
from stages.pictures import contact_sheet, draw_panels
from stages.vision import decode_image

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

SHEET_PICTURES = 6


@record
class Asked:
    """One image, one benchmark: what is true, and what each model said."""

    benchmark: str
    place: Place
    key: str
    reference: Answer
    answers: Mapping[str, Answer]  # "trained", "untrained"

    def to_plain(self) -> dict[str, Any]:
        """Returns the line of predictions.jsonl."""
        said = {model: answer.to_plain() for model, answer in self.answers.items()}
        shown = {"benchmark": self.benchmark, "source": self.place.source, "number": self.place.number, "key": self.key}
        return {**shown, "reference": self.reference.to_plain(), **said}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Asked":
        """Reads what `to_plain` returned."""
        models = [model for model in ("trained", "untrained") if model in plain]
        return cls(
            benchmark=plain["benchmark"],
            place=Place(source=plain["source"], number=plain["number"]),
            key=plain["key"],
            reference=Answer.from_plain(plain["reference"]),
            answers={model: Answer.from_plain(plain[model]) for model in models},
        )


def evaluate(
    config: Evaluate.Config, inputs: Evaluate.Inputs, directory: Path, context: StageContext
) -> Mapping[str, Any]:
    """Writes metrics.json, predictions.jsonl and pictures/; returns facts. Collective: every rank must call."""
    held_out = HeldOut(inputs.shards, config.limit)
    asked = _ask_all(config, inputs.model, held_out, context)
    facts: Mapping[str, Any] = {}
    if context.world.is_main:
        facts = _write(config, inputs.model, held_out, asked, directory, context)
    held_out.close()
    return context.world.broadcast(facts)


def _ask_all(config: Evaluate.Config, checkpoint: Checkpoint, held_out: HeldOut, context: StageContext) -> list[Asked]:
    """Lets every model answer this rank's share, and gathers all shares. Collective: every rank must call."""
    family = load_family(str(checkpoint.facts()["family"]))
    loaders: dict[str, Callable[[], Model]] = {"trained": lambda: family.load(checkpoint.path)}
    if config.untrained:
        loaders["untrained"] = lambda: family.untrained(checkpoint.path, seed=context.seed)
    rounds = rounds_of(held_out.places, context.world, config.batch_size)
    answers: dict[tuple[str, Place], dict[str, Answer]] = {}
    for number, (name, load) in enumerate(loaders.items()):
        log.info("asking the %s model about %d images", name, len(held_out.places))
        model = load()
        for turn, places in enumerate(rounds):
            if context.world.any(flag=context.stop()):
                raise Preempted("the evaluation was asked to stop; it starts again from its first image")
            for asked, answer in _ask(config, model, held_out, places):
                answers.setdefault(asked, {})[name] = answer
            done = min(len(held_out.places), (turn + 1) * config.batch_size * context.world.size)
            total = len(loaders) * len(held_out.places)
            context.progress.advance(number * len(held_out.places) + done, total, "image")
        del model  # two models at once may not fit
    mine = [_asked(held_out, benchmark, place, said).to_plain() for (benchmark, place), said in answers.items()]
    everything = [Asked.from_plain(plain) for share in context.world.gather(mine) for plain in share]
    order = {place: number for number, place in enumerate(held_out.places)}
    return sorted(everything, key=lambda one: (config.benchmarks.index(one.benchmark), order[one.place]))


def _ask(
    config: Evaluate.Config, model: Model, held_out: HeldOut, places: Sequence[Place]
) -> list[tuple[tuple[str, Place], Answer]]:
    """Puts every benchmark's question to the images of one batch that can answer it."""
    samples = [(place, held_out.read(place)) for place in places]
    answered = []
    for name in config.benchmarks:
        benchmark = BENCHMARKS[name]
        fitting = [
            (place, sample, truth) for place, sample in samples if (truth := benchmark.reference(sample)) is not None
        ]
        if fitting:
            images = [decode_image(sample.image) for _, sample, _ in fitting]
            said = benchmark.ask(model, images, [truth for *_, truth in fitting], config.max_new_tokens)
            answered += [((name, place), answer) for (place, *_), answer in zip(fitting, said, strict=True)]
    return answered


def _asked(held_out: HeldOut, benchmark: str, place: Place, answers: Mapping[str, Answer]) -> Asked:
    sample = held_out.read(place)
    reference = BENCHMARKS[benchmark].reference(sample)
    if reference is None:
        raise InputError(f"sample {sample.key!r} of {place.source} changed while it was evaluated")
    return Asked(benchmark=benchmark, place=place, key=sample.key, reference=reference, answers=answers)


def _write(
    config: Evaluate.Config,
    checkpoint: Checkpoint,
    held_out: HeldOut,
    asked: Sequence[Asked],
    directory: Path,
    context: StageContext,
) -> dict[str, Any]:
    shutil.rmtree(directory, ignore_errors=True)  # what a killed attempt left
    (directory / "pictures").mkdir(parents=True)
    with (directory / "predictions.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(one.to_plain(), ensure_ascii=False) + "\n" for one in asked)
    benchmarks = {name: _scores_of(name, [one for one in asked if one.benchmark == name]) for name in config.benchmarks}
    checks = list(_checks(config, benchmarks))
    metrics: dict[str, Any] = {
        "benchmarks": benchmarks,
        "checks": checks,
        "family": checkpoint.facts()["family"],
        "checkpoint": checkpoint.digest(),
        "pictures": _draw(config, held_out, asked, directory / "pictures", context),
    }
    write_json(directory / "metrics.json", metrics)
    step = int(checkpoint.facts().get("step", 0))
    for name, found in benchmarks.items():
        log.info("%s over %d images: %s", name, found["images"], _shown(found["scores"]))
        context.journal.metrics(step, {f"eval/{name}/{score}": value for score, value in found["scores"].items()})
        untrained = found["untrained"] or {}
        context.journal.metrics(step, {f"eval_untrained/{name}/{score}": value for score, value in untrained.items()})
    for check in (check for check in checks if not check["passed"]):
        log.warning("%s is %.4g, wanted is at least %.4g", check["score"], check["is"], check["wanted"])
    scores = {name: found["scores"] for name, found in benchmarks.items()}
    return {"scores": scores, "passed": all(check["passed"] for check in checks), "family": metrics["family"]}


def _scores_of(name: str, asked: Sequence[Asked]) -> dict[str, Any]:
    if not asked:
        raise InputError(f"benchmarks: not one sample of the shards can be asked about for {name}")
    benchmark, sources = BENCHMARKS[name], sorted({one.place.source for one in asked})
    by_shards = {
        source: _scored(name, [one for one in asked if one.place.source == source]) for source in sources
    } if len(sources) > 1 else {}  # fmt: skip
    return {
        **_scored(name, asked),
        "by_shards": by_shards,
        "sources": sources,
        "protocol": benchmark.protocol,
        "meanings": dict(benchmark.meanings),
    }


def _scored(name: str, asked: Sequence[Asked]) -> dict[str, Any]:
    references = [one.reference for one in asked]
    scores = {
        model: BENCHMARKS[name].score([one.answers[model] for one in asked], references) for model in asked[0].answers
    }
    items = sum(len(reference.said) for reference in references)
    return {"images": len(asked), "phrases": items, "scores": scores["trained"], "untrained": scores.get("untrained")}


def _checks(config: Evaluate.Config, benchmarks: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Compares the scores with what the recipe wished for."""
    found = []
    for name, wishes in config.at_least.items():
        for score, wanted in wishes.items():
            found.append(_check(benchmarks[name], f"{name}.{score}", wanted))
    for name, wishes in config.gains.items():
        for score, factor in wishes.items():
            before = benchmarks[name]["untrained"][score]
            found.append({**_check(benchmarks[name], f"{name}.{score}", factor * before), "gain": factor})
    return found


def _check(benchmark: Mapping[str, Any], score: str, wanted: float) -> dict[str, Any]:
    value = benchmark["scores"][score.partition(".")[2]]
    return {"score": score, "wanted": wanted, "is": value, "passed": value >= wanted}


def _draw(
    config: Evaluate.Config, held_out: HeldOut, asked: Sequence[Asked], directory: Path, context: StageContext
) -> list[dict[str, str]]:
    """Draws the first pictures of each benchmark and a contact sheet, and tells the journal."""
    drawn: list[dict[str, str]] = []
    pictures: list[Image.Image] = []
    for name in config.benchmarks:
        for number, one in enumerate([one for one in asked if one.benchmark == name][: config.pictures]):
            image, said = decode_image(held_out.read(one.place).image), _said(one)
            picture = draw_panels(image, [panel_of(title, answer) for title, answer in said])
            path = directory / f"{name}_{number:03d}.png"
            picture.save(path)
            pictures.append(picture)
            shown = {"path": f"pictures/{path.name}", "layers": write_layers(path.with_suffix(".json"), image, said)}
            drawn.append({**shown, "benchmark": name, "key": one.key, "text": _in_words(one)})
            context.journal.append("picture", path=str(path.relative_to(context.directory)), name=f"{name}/{one.key}")
    if pictures:
        sheet = directory / "sheet.png"
        contact_sheet(pictures[:SHEET_PICTURES]).save(sheet)
        context.journal.append("picture", path=str(sheet.relative_to(context.directory)), name="sheet")
    return drawn


def _said(one: Asked) -> list[tuple[str, Answer]]:
    """Lists what is true and what each model said, with a title each."""
    titles = {"trained": "Trained", "untrained": "Untrained (fresh weights)"}
    return [("Ground truth", one.reference), *((titles[model], answer) for model, answer in one.answers.items())]


def _in_words(one: Asked) -> str:
    """Describes a picture to those who cannot see it."""
    said = [f"Ground truth: {_text(one.reference)}", *(f"{name}: {_text(a)}" for name, a in one.answers.items())]
    return f"Held-out image {one.key}. " + " | ".join(said)


def _text(answer: Answer) -> str:
    return answer.caption or "; ".join(said.phrase for said in answer.said) or "(nothing)"


def _shown(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
