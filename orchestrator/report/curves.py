"""The curves of a run: losses, scores, speed, a chart each, as many points as a page that opens at once can hold."""

from collections.abc import Iterator, Mapping, Sequence

from orchestrator.report.charts import MOST_POINTS, Line, Points, finite, line_chart, smoothed
from orchestrator.report.gather import RunView, StageView
from orchestrator.report.text import safe, shown

UNITS: Mapping[str, tuple[str, str]] = {
    "lr": ("Learning rate", "learning rate"),
    "grad_norm": ("Gradient norm", "norm before clipping"),
    "samples_per_s": ("Throughput", "samples per second"),
    "tokens_per_s": ("Throughput in tokens", "tokens per second"),
    "tflops_per_rank": ("Operations of the model", "10^12 per second and rank"),
    "mfu": ("Model FLOPs utilisation (MFU)", "share of the peak"),
    "cpu_cores": ("Processors, a rank", "cores kept busy"),
    "host_memory_gb": ("Host memory, the largest rank", "GB, the most so far"),
    "gpu_memory_gb": ("GPU memory, the largest rank", "GB, the most so far"),
    "gpu_memory_reserved_gb": ("GPU memory reserved, the largest rank", "GB, the most so far"),
    "gpu_utilisation": ("GPU utilisation", "share of the time"),
    "data_wait_share": ("Waiting for data", "share of the time"),
    "data_wait_s": ("Waiting for data, a step", "seconds"),
    "bad_samples": ("Lost samples", "samples, since the start"),
    "bad_fraction": ("Lost samples, of those drawn", "share, since the start"),
}
BUDGET = 250_000  # points in the page, all curves together: about 3 MB
MANY = 12  # training stages; the charts of more are folded away, and made by the script when one is opened
FEWEST_TO_SMOOTH = 40
LOSS, SCORE, UNTRAINED_SCORE = "loss", "eval", "eval_untrained"


def curves(run: RunView) -> str:
    """Draws the curves of every stage that has some."""
    stages = [stage for stage in run.stages if stage.curves]
    lengths = [len(points) for stage in stages for points in stage.curves.values()]
    lengths += [len(stage.curves[LOSS]) for stage in stages if LOSS in stage.curves]  # drawn twice: as it is, smoothed
    most = limit_for(lengths, BUDGET)
    charts = [(stage, drawn) for stage in stages if (drawn := _stage(stage, most))]
    if not charts:
        return '<p class="soft">No stage has trained yet.</p>'
    folded = len(charts) > MANY
    parts = [_folded(stage, drawn) if folded else f"<div>{drawn}</div>" for stage, drawn in charts]
    explained = (
        '<p class="soft small">Drag over a chart to look closer; double-click shows all again. A step that was '
        "computed again is drawn once, with its last value.</p>"
    )
    box = '<input type="checkbox" id="smooth" checked> smoothed over 5 % of the steps'
    switch = f'<p class="switch"><label>{box}</label></p>'
    return f'{explained}{switch}<div class="charts">{"".join(parts)}</div>'


def loss_lines(points: Points, name: str, colour: int) -> list[Line]:
    """Returns a loss as it is drawn: smoothed in front of what each step said, or plain if there are few points."""
    if len(points) < FEWEST_TO_SMOOTH:
        return [Line(name=name, points=points, colour=colour)]
    return [
        Line(name=f"{name}, each step", points=points, kind="raw", colour=colour),
        Line(name=f"{name}, smoothed", points=smoothed(finite(points)), kind="smooth", colour=colour),
    ]


def limit_for(lengths: Sequence[int], budget: int) -> int:
    """Returns the most points a curve may have so that all together keep within a budget, short ones being whole."""
    left, shortest_first = budget, sorted(min(length, MOST_POINTS) for length in lengths)
    for number, length in enumerate(shortest_first):
        share = left // (len(shortest_first) - number)
        if length > share:
            return max(4, share)
        left -= length
    return MOST_POINTS


def _stage(stage: StageView, most: int) -> str:
    """Draws the losses of a stage, then its scores, and folded away everything else."""
    title = f"<h3>{safe(stage.name)}</h3>"
    loss = line_chart(
        list(_losses(stage.curves)), x_name="step", y_name="loss", title=f"Loss of {stage.name}",
        marks=stage.restarts, most=most,
    )  # fmt: skip
    scores = "".join(_scores(stage, most))
    others = {
        name: points
        for name, points in stage.curves.items()
        if name.partition("/")[0] not in {LOSS, SCORE, UNTRAINED_SCORE}
    }
    more = "".join(_small(stage, name, points, most) for name, points in sorted(others.items()))
    if not (loss or scores or more):
        return ""
    summary = f"<summary>More: {_listed(others)}</summary>"
    hidden = f'<details class="small">{summary}{more}</details>' if more else ""
    return f"{title}{loss}{scores}{hidden}"


def _losses(curves: Mapping[str, Points]) -> Iterator[Line]:
    if LOSS in curves:
        yield from loss_lines(curves[LOSS], LOSS, 0)
    names = [name for name in sorted(curves) if name.startswith(f"{LOSS}/")]
    for colour, name in enumerate(names, start=1):
        yield Line(name=name, points=curves[name], colour=colour)


def _scores(stage: StageView, most: int) -> Iterator[str]:
    """Draws scores that were measured more than once; what was measured once stands in the tables of scores."""
    groups: dict[str, list[Line]] = {}
    for name, points in sorted(stage.curves.items()):
        kind, _, rest = name.partition("/")
        if kind == SCORE and len(points) > 1:
            group, _, score = rest.rpartition("/")
            groups.setdefault(group or "scores", []).append(Line(name=score, points=points))
    for group, lines in groups.items():
        yield line_chart(lines, x_name="step", y_name=group, title=f"Scores of {stage.name}, {group}", most=most)


def _small(stage: StageView, name: str, points: Points, most: int) -> str:
    title, unit = UNITS.get(name, (name, name))
    lines = [Line(name=name, points=points)]
    chart = line_chart(lines, x_name="step", y_name=unit, title=f"{title} of {stage.name}", most=most)
    return f"<h4>{safe(title)}</h4>{chart}" if chart else ""


def _listed(names: Mapping[str, Points]) -> str:
    titles = [UNITS.get(name, (name, ""))[0] for name in sorted(names)]
    return safe(" · ".join(titles))


def _folded(stage: StageView, drawn: str) -> str:
    """Folds a stage away behind a line that says how its loss went: a page of five thousand charts opens slowly."""
    points = stage.curves.get(LOSS, ())
    went = f": loss {shown(points[0][1])} to {shown(points[-1][1])} in {len(points):,} steps" if points else ""
    later = f'<script type="text/html">{drawn}</script>'  # all the same text, which costs a browser nothing yet
    return f'<details class="later"><summary>{safe(stage.name)}{went}</summary>{later}</details>'
