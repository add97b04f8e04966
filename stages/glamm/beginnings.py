"""What keeps a training stage of GLaMM from beginning a model. Imports no torch."""

from orchestrator.artifacts import Checkpoint, Export, Tokenizer
from stages.glamm.config import NO_PROMPTER, GlammConfig
from stages.inputs import beginning_faults


def model_faults(
    model: GlammConfig | None,
    tokenizer: Tokenizer | None,
    begun: Checkpoint | None = None,
    seeing: Export | None = None,
) -> dict[str, str]:
    """Finds no model or two, folders that are not there, and words or an image encoder that nobody brings, or two do.

    `seeing` is the export that brings the image encoder.
    """
    found = beginning_faults(model, tokenizer, begun)
    if model is None or begun is not None:
        return found if seeing is None else found | {"inputs.vision": "inputs.model has its own; remove one of the two"}
    if tokenizer is None and model.language.path is None:
        found["inputs.tokenizer"] = "needed, because config.model.language.path names no folder with a tokenizer"
    if seeing is not None and model.vision.path is not None:
        found["inputs.vision"] = "config.model.vision.path names an image encoder as well; remove one of the two"
    if seeing is None and model.vision.path is None and model.region_encoder == "prompter":
        found["config.model.region_encoder"] = NO_PROMPTER
    return found
