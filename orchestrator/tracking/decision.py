"""Whether an export may become a version in MLflow's registry, read from the run's folder. Knows no MLflow."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.artifacts import Artifact, Export, Report
from orchestrator.records import record
from orchestrator.registration import Registration
from orchestrator.state import STAGE, Launch, read_plain_stage, read_state
from orchestrator.tracking.journals import accepted_name
from orchestrator.tracking.story import TAG_LENGTH, Link, Story, stage_story

FROM_THE_RUN = ("orch.recipe", "orch.run", "orch.name", "orch.stage", "orch.fingerprint", "orch.commit", "orch.dirty")


@record
class Decision:
    """What is known of an export that is to be registered."""

    registration: Registration
    story: Story  # of the stage that exports
    link: Link  # the export
    passes: bool | None  # None = an evaluation is still to come
    words: str  # what was checked, or what was missed
    tags: Mapping[str, str]  # of the version: where it comes from and the scores that were checked

    @property
    def digest(self) -> str:
        """Is that of the export's content: with the fingerprint, it says which model this is."""
        return self.tags["orch.digest"]


@record
class Check:
    """One thing that was asked of an evaluation."""

    key: str  # "score.gcg.miou"
    value: float | None
    words: str
    holds: bool


def decide(run: Path, launch: Launch) -> Decision | None:
    """Judges the export that a launch wants registered; None while there is none, and where nothing was wanted."""
    plain = launch.tracking.get("register")
    if not plain:
        return None
    registration = Registration(**plain)
    directory = run / str(registration.stage)
    story = next(stage_story(run, launch, directory, archived=False), None) if (directory / STAGE).is_file() else None
    link = next((link for link in story.outputs if link.kind == Export.kind), None) if story else None
    manifest = None if link is None else Artifact(link.path).manifest()
    if story is None or link is None or manifest is None or manifest["fingerprint"] != story.fingerprint:
        return None
    checks, missing = _judge(run, registration, story)
    passes, words = _verdict(checks, missing, over=launch.ended is not None)
    tags = {
        **{name: story.tags[name] for name in FROM_THE_RUN},
        "orch.digest": str(manifest["digest"]),
        "orch.path": str(link.path),
        "orch.checked": words,
        **{accepted_name(f"orch.score.{check.key}"): repr(check.value) for check in checks if check.value is not None},
    }
    return Decision(registration=registration, story=story, link=link, passes=passes, words=words, tags=tags)


def _verdict(checks: Sequence[Check], missing: Sequence[str], *, over: bool) -> tuple[bool | None, str]:
    if missing:
        return (False if over else None), f"there are no scores: {', '.join(missing)}"
    missed = [check.words for check in checks if not check.holds]
    words = "; ".join(missed or [check.words for check in checks]) or "no evaluation was asked for"
    return not missed, words[:TAG_LENGTH]


def _judge(run: Path, registration: Registration, story: Story) -> tuple[list[Check], list[str]]:
    """Returns what was found, and what keeps the rest from being known: which stage is in which state."""
    read = [link.path for link in story.inputs if link.kind == Report.kind]  # by the export, for its card
    inside = [path for path in read if path.parent.resolve().parent == run.resolve()]
    checks = [check for path in read if path not in inside for check in _wishes(str(path), Report(path).facts())]
    missing: list[str] = []
    for name in dict.fromkeys([*(path.parent.name for path in inside), *registration.when]):
        plain = read_plain_stage(run / name)
        place = next((run / name / key for key, made in plain["outputs"].items() if made["kind"] == Report.kind), run)
        if Report(place).ready(plain["fingerprint"]):
            checks += _checks(name, registration, Report(place).facts())
        else:
            missing.append(f"{name} is {read_state(run / name).state}")
    return checks, missing


def _checks(name: str, registration: Registration, facts: Mapping[str, Any]) -> Iterator[Check]:
    yield from _wishes(name, facts)
    for benchmark, score, condition in registration.conditions(name):
        key = f"{name}.{benchmark}.{score}"
        value = facts.get("scores", {}).get(benchmark, {}).get(score)
        if not isinstance(value, int | float):
            yield Check(key=key, value=None, words=f"{key} was not measured", holds=False)
        else:
            holds = condition.holds(value)
            words = f"{key} is {value:.4g} ({condition})" if holds else f"{key} is {value:.4g}, wanted {condition}"
            yield Check(key=key, value=float(value), words=words, holds=holds)


def _wishes(name: str, facts: Mapping[str, Any]) -> Iterator[Check]:
    """Yields what an evaluation says of the wishes in its own config, if it had any and missed one."""
    if facts.get("passed") is False:
        words = f"{name} missed what its own config wishes for (at_least, gains)"
        yield Check(key=name, value=None, words=words, holds=False)
