"""Where the hours of a stage or a run went, as metrics: so MLflow can compare runs and sort by them."""

from collections.abc import Iterator
from pathlib import Path

from orchestrator.goodput import Books, Spending
from orchestrator.tracking.journals import Point
from orchestrator.tracking.story import Story


def spending_points(run: Path, story: Story) -> list[Point]:
    """Returns the points of a story that has ended.

    `goodput/useful` and `goodput/CLASS_gpu_hours` are totals, with the number of attempts as their step, so that the
    latest one stands in MLflow's tables; `goodput/attempt/CLASS_gpu_hours` are each attempt's own, at its number. Where
    no GPU was asked for, they are `process_hours`. Classes in which nothing was spent are left out.
    """
    books, time_ms = Books(run), story.ended_ms or 0
    spending = books.read() if story.directory == run else books.stage(story.directory.name)
    points = [
        Point(key=f"goodput/{key}", value=value, time_ms=time_ms, step=story.attempts)
        for key, value in _numbers(spending)
    ]
    if story.directory != run:
        points += [
            Point(key=f"goodput/attempt/{key}", value=value, time_ms=time_ms, step=int(attempt.name))
            for attempt in spending.parts
            for key, value in _numbers(attempt)
        ]
    return points


def _numbers(spending: Spending) -> Iterator[tuple[str, float]]:
    unit = f"{spending.unit.lower()}_hours"
    if spending.useful is not None:
        yield "useful", spending.useful
        yield f"held_{unit}", spending.held_hours
    yield from ((f"{name}_{unit}", hours) for name, hours in spending.hours.items() if hours > 0)
