"""RehearsalCheck: what a rehearsed model is worth, and its weights to the last bit. Imports torch only when it runs."""

from collections.abc import Mapping
from typing import Any

from orchestrator.artifacts import Report, write_json
from orchestrator.records import record
from orchestrator.stage import Stage, StageContext
from stages.inputs import ModelAndSamples

RESULT = "result.json"


class RehearsalCheck(Stage):
    """Writes the error of a rehearsed model over all samples, and the digest of each of its weights."""

    Inputs = ModelAndSamples

    @record
    class Outputs:
        """`result.json`: error, samples, damaged (samples that were left out), weights (name -> sha256)."""

        report: Report

    def code_roots(self) -> tuple[str, ...]:
        """Names the code that planning does not import."""
        return ("stages.rehearsal.score",)

    def run(self, context: StageContext) -> Mapping[str, Mapping[str, Any]]:
        """Asks on the first rank; the others have nothing to do. Collective: every rank must call."""
        if not context.world.is_main:
            return {"report": {}}
        from stages.rehearsal.score import score

        result = score(self.inputs.model.path, self.inputs.shards.path)
        write_json(self.outputs.report.path / RESULT, result)
        return {"report": {"samples": result["samples"], "error": result["error"]}}
