"""One self-contained HTML page about a run, made from the run folder alone."""

from orchestrator.report.page import make_report

__all__ = ["make_report"]
