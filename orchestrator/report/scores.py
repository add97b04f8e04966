"""The part of the report that says how good the model is: headline and score tables."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from orchestrator.report.gather import RunView, Scores
from orchestrator.report.text import safe

HEADLINE = (("gcg", "miou", "GCG mIoU"), ("gcg", "phrases_found", "phrases found"), ("gcg", "ap50", "AP50"),
            ("gcg", "cider", "CIDEr"), ("region_captions", "exact", "region captions exact"),
            ("region_captions", "cider", "region CIDEr"), ("refer", "ciou", "referring cIoU"),
            ("refer_compat", "ciou", "referring cIoU, answers told"))  # fmt: skip
TILES = 4
SCALES = {"cider": 10.0, "cider_strict": 10.0}  # the largest value a score can have, where that is not 1


def headline(run: RunView) -> str:
    """Says the result in a sentence and a few tiles; empty where nothing was evaluated."""
    if not run.scores:
        return ""
    tiles = list(_tiles(run.scores[-1]))[:TILES]
    first = _first_sentence(run.scores[-1])
    return f'<p class="headline">{first}</p><div class="tiles">{"".join(tiles)}</div>'


def score_tables(run: RunView) -> str:
    """Shows every score of every evaluation, the untrained model beside the trained one."""
    if not run.scores:
        return '<p class="soft">No stage of this run has evaluated a model yet.</p>'
    return "".join(_tables_of(scores) for scores in run.scores)


def _first_sentence(scores: Scores) -> str:
    name, benchmark = next(iter(scores.metrics["benchmarks"].items()))
    score, value = next(iter(benchmark["scores"].items()))
    titles = {(benchmark, score): title for benchmark, score, title in HEADLINE}
    title = titles.get((name, score), f"{name} {score}")
    images = int(benchmark["images"])
    text = f"{safe(title)} is <b>{value:.3f}</b> on {images} held-out image{'' if images == 1 else 's'}"
    before = (benchmark.get("untrained") or {}).get(score)
    if before is None:
        return f"{text}."
    times = f", {value / before:.1f} times less" if 0 < before < value else ""
    return f"{text}; the same architecture with fresh weights has {before:.3f}{times}."


def _tiles(scores: Scores) -> Iterator[str]:
    for benchmark, score, title in HEADLINE:
        found = scores.metrics["benchmarks"].get(benchmark)
        if found and score in found["scores"]:
            before = (found.get("untrained") or {}).get(score)
            small = "" if before is None else f'<span class="soft small">untrained {before:.3f}</span>'
            value = f"<b>{found['scores'][score]:.3f}</b>"
            yield f'<div class="tile"><span class="soft small">{title}</span>{value}{small}</div>'


def _tables_of(scores: Scores) -> str:
    parts = [f'<p>Evaluated by stage <a href="#stage-{safe(scores.stage)}">{safe(scores.stage)}</a>.</p>']
    parts.append(_checks(scores.metrics.get("checks", [])))
    for name, benchmark in scores.metrics["benchmarks"].items():
        title = f"<h3>{safe(name)}, {int(benchmark['images'])} images</h3>"
        parts.append(f"{title}{_table(benchmark)}{_published(benchmark)}")
        for source, part in benchmark.get("by_shards", {}).items():
            title = f"Only {safe(source)}, {int(part['images'])} images"
            inside = f"{_table({**benchmark, **part})}{_published(part)}"
            parts.append(f"<details><summary>{title}</summary>{inside}</details>")
        parts.append(f'<p class="soft small">{safe(benchmark["protocol"])}</p>')
    return "".join(parts)


def _checks(checks: Sequence[Mapping[str, Any]]) -> str:
    if not checks:
        return ""
    rows = (
        f'<li class="{"passed" if check["passed"] else "missed"}">{"✓ met" if check["passed"] else "✗ missed"}: '
        f"{safe(str(check['score']))} is {check['is']:.3f}, "
        f"wanted {safe(str(check.get('limit', 'at least')))} {check['wanted']:.3f}"
        f"{_gain(check)}</li>"
        for check in checks
    )
    return f"<p>What the recipe wished for:</p><ul>{''.join(rows)}</ul>"


def _gain(check: Mapping[str, Any]) -> str:
    return f" ({check['gain']:g} times the untrained score)" if "gain" in check else ""


def _table(benchmark: Mapping[str, Any]) -> str:
    untrained: Mapping[str, float] = benchmark.get("untrained") or {}
    meanings: Mapping[str, str] = benchmark.get("meanings", {})
    modes: Mapping[str, str] = benchmark.get("modes", {})
    rows = "".join(
        f"<tr><td>{safe(score)}{_meaning(modes.get(score, ''), meanings.get(score, ''))}</td>"
        f'<td class="number"><b>{value:.3f}</b></td>'
        f'<td class="number">{_number(untrained.get(score))}</td>'
        f'<td class="bars">{_bars(score, value, untrained)}</td></tr>'
        for score, value in benchmark["scores"].items()
    )
    titles = '<th>score</th><th class="number">trained</th><th class="number">untrained</th>'
    head = f'<tr>{titles}<th class="bars">compared</th></tr>'
    return f'<div class="wide scores"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def _published(benchmark: Mapping[str, Any]) -> str:
    """Shows papers' numbers beside these, and says first what keeps the two from being compared."""
    published = benchmark.get("published")
    if not published:
        return ""
    times, rows, apart = published["times"], published["rows"], published["differs_in"]
    found: Mapping[str, float] = benchmark["scores"]
    ours = {score: found[score] * factor for score, factor in times.items() if score in found}
    head = "".join(f'<th class="number">{safe(score)}</th>' for score in times)
    lines = [_published_row("<b>this model</b>", "", ours, times)]
    lines += [_published_row(safe(row["model"]), safe(row["source"]), row["scores"], times) for row in rows]
    table = f"<table><thead><tr><th>model</th>{head}<th>source</th></tr></thead><tbody>{''.join(lines)}</tbody></table>"
    reasons = [*published["differs"], *(f"{score}: {why}" for score, why in apart.items())]
    said = "Not comparable" if published["differs"] else "Not all comparable"
    told = f'<p class="missed small"><b>{said}</b>: {safe("; ".join(reasons))}</p>' if reasons else ""
    summary = f"Published numbers, {safe(published['data'])}, as printed (times 100)"
    return f'<details><summary>{summary}</summary>{told}<div class="wide">{table}</div></details>'


def _published_row(model: str, source: str, scores: Mapping[str, float], columns: Iterable[str]) -> str:
    cells = "".join(f'<td class="number">{f"{scores[score]:.1f}" if score in scores else ""}</td>' for score in columns)
    return f'<tr><td>{model}</td>{cells}<td class="soft small">{source}</td></tr>'


def _meaning(mode: str, text: str) -> str:
    said = ": ".join(part for part in (mode, text) if part)
    return f'<br><span class="soft small">{safe(said)}</span>' if said else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _bars(score: str, value: float, untrained: Mapping[str, float]) -> str:
    scale = SCALES.get(score, 1.0)
    bars = f'<div class="bar" style="width:{_percent(value / scale)}"></div>'
    if score in untrained:
        bars += f'<div class="bar before" style="width:{_percent(untrained[score] / scale)}"></div>'
    return bars


def _percent(share: float) -> str:
    return f"{100 * min(1.0, max(0.0, share)):.1f}%"
