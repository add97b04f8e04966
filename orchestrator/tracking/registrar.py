"""Makes an export a version in MLflow's registry once it may be one, and says on its run what became of it."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import TrackingRefused
from orchestrator.registration import NOT, REGISTERED, WHY
from orchestrator.tracking.decision import Decision
from orchestrator.tracking.ledger import Ledger

if TYPE_CHECKING:
    from orchestrator.tracking.store import Store

log = logging.getLogger(__name__)


class Registrar:
    """Tells the registry of one export. What it refuses once, only the next forwarder or `orch sync` asks again."""

    def __init__(self, connect: Callable[[], "Store"], uri: str) -> None:
        """Connects when there is something to tell; `uri` is the address without password, as in ledgers."""
        self._connect = connect
        self._uri = uri
        self._refused: dict[str, str] = {}  # digest of an export -> why

    def tell(self, decision: Decision, run: Path) -> str:
        """Registers what passes and says what was decided, on the export's run and on the recipe's.

        Returns that in a sentence; an empty one while it is not decided, or MLflow does not know the export yet. A
        registry that refuses, or is none, keeps nobody waiting: it is said instead. Raises TrackingAway.
        """
        ledger, name = Ledger.load(decision.story.directory, self._uri), decision.registration.name
        model = ledger.models.get(decision.link.path.name, {})
        if decision.passes is None or model.get("digest") != decision.digest:
            return ""
        wanted = {"name": name, "alias": decision.registration.alias or "", "digest": decision.digest}
        there = all(ledger.registered.get(key) == wanted[key] for key in ("name", "digest"))
        if decision.passes and not wanted.items() <= ledger.registered.items():
            there = self._register(decision, ledger, model["id"], wanted) or there
        if there:
            words = f"registered as {name}/{ledger.registered['version']}"
            tags = {REGISTERED: f"{name}/{ledger.registered['version']}"}
            tags |= {WHY: decision.words} if decision.passes else {}  # asked for more later, it stays what it became
        else:
            why = self._refused.get(decision.digest, "") if decision.passes else decision.words
            tags, words = {REGISTERED: NOT, WHY: why}, f"not registered as {name}: {why}"
        told = [self._say(folder, tags) for folder in (ledger, Ledger.load(run, self._uri))]
        if any(told):
            (log.info if there else log.warning)("%s of %s is %s", decision.link.title, run.name, words)
        return words

    def _register(self, decision: Decision, ledger: Ledger, model_id: str, wanted: Mapping[str, str]) -> bool:
        from orchestrator.tracking.store import VersionFacts

        if decision.digest in self._refused:
            return False
        facts = VersionFacts(
            name=decision.registration.name,
            alias=decision.registration.alias,
            run_id=str(ledger.mlflow_run_id),
            model_id=model_id,
            tags=decision.tags,
            description=f"{decision.link.title} of {decision.tags['orch.run']}: {decision.words}",
        )
        try:
            version = self._connect().version(facts)
        except TrackingRefused as error:
            self._refused[decision.digest] = str(error)
            return False
        ledger.registered = {**wanted, "version": version}
        ledger.save()
        return True

    def _say(self, ledger: Ledger, tags: Mapping[str, str]) -> bool:
        """Sets tags that the run does not have; tells whether there were any."""
        new = {name: value for name, value in tags.items() if ledger.tags.get(name) != value}
        if not new or ledger.mlflow_run_id is None:
            return False
        self._connect().tags(ledger.mlflow_run_id, new)
        ledger.tags |= new
        ledger.save()
        return True
