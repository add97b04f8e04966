"""The part of the report that says how good the model is: headline, score tables, pictures before and after."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from orchestrator.report.gather import RunView, Scores

HEADLINE = (("gcg", "miou", "GCG mIoU"), ("gcg", "phrases_found", "phrases found"), ("gcg", "ap50", "AP50"),
            ("gcg", "cider", "CIDEr"), ("region_captions", "exact", "region captions exact"),
            ("region_captions", "cider", "region CIDEr"))  # fmt: skip
TILES = 4
SCALES = {"cider": 10.0}  # the largest value a score can have, where that is not 1
PICTURES_BYTES = 6_000_000  # of all pictures together, before base64
PICTURE_BYTES = 600_000
WIDEST_PX = 1400


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


def pictures(run: RunView) -> str:
    """Shows the held-out pictures that fit into the page, the first ones of each benchmark."""
    left = PICTURES_BYTES
    parts = []
    missing = 0
    for scores in run.scores:
        for picture in scores.metrics.get("pictures", []):
            data = _read_picture(scores.directory, str(picture.get("path", "")))
            if data is None or len(data) > left:
                missing += 1
                continue
            left -= len(data)
            parts.append(_figure(picture, data))
    if missing:
        parts.append(f'<p class="soft">{missing} more pictures are in the run folder; this page holds what fits.</p>')
    return "".join(parts) or '<p class="soft">No pictures yet: an evaluation draws them.</p>'


def _first_sentence(scores: Scores) -> str:
    name, benchmark = next(iter(scores.metrics["benchmarks"].items()))
    score, value = next(iter(benchmark["scores"].items()))
    titles = {(benchmark, score): title for benchmark, score, title in HEADLINE}
    title = titles.get((name, score), f"{name} {score}")
    text = f"{escape(title)} is <b>{value:.3f}</b> on {int(benchmark['images'])} held-out images"
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
    parts = [f'<p>Evaluated by stage <a href="#stage-{escape(scores.stage)}">{escape(scores.stage)}</a>.</p>']
    parts.append(_checks(scores.metrics.get("checks", [])))
    for name, benchmark in scores.metrics["benchmarks"].items():
        parts.append(f"<h3>{escape(name)}, {int(benchmark['images'])} images</h3>{_table(benchmark)}")
        for source, part in benchmark.get("by_shards", {}).items():
            title = f"Only {escape(source)}, {int(part['images'])} images"
            parts.append(f"<details><summary>{title}</summary>{_table({**benchmark, **part})}</details>")
        parts.append(f'<p class="soft small">{escape(benchmark["protocol"])}</p>')
    return "".join(parts)


def _checks(checks: Sequence[Mapping[str, Any]]) -> str:
    if not checks:
        return ""
    rows = (
        f'<li class="{"passed" if check["passed"] else "missed"}">{"✓ met" if check["passed"] else "✗ missed"}: '
        f"{escape(str(check['score']))} is {check['is']:.3f}, wanted at least {check['wanted']:.3f}"
        f"{_gain(check)}</li>"
        for check in checks
    )
    return f"<p>What the recipe wished for:</p><ul>{''.join(rows)}</ul>"


def _gain(check: Mapping[str, Any]) -> str:
    return f" ({check['gain']:g} times the untrained score)" if "gain" in check else ""


def _table(benchmark: Mapping[str, Any]) -> str:
    untrained: Mapping[str, float] = benchmark.get("untrained") or {}
    meanings: Mapping[str, str] = benchmark.get("meanings", {})
    rows = "".join(
        f"<tr><td>{escape(score)}{_meaning(meanings.get(score, ''))}</td>"
        f'<td class="number"><b>{value:.3f}</b></td>'
        f'<td class="number">{_number(untrained.get(score))}</td>'
        f'<td class="bars">{_bars(score, value, untrained)}</td></tr>'
        for score, value in benchmark["scores"].items()
    )
    head = '<tr><th>score</th><th class="number">trained</th><th class="number">untrained</th><th>compared</th></tr>'
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def _meaning(text: str) -> str:
    return f'<br><span class="soft small">{escape(text)}</span>' if text else ""


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


def _figure(picture: Mapping[str, Any], data: bytes) -> str:
    text = escape(str(picture.get("text", "")))
    caption = f"{escape(str(picture.get('benchmark', '')))}, held-out image {escape(str(picture.get('key', '')))}"
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    image = f'<img loading="lazy" alt="{text}" src="{source}">'
    return f'<figure class="picture"><div class="wide">{image}</div><figcaption>{caption}</figcaption></figure>'


def _read_picture(directory: Path, relative: str) -> bytes | None:
    """Reads a PNG of a report, made smaller if it is too big; None if there is no such file in the report."""
    path = (directory / relative).resolve()
    if not path.is_relative_to(directory.resolve()) or not path.is_file():  # a name from data must not leave its folder
        return None
    data = path.read_bytes()
    if not data.startswith(b"\x89PNG"):
        return None
    return data if len(data) <= PICTURE_BYTES else _smaller(data)


def _smaller(data: bytes) -> bytes | None:
    """Shrinks a PNG until it fits; None on machines without Pillow, e.g. some login nodes."""
    import importlib.util
    import io

    if importlib.util.find_spec("PIL") is None:
        return None
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(io.BytesIO(data)).convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return None
    width_px = min(picture.width, WIDEST_PX)
    while width_px >= 200:
        shrunk = picture.resize((width_px, max(1, round(picture.height * width_px / picture.width))))
        buffer = io.BytesIO()
        shrunk.quantize(128).save(buffer, format="PNG", optimize=True)
        if buffer.tell() <= PICTURE_BYTES:
            return buffer.getvalue()
        width_px = width_px * 3 // 4
    return None
