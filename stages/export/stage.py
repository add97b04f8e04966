"""ExportModel: a checkpoint in, a folder that the ecosystem loads out. Imports nothing heavy."""

from collections.abc import Mapping
from typing import Any

from orchestrator.artifacts import Checkpoint, Export, Report
from orchestrator.errors import StageFailed
from orchestrator.records import record
from orchestrator.stage import Stage, StageContext
from stages import FORMS


class ExportModel(Stage):
    """Writes safetensors, config, tokenizer and a model card with recipe, lineage and scores."""

    @record
    class Config:
        """What is written, and what the model card says beyond what is known."""

        title: str = ""  # empty = run and stage
        licence: str = ""  # of the weights; empty = not stated
        form: str = "merged"  # adapter: the low-rank adapter of the language model alone, in PEFT's layout

        def __post_init__(self) -> None:
            """Checks the form."""
            if self.form not in FORMS:
                raise ValueError(f"form: {self.form!r} is unknown; allowed: {', '.join(FORMS)}")

    @record
    class Inputs:
        """The model, and its scores for the card."""

        model: Checkpoint
        report: Report | None = None

    @record
    class Outputs:
        """The folder to publish."""

        model: Export

    asks_family = True

    def code_roots(self) -> tuple[str, ...]:
        """Names the code that planning does not import."""
        return ("stages.export.card",)

    def foresee(self, inputs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
        """Says of which model it will be."""
        known = inputs.get("model", {})
        return {"model": {name: known[name] for name in ("family", "model") if name in known}}

    def run(self, context: StageContext) -> Mapping[str, Mapping[str, Any]]:
        """Lets the family write the folder, on the first rank. Collective: every rank must call."""
        facts: Mapping[str, Any] = {}
        if context.world.is_main:
            facts = self._write(context)
        return {"model": context.world.broadcast(facts)}

    def _write(self, context: StageContext) -> Mapping[str, Any]:
        import shutil

        from stages.export.card import make_card
        from stages.family import load_family

        checkpoint, directory = self.inputs.model, self.outputs.model.path
        known = checkpoint.facts()
        family = load_family(str(known["family"]))
        shutil.rmtree(directory, ignore_errors=True)  # what a killed attempt left
        directory.mkdir(parents=True)
        context.progress.advance(0, 1, "export")
        card = make_card(self.config, checkpoint, self.inputs.report, context)
        facts = family.export(checkpoint.path, directory, card=card, form=self.config.form)
        if not (directory / "README.md").is_file():
            raise StageFailed(f"family {known['family']} wrote no README.md (the model card) into {directory}")
        context.progress.advance(1, 1, "export")
        return {**facts, "family": known["family"], "model": known.get("model", {}), "checkpoint": checkpoint.digest()}
