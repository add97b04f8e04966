"""Puts the parts of the report together and writes the file."""

import contextlib
import os
import time
from html import escape
from pathlib import Path

from orchestrator.errors import SurroundingsError
from orchestrator.report import scores, sections
from orchestrator.report.gather import RunView, gather
from orchestrator.report.look import CSS, SCRIPT

# nothing is loaded from anywhere: whatever a caption or a name may hold, it cannot call home
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def make_report(run_dir: Path, output: Path) -> Path:
    """Writes the report of a run, finished or not, to `output`, and returns that."""
    text = _page(gather(run_dir))
    draft = output.with_name(f".{output.name}.{os.getpid()}.draft")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        draft.replace(output)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise SurroundingsError(f"cannot write {output}: {error.strerror or error}") from None
    return output


def _page(run: RunView) -> str:
    parts = {
        "Stages as a chain": sections.chain(run),
        "Scores": scores.score_tables(run),
        "Pictures": scores.pictures(run),
        "Curves": sections.curves(run),
        "Stages and attempts": sections.stages(run),
        "Data": sections.data(run),
        "Provenance": sections.provenance(run),
        "Reproduce": sections.reproduce(run),
    }
    links = "".join(f'<a href="#{_anchor(title)}">{title}</a>' for title in parts)
    bodies = "".join(
        f'<section id="{_anchor(title)}"><h2>{title}</h2>{body}</section>' for title, body in parts.items()
    )
    name = escape(run.directory.resolve().name)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}: report</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{CSS}</style></head>'
        f"<body><header><h1>{name}</h1>{sections.summary(run)}{scores.headline(run)}</header><nav>{links}</nav>"
        f"<main>{bodies}</main><footer>Written by orch on {sections.moment(time.time())} from "
        f"{escape(str(run.directory))}.</footer><script>{SCRIPT}</script></body></html>\n"
    )


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
