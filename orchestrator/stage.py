"""The contract between a recipe and its work: a stage turns input artifacts into output artifacts."""

import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from orchestrator.errors import OrchError
from orchestrator.records import record
from orchestrator.resources import Resources

if TYPE_CHECKING:
    from orchestrator.journal import Journal
    from orchestrator.progress import Progress
    from orchestrator.training.memory.sketch import Sketch
    from orchestrator.world import World

log = logging.getLogger(__name__)


@record
class Nothing:
    """No config, no inputs or no outputs."""


def _unlimited() -> float:
    return math.inf


def _leave(error: OrchError) -> NoReturn:
    log.critical("%s: %s", type(error).__name__, error)
    os._exit(error.exit_code)


@record
class StageContext:
    """What a running stage knows of the place it runs in."""

    directory: Path  # the stage's own folder: checkpoints/ and scratch files go here
    name: str  # as in the recipe
    fingerprint: str
    seed: int
    world: "World"
    journal: "Journal"  # metrics, parameters, pictures; does nothing on ranks other than the first
    progress: "Progress"  # how far we are, for `orch status`; does nothing on ranks other than the first
    stop: Callable[[], bool]  # asked between steps; True = save and leave
    time_left_s: Callable[[], float] = _unlimited  # until this process is killed, as far as anybody knows
    straggler: float = 1.5  # a rank that needs so many times the ranks' median for a step is reported
    peak_tflops: float | None = None  # of a rank's GPU in bf16, as its data sheet says; None = nobody says
    fail: Callable[[OrchError], NoReturn] = _leave  # ends this process at once, from any thread, and records why


class Stage(ABC):
    """One step of a recipe: reads its inputs, writes its outputs, knows no other stage.

    Importing a stage's module must not import torch: planning reads Config, Inputs and Outputs on a login node.
    """

    Config: ClassVar[type] = Nothing
    Inputs: ClassVar[type] = Nothing  # fields: an Artifact class, `... | None`, or dict[str, Artifact class]
    Outputs: ClassVar[type] = Nothing  # fields: Artifact classes
    family: ClassVar[str | None] = None  # the model family whose checkpoint this stage writes
    asks_family: ClassVar[bool] = False  # True: runs the code of its input checkpoint's family (evaluate, export)
    keeps_parts: ClassVar[bool] = False  # True: `run` itself decides what counts of the outputs a dead attempt left
    joins: ClassVar[bool] = False  # True: needs a process group even as a single process (training under an engine)

    def __init__(self, config: Any, inputs: Any, outputs: Any) -> None:
        """Binds the stage to typed records of the classes Config, Inputs and Outputs."""
        self.config = config
        self.inputs = inputs
        self.outputs = outputs

    def faults(self) -> Mapping[str, str]:
        """Lists what is wrong with config and inputs together: dotted key below the stage -> message. No torch."""
        return {}

    def faults_on(self, resources: Resources) -> Mapping[str, str]:
        """Lists what cannot be done with these resources: dotted key below the stage -> message. No torch."""
        del resources
        return {}

    def faults_with(self, family: str) -> Mapping[str, str]:
        """Lists what a model of this family cannot do, where `asks_family`: dotted key below the stage -> message."""
        del family
        return {}

    def code_roots(self) -> tuple[str, ...]:
        """Names the modules, beside its own, whose code decides the result but is found by name at run time."""
        return ()

    def outside(self) -> Mapping[str, str]:
        """Names what the result depends on outside recipe, code and inputs, e.g. raw files: name -> cheap digest."""
        return {}

    def steps(self) -> int | None:
        """Returns how many steps `run` takes, where that is known beforehand."""
        return None

    def foresee(self, inputs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
        """Says what the manifests of its outputs will say: output name -> facts, as far as anybody knows. No torch.

        `inputs` holds the facts of its inputs by wired name ("model", "shards.grounded"), of those known.
        """
        del inputs
        return {}

    def faults_given(self, inputs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, str]:
        """Lists what is wrong with what is given, by its facts as in `foresee`: dotted key below the stage -> message.

        So a model of the wrong kind is refused before it is made. No torch.
        """
        del inputs
        return {}

    def sketch(self, inputs: Mapping[str, Mapping[str, Any]]) -> "Sketch | None":
        """Describes model and micro-batch to the planner of memory and cost; None = `orch plan` shows `-`. No torch."""
        del inputs
        return None

    @abstractmethod
    def run(self, context: StageContext) -> Mapping[str, Mapping[str, Any]]:
        """Does the work and returns the facts of each output: output name -> facts for its manifest.

        Under "sha256" it may hand over the digests of files that it knows already: path inside the output -> hex.
        Collective: every rank must call. The caller commits the outputs, on the first rank, after all have returned.
        """
