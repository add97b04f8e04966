"""Puts the parts of the report together and writes the file."""

import base64
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path

from orchestrator.artifacts import write_text
from orchestrator.errors import SurroundingsError
from orchestrator.report import chain, compare, curves, provenance, samples, scores, sections, timeline, useful
from orchestrator.report.gather import RunView, gather
from orchestrator.report.text import moment, safe, screened

PAGE = "report.html"
HERE = Path(__file__).parent
SCRIPT = (HERE / "page.js").read_text(encoding="utf-8")
STYLE = chain.CHAIN_STYLE + (HERE / "page.css").read_text(encoding="utf-8")


def make_report(run_dir: Path, output: Path | None = None, against: Path | None = None) -> Path:
    """Writes the report of a run, finished or not, beside another run if asked; returns where.

    By default that is `report.html` in the run's folder, or `report_against_NAME.html`: that one MLflow does not get.
    """
    if output is None:
        output = run_dir / (PAGE if against is None else f"report_against_{against.resolve().name}.html")
    text = _page(gather(run_dir), None if against is None else gather(against))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, text)
    except OSError as error:
        raise SurroundingsError(f"cannot write {output}: {error.strerror or error}") from None
    return output


def _page(run: RunView, other: RunView | None) -> str:
    body, name = screened(_body(run, other)), screened(safe(run.directory.resolve().name))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}: report</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(SCRIPT)}"><style>{STYLE}</style></head>'
        f"<body>{body}<script>{SCRIPT}</script></body></html>\n"
    )


def _policy(script: str) -> str:
    """Allows our own script and nothing else to run, and nothing to be loaded or sent, whatever a caption may hold."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _body(run: RunView, other: RunView | None) -> str:
    parts = _parts(run, other)
    links = "".join(f'<a href="#{_anchor(title)}">{title}</a>' for title in parts)
    bodies = "".join(
        f'<section id="{_anchor(title)}"><h2>{title}</h2>{body}</section>' for title, body in parts.items()
    )
    return (
        f"<header><h1>{safe(run.directory.resolve().name)}</h1>{sections.summary(run)}{scores.headline(run)}</header>"
        f'<nav aria-label="Parts of this page">{links}</nav><main>{bodies}</main>'
        f"<footer>Written by orch on {moment(time.time())} from {safe(run.directory)}.</footer>"
    )


def _parts(run: RunView, other: RunView | None) -> Mapping[str, str]:
    parts = {} if other is None else {"Comparison": compare.comparison(run, other)}
    parts |= {
        "Lineage": sections.chain(run),
        "Scores": scores.score_tables(run),
        "Samples": samples.samples(run),
        "Curves": curves.curves(run),
        "Attempts over time": timeline.timeline(run, time.time()),
        "Where the time went": useful.goodput_bars(run),
        "Slow ranks": sections.stragglers(run),
        "Stages and attempts": sections.stages(run),
        "Data": provenance.data(run),
        "Provenance": provenance.provenance(run),
        "Reproduce": provenance.reproduce(run),
    }
    return {title: body for title, body in parts.items() if body}


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
