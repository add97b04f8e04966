"""Asks on every rank: each image is one rank's, and the first rank gets every answer once."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.artifacts import Checkpoint
from orchestrator.errors import InputError, Preempted
from orchestrator.records import record
from orchestrator.stage import StageContext
from stages.evaluate.answers import Answer
from stages.evaluate.benchmarks import BENCHMARKS
from stages.evaluate.items import HeldOut, Place, rounds_of
from stages.evaluate.stage import Evaluate
from stages.family import Model, load_family, unable
from stages.vision import decode_image

log = logging.getLogger(__name__)


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


def ask_all(config: Evaluate.Config, checkpoint: Checkpoint, held_out: HeldOut, context: StageContext) -> list[Asked]:
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
        for benchmark in config.benchmarks:
            if not isinstance(model, BENCHMARKS[benchmark].ability):
                raise unable(model, BENCHMARKS[benchmark].ability)
        for turn, places in enumerate(rounds):
            if context.world.any(flag=context.stop()):
                raise Preempted("the evaluation was asked to stop; it starts again from its first image")
            for asked, answer in _ask(config, model, held_out, places, context.seed):
                answers.setdefault(asked, {})[name] = answer
            done = min(len(held_out.places), (turn + 1) * config.batch_size * context.world.size)
            total = len(loaders) * len(held_out.places)
            context.progress.advance(number * len(held_out.places) + done, total, "image")
        del model  # two models at once may not fit
    mine = [
        _asked(held_out, benchmark, place, said, context.seed).to_plain()
        for (benchmark, place), said in answers.items()
    ]
    everything = [Asked.from_plain(plain) for share in context.world.gather(mine) for plain in share]
    order = {place: number for number, place in enumerate(held_out.places)}
    return sorted(everything, key=lambda one: (config.benchmarks.index(one.benchmark), order[one.place]))


def _ask(
    config: Evaluate.Config, model: Model, held_out: HeldOut, places: Sequence[Place], seed: int
) -> list[tuple[tuple[str, Place], Answer]]:
    """Puts every benchmark's question to the images of one batch that can answer it."""
    samples = [(place, held_out.read(place)) for place in places]
    answered = []
    for name in config.benchmarks:
        benchmark = BENCHMARKS[name]
        fitting = [
            (place, sample, truth)
            for place, sample in samples
            if (truth := benchmark.reference(sample, seed)) is not None
        ]
        if fitting:
            images = [decode_image(sample.image) for _, sample, _ in fitting]
            said = benchmark.ask(model, images, [truth for *_, truth in fitting], config.max_new_tokens)
            answered += [((name, place), answer) for (place, *_), answer in zip(fitting, said, strict=True)]
    return answered


def _asked(held_out: HeldOut, benchmark: str, place: Place, answers: Mapping[str, Answer], seed: int) -> Asked:
    sample = held_out.read(place)
    reference = BENCHMARKS[benchmark].reference(sample, seed)
    if reference is None:
        raise InputError(f"sample {sample.key!r} of {place.source} changed while it was evaluated")
    return Asked(benchmark=benchmark, place=place, key=sample.key, reference=reference, answers=answers)
