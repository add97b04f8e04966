"""GlammFeatures: shards again, with what the frozen image encoders make of each image beside it. Imports no torch."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from orchestrator.artifacts import Shards
from orchestrator.records import incidental, record
from orchestrator.stage import Stage, StageContext
from orchestrator.training.stage import TrainingStage
from stages.glamm.foresight import ForeseenStage, Shortcuts
from stages.glamm.learning import learning_encoders
from stages.inputs import ModelAndSamples


class GlammFeatures(Stage):
    """Runs the image encoders once for each image, so that the stages after it need not run them every epoch.

    At full size an image takes 7 MB: four hidden states of CLIP ViT-L/14-336 and SAM's 256 x 64 x 64, in bf16.
    """

    keeps_parts: ClassVar[bool] = True

    @record
    class Config:
        """How exactly, and how many at a time."""

        precision: Literal["bf16", "fp32"] = "bf16"  # what the encoders compute in, and what is kept
        images_at_once: int = incidental(default=8)

        def __post_init__(self) -> None:
            """Checks ranges."""
            if self.images_at_once < 1:
                raise ValueError(f"images_at_once must be above 0, not {self.images_at_once}")

    Inputs = ModelAndSamples

    @record
    class Outputs:
        """The same samples in the same tars, each with a member more."""

        shards: Shards

    def run(self, context: StageContext) -> Mapping[str, Mapping[str, Any]]:
        """Encodes, every rank its tars; the first one reports. Collective: every rank must call."""
        from stages.glamm.keeping import keep_features

        return {
            "shards": keep_features(self.config, self.inputs.model, self.inputs.shards, self.outputs.shards, context)
        }


# TrainingStage is named beside what derives from it: fingerprints do not follow foresight, and must follow training
class ReadsFeatures(ForeseenStage, TrainingStage):
    """A training stage that may read features: its Config has `features`, `mask_side_px` and `mask_points`."""

    def shortcuts(self) -> Shortcuts:
        """Returns how the recipe makes steps smaller."""
        config = self.config
        return Shortcuts(mask_side_px=config.mask_side_px, mask_points=config.mask_points, features=config.features)

    def features_faults(self) -> Mapping[str, str]:
        """Finds features that nobody can have kept, or that would grow old."""
        if not self.config.features:
            return {}
        learning = learning_encoders(self.train.trainable or self.trainable)
        if self.parts() is not None:
            problem = "features are kept of a model that has begun; allowed with config.model: false"
        elif learning:
            problem = f"the image encoders may learn by {', '.join(learning)}; allowed: false, or narrower patterns"
        else:
            return {}
        return {"config.features": problem}

    def run(self, context: StageContext) -> Mapping[str, Mapping[str, Any]]:
        """Trains, once it is known whose features the shards have. Collective: every rank must call."""
        if self.config.features:
            from stages.glamm.encoders import require_features

            require_features(self.inputs.model, self.inputs.shards, context.world)
        return super().run(context)
