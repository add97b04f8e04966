"""One self-contained HTML page about a run, made from the run folder alone, beside a second run if asked.

    gather.py      reads the run folder
    page.py        puts the parts together and writes the file; colors.css, chain.css, page.css and page.js are in it
    sections.py    summary, graph, stages and attempts, slow ranks; useful.py, scores.py, provenance.py, compare.py:
                   the other parts in words and tables
    chain.py, charts.py and curves.py, timeline.py, samples.py and masks.py: the parts that are drawn
    text.py        the one door for everything that comes from a run: escaped, without secrets

Everything is drawn here, as SVG, and is whole without the script; the script zooms and switches. The page loads
nothing, and its content policy lets nothing run but that one script, whatever a caption or a name may hold.
"""

from orchestrator.report.page import make_report

__all__ = ["make_report"]
