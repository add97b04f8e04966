"""Watches over the attempts of a stage by the rules of its recipe, for whoever keeps it: no process of its own.

It reads what the ranks write anyway (journal, progress), a few times a minute, and tells in threads: a training knows
nothing of it, and a dead webhook stops nobody. What was told stands in `alerts.jsonl` of the stage's folder:
{"time", "rule", "state": "begun" | "over", "attempt", "value", "threshold", "text"}. An episode is told when it begins.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator.alerts import Alerts, Judgement, Rules, alerts_of
from orchestrator.goodput import Books
from orchestrator.journal import JOURNAL
from orchestrator.messages import json_body
from orchestrator.notify import Notify, Telling, tell
from orchestrator.progress import read_progress
from orchestrator.redaction import hide
from orchestrator.state import Attempt, read_plain_stage
from orchestrator.tails import Tail

ALERTS = "alerts.jsonl"
EVERY_S = 5.0
GOODPUT_EVERY_S = 3600.0  # while an attempt runs: before its first hour is over, start-up is most of it
JUDGED = (b'{"event": "loss"', b'{"event": "metrics"', b'{"event": "left_out"')

log = logging.getLogger(__name__)


class Vigil:
    """Watches one stage, attempt after attempt."""

    def __init__(
        self, run: Path, stage: str, others: Sequence[Notify] = (), *, clock: Callable[[], float] = time.monotonic,
        every_s: float = EVERY_S,
    ) -> None:  # fmt: skip
        """Reads the stage's rules. Never raises, here or later: whatever is wrong with telling, the work goes on."""
        self._run, self._stage, self._others, self._clock = run, stage, others, clock
        self._folder = run / stage
        self._every_s = every_s
        self._alerts, self._open = Alerts(), set[str]()  # what was told and is not over
        self._tellings: list[Telling] = []
        self._attempt, self._started = 0, 0.0
        self._rules, self._tail, self._books = Rules(self._alerts), Tail(self._folder / JOURNAL), Books(run)
        self._look_at, self._goodput_at = math.inf, math.inf
        self._guarded(self._prepare)

    def begin(self, attempt: int) -> None:
        """Begins with an attempt, before its ranks start: what the journal says by then is old."""
        if not self._alerts.any():
            return
        self._attempt, self._started = attempt, time.time()
        self._rules = Rules(self._alerts)
        self._open &= {"goodput_under"}  # the others are an attempt's own
        self._tail = Tail(self._folder / JOURNAL, backlog_bytes=0)
        self._look_at, self._goodput_at = self._clock() + self._every_s, self._clock() + GOODPUT_EVERY_S

    def tick(self) -> None:
        """Looks, if it is time to; call it as often as is convenient."""
        if self._clock() >= self._look_at:
            self._look_at = self._clock() + self._every_s
            self._guarded(self._look)

    def end(self, closed: Attempt) -> None:
        """Judges the attempt that has just been closed."""
        if self._look_at < math.inf:
            self._look_at = math.inf
            self._guarded(lambda: self._judge_end(closed))

    def wait(self, patience_s: float) -> None:
        """Gives what is still to be told so much time; before this process ends."""
        deadline = time.monotonic() + patience_s
        for telling in self._tellings:
            telling.wait(max(0.0, deadline - time.monotonic()))

    def _prepare(self) -> None:
        self._alerts = alerts_of(read_plain_stage(self._folder))
        for told in read_alerts(self._folder) if self._alerts.any() else ():
            (self._open.add if told.get("state") == "begun" else self._open.discard)(str(told.get("rule")))

    def _look(self) -> None:
        self._take(self._heard())
        progress = read_progress(self._folder) or {}
        if progress.get("time", 0.0) >= self._started:  # else of an earlier attempt
            self._take(self._rules.look(progress, self._clock()))
        if self._clock() >= self._goodput_at:
            self._goodput_at = self._clock() + GOODPUT_EVERY_S
            self._judge_goodput()

    def _judge_end(self, closed: Attempt) -> None:
        self._take(self._heard())
        self._take(self._rules.judge_end(closed.cause, closed.detail))
        self._judge_goodput()

    def _judge_goodput(self) -> None:
        if self._alerts.goodput_under is not None:
            self._take(self._rules.judge_goodput(self._books.stage(self._stage).useful))

    def _heard(self) -> Iterator[Judgement]:
        for line in self._tail.lines():
            if line.startswith(JUDGED):
                try:
                    event = json.loads(line)
                except ValueError:  # cut short by whoever was killed
                    continue
                yield from self._rules.hear(event)

    def _take(self, judgements: Iterable[Judgement]) -> None:
        for judgement in judgements:
            if judgement.broken == (judgement.rule in self._open):
                continue  # told already, or nothing to tell
            (self._open.add if judgement.broken else self._open.discard)(judgement.rule)
            words = hide(judgement.words)
            facts = {"rule": judgement.rule, "value": judgement.value, "threshold": judgement.threshold}
            if judgement.broken:
                log.warning("%s: %s", self._stage, words)
                told = tell(
                    self._run, "alert", stage=self._stage, cause=judgement.rule, detail=words, others=self._others,
                    facts=facts,
                )  # fmt: skip
                self._tellings.append(told)
            state = "begun" if judgement.broken else "over"
            self._note({"time": time.time(), "state": state, "attempt": self._attempt, **facts, "text": words})

    def _note(self, told: Mapping[str, Any]) -> None:
        with suppress(OSError), (self._folder / ALERTS).open("ab") as file:  # of a full disk: it was told all the same
            file.write(json_body(told) + b"\n")

    def _guarded(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception:  # a courtesy: the work does not end for want of it
            log.exception("the alerts of %s could not be judged", self._stage)


def read_alerts(folder: Path) -> Iterator[dict[str, Any]]:
    """Yields what was told of the stage in a folder, oldest first."""
    try:
        lines = (folder / ALERTS).read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            told = json.loads(line)
        except ValueError:
            continue
        if isinstance(told, dict):
            yield told
