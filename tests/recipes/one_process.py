"""A recipe run to its end in this process, stage after stage; what several recipes make alike is made once."""

from collections.abc import Sequence
from pathlib import Path

from orchestrator.journal import Journal
from orchestrator.plan import Catalog, Plan, open_stage, plan_recipe
from orchestrator.progress import Progress
from orchestrator.stage import StageContext
from orchestrator.worker import artifacts_of
from orchestrator.world import World
from stages import FAMILIES, STAGES


def run_here(recipe: Path, folder: Path, made: dict[str, Path], overrides: Sequence[str] = ()) -> Plan:
    """Runs every stage below `folder`; `made` remembers by fingerprint where a stage's work lies."""
    plan = plan_recipe(recipe, overrides, Catalog(stages=STAGES, families=FAMILIES), directory=folder)
    plan.check()
    folder.mkdir(parents=True)
    for planned in plan.stages:
        home = folder / planned.name
        if planned.fingerprint in made:
            home.symlink_to(made[planned.fingerprint])
            continue
        stage = open_stage(planned.document())
        for _, artifact in artifacts_of(stage.outputs):
            artifact.path.mkdir(parents=True)
        with_journal = Journal(home)
        facts = stage.run(
            StageContext(
                directory=home, name=planned.name, fingerprint=planned.fingerprint, seed=planned.seed,
                world=World.alone(), journal=with_journal, progress=Progress(None), stop=lambda: False,
            )
        )  # fmt: skip
        with_journal.close()
        for name, artifact in artifacts_of(stage.outputs):
            told = dict(facts[name])
            digests = told.pop("sha256", {})
            artifact.commit(planned.fingerprint, told, digests)
        made[planned.fingerprint] = home
    return plan
