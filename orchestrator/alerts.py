"""When somebody is told of a stage that still runs: the rules of a recipe, judged by what journal and progress say."""

import math
import re
import statistics
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any, Literal

from orchestrator.records import record

Rule = Literal["loss_nan", "throughput_drop", "no_step_minutes", "goodput_under"]

FEWEST = 5  # log lines before a median means something
IN_A_ROW = 3  # log lines below it: fewer may be chance
MEDIAN_OF = 512  # log lines
NOT_FINITE = re.compile(r"\b(?:not finite|nan|inf)\b", re.IGNORECASE)  # a spike diverges, too


@record
class Alerts:
    """What to tell of while a stage runs, to those whom `notify` names. Never part of a fingerprint."""

    loss_nan: bool = False  # a loss is NaN or infinite
    throughput_drop: float | None = None  # 0.2: samples/s are 20 % below the attempt's own median, three log lines long
    no_step_minutes: float | None = None  # nothing is done for so long, once anything was
    goodput_under: float | None = None  # 0.8: less than 80 % of the hours a stage has held were productive

    def __post_init__(self) -> None:
        """Refuses rules that would always or never hold."""
        for name in ("throughput_drop", "goodput_under"):
            share = getattr(self, name)
            if share is not None and not 0 < share < 1:
                raise ValueError(f"{name} must be a share between 0 and 1 (0.2 = 20 %), or null")
        minutes = self.no_step_minutes
        if minutes is not None and not 0 < minutes < math.inf:
            raise ValueError("no_step_minutes must be above 0, or null")

    def any(self) -> bool:
        """Tells whether there is a rule."""
        return self != Alerts()


@record
class Judgement:
    """What a rule says now."""

    rule: Rule
    broken: bool
    value: float = 0.0
    threshold: float = 0.0
    words: str = ""


def alerts_of(document: Mapping[str, Any]) -> Alerts:
    """Reads the rules in a `stage.json`; none if it has none."""
    plain = document.get("alerts", {})
    return Alerts(**{field.name: plain[field.name] for field in fields(Alerts) if field.name in plain})


class Rules:
    """Judges one attempt by the events of its journal, and by how far it is."""

    def __init__(self, alerts: Alerts) -> None:
        """Has heard nothing yet."""
        self._alerts = alerts
        self._rates: deque[float] = deque(maxlen=MEDIAN_OF)  # samples/s, without those of a drop
        self._low = 0
        self._done: int | None = None
        self._moved_s: float | None = None  # on the clock of whoever asks; None = nothing is done yet

    def hear(self, event: Mapping[str, Any]) -> Iterator[Judgement]:
        """Yields what follows from an event of the journal."""
        values = event.get("values")
        if event.get("event") == "loss":
            yield from self._judge_loss(event.get("step"), event.get("value"))
        elif event.get("event") == "left_out" and NOT_FINITE.search(str(event.get("why"))) and self._alerts.loss_nan:
            yield self._broken("loss_nan", math.nan, math.inf, str(event["why"]))
        elif event.get("event") == "metrics" and isinstance(values, Mapping):
            yield from self._judge_rate(event.get("step"), values.get("samples_per_s"))

    def look(self, progress: Mapping[str, Any], now_s: float) -> Iterator[Judgement]:
        """Yields what follows from `progress.json` at a moment of one's own clock: no other host's clock matters."""
        limit = self._alerts.no_step_minutes
        done, total = progress.get("done"), progress.get("total")
        if limit is None or done is None:
            return
        if done != self._done or done == total:
            self._done, self._moved_s = done, now_s
            yield Judgement(rule="no_step_minutes", broken=False)
        elif self._moved_s is not None and now_s - self._moved_s > limit * 60:
            silent = (now_s - self._moved_s) / 60
            words = f"no {progress.get('unit', 'step')} for {silent:.3g} minutes, the last was {done}"
            yield self._broken("no_step_minutes", silent, limit, words)

    def judge_goodput(self, useful: float | None) -> Iterator[Judgement]:
        """Yields what follows from the share of the held hours that were productive."""
        limit = self._alerts.goodput_under
        if limit is None or useful is None:
            return
        if useful >= limit:
            yield Judgement(rule="goodput_under", broken=False)
        else:
            words = f"{useful:.1%} of the hours it has held were productive"
            yield self._broken("goodput_under", useful, limit, words)

    def judge_end(self, cause: str | None, detail: str) -> Iterator[Judgement]:
        """Yields what follows from how the attempt ended: a loss that is not finite may end it before it is written."""
        if self._alerts.loss_nan and cause == "diverged" and NOT_FINITE.search(detail):
            yield self._broken("loss_nan", math.nan, math.inf, detail)

    def _judge_loss(self, step: Any, value: Any) -> Iterator[Judgement]:
        if not self._alerts.loss_nan or not isinstance(value, int | float):
            return
        if math.isfinite(value):
            yield Judgement(rule="loss_nan", broken=False)
        else:
            yield self._broken("loss_nan", value, math.inf, f"the loss of step {step} is {value}")

    def _judge_rate(self, step: Any, rate: Any) -> Iterator[Judgement]:
        limit = self._alerts.throughput_drop
        if limit is None or not isinstance(rate, int | float) or not math.isfinite(rate):
            return
        usual = statistics.median(self._rates) if len(self._rates) >= FEWEST else None
        if usual is None or rate >= (1 - limit) * usual:
            self._rates.append(rate)
            self._low = 0
            yield Judgement(rule="throughput_drop", broken=False)
            return
        self._low += 1
        if self._low >= IN_A_ROW:
            words = f"{rate:.4g} samples/s at step {step} are {1 - rate / usual:.0%} below its median of {usual:.4g}"
            yield self._broken("throughput_drop", 1 - rate / usual, limit, words)

    def _broken(self, rule: Rule, value: float, limit: float, words: str) -> Judgement:
        given = asdict(self._alerts)[rule]
        return Judgement(
            rule=rule, broken=True, value=value, threshold=limit,
            words=f"{words} (alerts.{rule} is {str(given).lower()})",
        )  # fmt: skip
