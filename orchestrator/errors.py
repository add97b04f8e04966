"""Every exception of orch, and the exit code each one ends a command with.

OrchError                    1  anything orch can explain; the message is for the user
|-- RecipeError              2  the recipe is wrong; carries every fault, not just the first
|-- InputError               2  the command line or a file given to us is wrong
|   `-- DamagedArtifact      2  an artifact's files do not match its manifest
|       `-- DamagedSample    2  one sample of a set of shards is lost; names its tar, its key and the reason
|-- SurroundingsError        3  disk, permissions, another program, the cluster
|   |-- StorageAway          3  a file system does not answer
|   |-- RunBusy              3  somebody else is launching this run; names the holder
|   |-- TrackingAway         3  MLflow does not answer, or not now; nothing is lost, `orch sync` tells it later
|   `-- TrackingRefused      3  MLflow answers, and will never take this
|-- StageFailed              1  a stage ended without its outputs
|-- WorkersLost              1  a micro-batch kills every data worker that computes it
|-- AsymmetricRanks          1  ranks run different modules, so that they would wait for each other for ever
|-- Preempted                -  asked to stop; everything was saved, the job wants to be queued again
`-- Diverged                 1  the loss or the gradients left all bounds, and the recipe's policy is to stop
"""

from collections.abc import Sequence

from orchestrator.records import record


@record
class Fault:
    """One thing that is wrong, where, and what would be right."""

    key: str
    message: str

    def __str__(self) -> str:
        """Reads `key: message`."""
        return f"{self.key}: {self.message}" if self.key else self.message


class OrchError(Exception):
    """Anything orch can explain to its user; shown without a traceback."""

    exit_code = 1


class RecipeError(OrchError):
    """The recipe cannot run; `faults` lists everything that is wrong with it."""

    exit_code = 2

    def __init__(self, faults: Sequence[Fault]) -> None:
        """Keeps every fault; the message is one line each."""
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in faults))


class InputError(OrchError):
    """The command line, or a file it names, is wrong."""

    exit_code = 2


class DamagedArtifact(InputError):
    """The files of an artifact are not the ones its manifest lists."""


class DamagedSample(DamagedArtifact):
    """One sample of a set of shards is lost; the others of its tar may be whole."""

    def __init__(self, tar: str, key: str, reason: str) -> None:
        """Keeps where it was lost, which one (empty where even the key is lost), and why."""
        self.tar = tar
        self.key = key
        self.reason = reason
        super().__init__(f"{tar}: sample {key!r}: {reason}" if key else f"{tar}: a sample is lost: {reason}")

    def __reduce__(self) -> tuple[type["DamagedSample"], tuple[str, str, str]]:
        """Says how another process makes it again: from its three parts, not from its message."""
        return type(self), (self.tar, self.key, self.reason)


class SurroundingsError(OrchError):
    """The machine, the disk or the cluster does not let us work."""

    exit_code = 3


class StorageAway(SurroundingsError):
    """A file system does not answer, or answers with errors wherever it is asked."""


class RunBusy(SurroundingsError):
    """Another process is working on this run; the message names it."""


class TrackingAway(SurroundingsError):
    """MLflow does not answer, or not now; what it was to be told waits in the journal."""


class TrackingRefused(SurroundingsError):
    """MLflow answers that it will not take something."""


class StageFailed(OrchError):
    """A stage ended without its outputs."""


class WorkersLost(OrchError):
    """Data workers die or hang over the same samples, one after another; the message names them."""


class AsymmetricRanks(OrchError):
    """Ranks of one job run different modules; the message names them, the modules and the step."""


class Preempted(OrchError):
    """The stage was asked to stop, saved everything, and wants to go on later."""


class Diverged(OrchError):
    """The loss or the gradients are not finite, or far above what was before, and training may not go on."""
