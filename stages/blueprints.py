"""Families whose models are drawn from a blueprint, which checkpoints and exports hold, with a tokenizer beside it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import nn

from orchestrator.artifacts import Checkpoint, write_json
from orchestrator.errors import DamagedArtifact, InputError
from orchestrator.training import elastic
from orchestrator.training.weights import load_into
from stages.adapters import LoraConfig, stored_name
from stages.exporting import CONFIG, PREPROCESSOR, fill_from_export, open_export, write_description, write_weights
from stages.family import MERGED, Model
from stages.wordpieces import FILES, WordPieces

TOKENIZER = "tokenizer"  # the folder inside a checkpoint


class Blueprint(Protocol):
    """All sizes of a model, resolved, as JSON holds them."""

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Rebuilds what `to_plain` gave; KeyError, TypeError or ValueError where it is something else."""

    def to_plain(self) -> dict[str, Any]:
        """Returns JSON-ready data."""


class Words(Protocol):
    """A tokenizer."""

    def files(self) -> Mapping[str, bytes]:
        """Returns the files that `FILES` of stages/wordpieces.py names."""


B = TypeVar("B", bound=Blueprint)
N = TypeVar("N", bound=nn.Module)
M = TypeVar("M", bound=Model)


def read_blueprint(checkpoint: Checkpoint, family: str, kind: type[B]) -> B:
    """Reads what a checkpoint says about its model; InputError for one of another family."""
    facts = checkpoint.facts()
    if facts.get("family") != family:
        found = facts.get("family")
        raise InputError(f"{checkpoint.path} is a checkpoint of the family {found!r}, needed is {family!r}")
    return kind.from_plain(facts["model"])


def fill_from_checkpoint(
    model: nn.Module, checkpoint: Path, *, may_lack: Callable[[str], bool] = lambda _: False
) -> frozenset[str]:
    """Fills a model that goes on from a checkpoint, adapters beside the weights they adapt; returns what was filled.

    InputError for a checkpoint that lacks more than it may, or has more. Collective: every rank must call.
    """
    stored = elastic.tensors(checkpoint / elastic.WEIGHTS)
    report = load_into(model, checkpoint, rename=lambda name: stored_name(name, stored))
    if report.unexpected or not all(map(may_lack, report.missing)):
        raise InputError(f"{checkpoint} does not fit the model: {report}")
    return frozenset(report.loaded)


def tokenizer_files(words: Words | None) -> dict[str, bytes]:
    """Returns the files of a tokenizer where a checkpoint has them; None: the model reads no words."""
    return {} if words is None else {f"{TOKENIZER}/{name}": content for name, content in words.files().items()}


class BlueprintFamily(ABC, Generic[B, N, M]):
    """What evaluation, export and prediction ask of such a family (`stages.family.ModelFamily`)."""

    name: str  # what config.json calls the class of its models
    family: str  # as in stages.FAMILIES
    blueprint: type[B]

    def __init__(self, *, device: str | None = None, dtype: torch.dtype = torch.float32) -> None:
        """Says where its models work, and in which type; null: on a GPU if there is one."""
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._dtype = dtype

    @abstractmethod
    def build(self, blueprint: B) -> N:
        """Builds a model whose weights are about to be filled, all of them."""

    @abstractmethod
    def draw(self, network: N, seed: int) -> None:
        """Fills a model with fresh weights, a function of the seed alone."""

    @abstractmethod
    def answering(self, network: N, pieces: Any) -> M:
        """Makes a model that has its weights ready to answer, with its tokenizer; None where it `reads` none."""

    def preprocessor(self, blueprint: B) -> Mapping[str, Any] | None:
        """Says how pictures are prepared, for those who read an export without this code; None: not said."""
        del blueprint
        return None

    def reads(self, blueprint: B) -> bool:
        """Tells whether a model has a tokenizer of its own."""
        del blueprint
        return True

    def words(self, folder: Path) -> Words:
        """Reads the tokenizer of a model."""
        return WordPieces.read(folder)

    def adapters(self, blueprint: B) -> LoraConfig | None:
        """Returns the adapters that an export merges."""
        del blueprint
        return None

    def exported(self, blueprint: B) -> B:
        """Returns the blueprint of what an export holds."""
        return blueprint

    def settings(self, blueprint: B) -> Mapping[str, Any]:
        """Returns what further readers look for in an export's config.json."""
        del blueprint
        return {}

    def load(self, checkpoint: Path) -> M:
        """Loads a Checkpoint artifact, adapters beside the weights they adapt."""
        blueprint = read_blueprint(Checkpoint(checkpoint), self.family, self.blueprint)
        network, stored = self.built(blueprint), elastic.tensors(checkpoint / elastic.WEIGHTS)
        report = load_into(network, checkpoint, rename=lambda name: stored_name(name, stored))
        if report.missing or report.unexpected:
            raise DamagedArtifact(f"{checkpoint} does not fit the model that its manifest describes: {report}")
        return self.ready(network, self._words(checkpoint / TOKENIZER, blueprint))

    def untrained(self, checkpoint: Path, *, seed: int) -> M:
        """Builds the model of this checkpoint with fresh weights, a function of the seed alone."""
        blueprint = read_blueprint(Checkpoint(checkpoint), self.family, self.blueprint)
        network = self.built(blueprint)
        self.draw(network, seed)
        return self.ready(network, self._words(checkpoint / TOKENIZER, blueprint))

    def export(self, checkpoint: Path, directory: Path, *, card: str, form: str = MERGED) -> dict[str, Any]:
        """Writes safetensors with adapters merged, config, tokenizer, preprocessor and card; returns facts."""
        if form != MERGED:
            raise InputError(f"config.form: {form!r} cannot be had of a {self.name}; allowed: {MERGED}")
        blueprint = read_blueprint(Checkpoint(checkpoint), self.family, self.blueprint)
        facts = write_weights(checkpoint, directory, self.adapters(blueprint))
        words = self._words(checkpoint / TOKENIZER, blueprint)
        for name, content in ({} if words is None else words.files()).items():
            (directory / name).write_bytes(content)
        if (preparing := self.preprocessor(blueprint)) is not None:
            write_json(directory / PREPROCESSOR, dict(preparing))
        plain = self.exported(blueprint).to_plain()
        write_description(
            directory, model=self.name, model_type=self.family, blueprint=plain, card=card,
            others=self.settings(blueprint),
        )  # fmt: skip
        return facts

    def load_export(self, directory: Path) -> M:
        """Loads what `export` wrote, from that folder alone."""
        found = open_export(directory, model=self.name, model_type=self.family)
        try:
            blueprint = self.blueprint.from_plain(found.blueprint)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{directory / CONFIG}: its blueprint cannot be read ({error})") from None
        if self.reads(blueprint):
            open_export(directory, model=self.name, model_type=self.family, files=FILES)
        network = self.built(blueprint)
        fill_from_export(network, found)
        return self.ready(network, self._words(directory, blueprint))

    def built(self, blueprint: B) -> N:
        """Builds a model in the type that it is to work in, so that a large one never takes the memory of float32."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(self._dtype)
        try:
            return self.build(blueprint)
        finally:
            torch.set_default_dtype(before)

    def ready(self, network: N, words: Words | None) -> M:
        """Puts a model where it works, ready to answer."""
        network.to(device=self._device, dtype=self._dtype)
        return self.answering(network, words)

    def _words(self, folder: Path, blueprint: B) -> Words | None:
        return self.words(folder) if self.reads(blueprint) else None
