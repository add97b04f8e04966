"""Asks about all samples, tar by tar: tar n is the work of rank n % world.size, and is kept once it is whole.

Which samples a tar holds depends on their places alone, and batches never span tars, so that neither the number of
ranks nor that of attempts changes what is written.
"""

import hashlib
import json
import logging
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from orchestrator.artifacts import Checkpoint, write_json
from orchestrator.data.reader import ShardSet
from orchestrator.data.writer import TarDraft
from orchestrator.errors import InputError, Preempted
from orchestrator.records import record
from orchestrator.stage import StageContext
from stages.family import Model, load_family
from stages.prediction.asking import asker_of, bare
from stages.prediction.stage import Predict
from stages.samples import SCHEMA, Sample
from stages.vision import decode_image

_RECEIPTS = "predicted"  # folder of the stage, a file for each finished tar

log = logging.getLogger(__name__)


@record
class Place:
    """Where one sample lies."""

    source: str  # name of the shards input
    number: int  # within that input


def predict_all(
    config: Predict.Config, inputs: Predict.Inputs, directory: Path, context: StageContext
) -> dict[str, Any]:
    """Writes tars of what the model says; returns facts. Collective: every rank must call."""
    work = _Work(config, inputs, directory, context)
    if context.world.is_main and (kept := work.tidy()):
        log.info("%d tars of an earlier attempt are finished and stay as they are", kept)
    context.world.barrier()
    try:
        work.run()
    finally:
        work.close()
    context.world.barrier()
    return context.world.broadcast(work.facts() if context.world.is_main else {})


