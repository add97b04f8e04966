"""The image encoders of a checkpoint, run alone to keep what they make of images, and known again by a digest.

Legend: B images, K hidden states that are read, N patches, C channels, H W cells.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, SamConfig, SamModel
from transformers.initialization import no_init_weights

from orchestrator.artifacts import Checkpoint, Shards
from orchestrator.errors import DamagedArtifact, InputError, OrchError
from orchestrator.training.weights import StoredWeights, load_weights
from orchestrator.world import World
from stages.blueprints import TOKENIZER
from stages.glamm.begin import read_blueprint
from stages.glamm.collate import Collator
from stages.glamm.config import Blueprint
from stages.glamm.features import FACT, IMAGE, PATCHES
from stages.glamm.tokenizer import Vocabulary

_VISION, _GROUNDING = "vision_tower.", "sam.vision_encoder."


class Encoders:
    """The two image encoders of a checkpoint, alone."""

    def __init__(self, checkpoint: Checkpoint, *, precision: torch.dtype, device: str) -> None:
        """Loads them; the other weights of the checkpoint are not read."""
        self._blueprint = read_blueprint(checkpoint)
        self._collator = Collator(self._blueprint, Vocabulary.read(checkpoint.path / TOKENIZER))
        self._device, self._precision = device, precision
        weights = _weights(checkpoint.path)
        self.digest = _digest(self._blueprint, weights)
        with no_init_weights():
            self._vision = CLIPVisionModel(CLIPVisionConfig(**self._blueprint.vision))
            self._grounding = SamModel(SamConfig(**self._blueprint.grounding)).vision_encoder
        parts: dict[str, nn.Module] = {_VISION: self._vision, _GROUNDING: self._grounding}
        for prefix, module in parts.items():
            own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
            try:
                module.load_state_dict(own)
            except RuntimeError as error:
                raise DamagedArtifact(f"{checkpoint.path} does not fit the model it describes: {error}") from None
            module.eval().requires_grad_(requires_grad=False).to(device, precision)

    @torch.inference_mode()
    def encode(self, images: Sequence[Image.Image]) -> list[bytes]:
        """Encodes images together; returns for each what `features.read_features` reads."""
        clip_BCHW = torch.stack([self._collator.clip_pixels(image) for image in images])
        sam_BCHW = torch.stack([self._collator.sam_pixels(image)[0] for image in images])
        states = self._vision(clip_BCHW.to(self._device), output_hidden_states=True).hidden_states
        patches_BKNC = torch.stack([states[number][:, 1:] for number in self._blueprint.read_states], dim=1).cpu()
        seen_BCHW = self._grounding(sam_BCHW.to(self._device, self._precision)).last_hidden_state.cpu()
        return [
            save({PATCHES: patches_KNC.contiguous(), IMAGE: image_CHW.contiguous()})
            for patches_KNC, image_CHW in zip(patches_BKNC, seen_BCHW, strict=True)
        ]


def require_features(model: Checkpoint, shards: Mapping[str, Shards], world: World) -> None:
    """Raises InputError where shards have no features, or those of other encoders than the model's.

    Collective: every rank must call. The first one reads the encoders' weights.
    """
    problem: OrchError | None = None
    if world.is_main:
        try:
            own = _digest(read_blueprint(model), _weights(model.path))
            for name, entry in sorted(shards.items()):
                kept = entry.facts().get(FACT)
                if kept is None:
                    raise InputError(
                        f"inputs.shards.{name}: {entry.path} has no features: let glamm_features keep some"
                    )
                if kept["encoders"] != own:
                    raise InputError(f"inputs.shards.{name}: its features are of other image encoders than the model's")
        except OrchError as error:
            problem = error
    problem = world.broadcast(problem)
    if problem is not None:  # on all ranks, or the others would wait for the first
        raise problem


def _weights(checkpoint: Path) -> dict[str, Tensor]:
    names = [name for name in StoredWeights(checkpoint).entries if name.startswith((_VISION, _GROUNDING))]
    return load_weights(checkpoint, names)


def _digest(blueprint: Blueprint, weights: Mapping[str, Tensor]) -> str:
    """Digests what features follow from; weights in bf16, for frozen ones are saved so by some engines."""
    plain = blueprint.to_plain()
    shape = {name: plain[name] for name in ("vision", "grounding", "centre_crop")} | {"states": blueprint.read_states}
    if blueprint.padded:
        shape["padded"] = True
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        if tensor.is_floating_point():
            digest.update(name.encode())
            digest.update(tensor.bfloat16().contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
