"""What a run folder already holds of a stage: finished, begun, or the work of another plan."""

from orchestrator.records import record


@record
class Change:
    """One thing that makes a stage another stage than before."""

    key: str  # "config.train.optim.lr", "code: stages.glamm.decoder", "input model", "seed", "outside: root"
    was: str
    is_: str