class _Work:
    def __init__(self, config: Predict.Config, inputs: Predict.Inputs, directory: Path, context: StageContext) -> None:
        self._config, self._inputs, self._directory, self._context = config, inputs, directory, context
        self._receipts = context.directory / _RECEIPTS
        self._sets = {name: ShardSet(inputs.shards[name].path) for name in sorted(inputs.shards)}
        self._places = [
            Place(source=name, number=number)
            for name, samples in self._sets.items()
            for number in range(len(samples) if config.limit is None else min(len(samples), config.limit))
        ]
        if not self._places:
            raise InputError(f"there is not one sample in {', '.join(self._sets)}")
        self._tars = -(-len(self._places) // config.samples_per_shard)
        self._plan = _plan(config, inputs, context.fingerprint)
        self._model: Model | None = None

    def tidy(self) -> int:
        """Removes all that is no finished tar of this plan, and returns how many are. One rank calls it, at first."""
        for folder in (self._directory, self._receipts):
            folder.mkdir(parents=True, exist_ok=True)
        finished = [number for number in range(self._tars) if self._receipt(number) is not None]
        kept = {self._tar(number).with_suffix(suffix) for number in finished for suffix in (".tar", ".idx")}
        kept |= {self._receipts / f"{number:06d}.json" for number in finished}
        for folder in (self._directory, self._receipts):
            for path in folder.iterdir():
                if path not in kept:
                    path.unlink()
        return len(finished)

    def run(self) -> None:
        """Makes this rank's tars. Collective: every rank must call, and all meet once a batch."""
        world, config = self._context.world, self._config
        meetings = -(-config.samples_per_shard // config.batch_size)
        for first in range(0, self._tars, world.size):
            number = first + world.rank
            wanted = number < self._tars and self._receipt(number) is None
            batches = self._batches(number if wanted else None)
            for meeting in range(meetings):
                if world.any(flag=self._context.stop()):
                    batches.close()
                    raise Preempted("asked to stop: finished tars are kept, the next attempt goes on with the others")
                next(batches, None)
                done = first * config.samples_per_shard + (meeting + 1) * config.batch_size * world.size
                self._context.progress.advance(min(done, len(self._places)), len(self._places), "image")

    def close(self) -> None:
        """Closes every open tar."""
        for samples in self._sets.values():
            samples.close()

    def facts(self) -> dict[str, Any]:
        """Adds up the receipts of all tars."""
        receipts = [self._receipt(number) for number in range(self._tars)]
        whole = [receipt for receipt in receipts if receipt is not None]
        assert len(whole) == self._tars  # noqa: S101 - every rank has done its share
        known = [shards.facts() for shards in self._inputs.shards.values()]
        licences = dict.fromkeys(str(facts["licence"]) for facts in known if facts.get("licence"))
        checkpoint = self._inputs.model
        return {
            "samples": len(self._places),
            "shards": self._tars,
            "bytes": sum(self._tar(number).stat().st_size for number in range(self._tars)),
            "samples_per_tar": [receipt["samples"] for receipt in whole],
            "regions": sum(receipt["regions"] for receipt in whole),
            "unanswered": sum(receipt["unanswered"] for receipt in whole),
            "schema": SCHEMA,
            "source": f"{checkpoint.facts()['family']}'s answers",
            "licence": "; ".join(licences),
            "checkpoint": checkpoint.digest(),
            "sha256": {name: digest for receipt in whole for name, digest in receipt["sha256"].items()},
        }

    def _batches(self, number: int | None) -> Generator[None, None, None]:
        """Makes one tar, a batch each time it is asked for the next; None stands for nothing to do."""
        if number is None:
            return
        size, batch = self._config.samples_per_shard, self._config.batch_size
        places = self._places[number * size : (number + 1) * size]
        tar, regions, unanswered = TarDraft(self._tar(number)), 0, 0
        try:
            for first in range(0, len(places), batch):
                asked = [self._read(place) for place in places[first : first + batch]]
                for said in self._said(asked):
                    tar.write(said.key, said.to_members())
                    regions += len(said.regions)
                unanswered += sum(image is None for _, image in asked)
                if first + batch < len(places):
                    yield
        except BaseException:
            tar.discard()
            raise
        counts = {"samples": tar.samples, "regions": regions, "unanswered": unanswered}
        receipt = {"plan": self._plan, **counts, "sha256": dict(tar.finish())}
        write_json(self._receipts / f"{number:06d}.json", receipt)

    def _said(self, asked: Sequence[tuple[Sample, Image.Image | None]]) -> list[Sample]:
        """Asks about the images that can be seen; the others stay without a word."""
        if self._model is None:
            checkpoint: Checkpoint = self._inputs.model
            self._model = load_family(str(checkpoint.facts()["family"])).load(checkpoint.path)
        seen = [(sample, image) for sample, image in asked if image is not None]
        samples, images = [sample for sample, _ in seen], [image for _, image in seen]
        ask = asker_of(self._config.task, self._model)
        said = iter(ask(self._model, samples, images, self._config.max_new_tokens) if seen else [])
        return [bare(sample) if image is None else next(said) for sample, image in asked]

    def _read(self, place: Place) -> tuple[Sample, Image.Image | None]:
        key, members = self._sets[place.source].read(place.number)
        sample = Sample.from_members(
            key if len(self._sets) == 1 else f"{place.source.replace('.', '_')}-{key}", members
        )
        try:
            return sample, decode_image(sample.image)
        except InputError as error:
            log.warning("%s of %s is left without an answer: %s", key, place.source, error)
            return sample, None

    def _tar(self, number: int) -> Path:
        return self._directory / f"shard-{number:06d}.tar"

    def _receipt(self, number: int) -> Mapping[str, Any] | None:
        """Reads what is known of a finished tar; None unless it is of this plan and its files are there."""
        try:
            receipt: dict[str, Any] = json.loads((self._receipts / f"{number:06d}.json").read_bytes())
            there = all((self._directory / name).is_file() for name in receipt["sha256"])
            whole = receipt["plan"] == self._plan and there
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return receipt if whole else None


def _plan(config: Predict.Config, inputs: Predict.Inputs, fingerprint: str) -> str:
    """Returns what a finished tar must have been made of to be kept."""
    digests = {name: shards.digest() for name, shards in sorted(inputs.shards.items())}
    made_of = [fingerprint, repr(config), inputs.model.digest(), digests]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
