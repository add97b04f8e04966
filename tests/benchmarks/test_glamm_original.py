"""The original's step, as the benchmark has it, and ours say the same of the same weights and samples."""

import pytest
import torch

from benchmarks.glamm_original import original_loss
from orchestrator.data.stream import Drawn
from stages.glamm.model import Glamm
from stages.glamm.task import GlammTask, Start, Weights
from tests.stages.glamm_models import talkative, tiny_blueprint, vocabulary
from tests.stages.scenes import scene

KINDS = {"captions": "caption", "boxes": "region", "grounded": "gcg", "segments": "region_mask"}


@pytest.mark.parametrize("source", KINDS)
def test_our_step_gives_the_loss_and_the_gradients_of_the_original(source: str) -> None:
    words = vocabulary()
    blueprint = tiny_blueprint(words)
    task = GlammTask(blueprint, words, KINDS, start=Start(), weights=Weights(), max_regions=4)
    model = talkative(Glamm(blueprint), words, 1)
    for name in ("vision_tower", "sam.vision_encoder"):  # the original never trains them
        model.get_submodule(name).requires_grad_(requires_grad=False)
    samples = [scene(number) for number in range(3)]
    batch = task.collate(
        [Drawn(source=source, key=s.key, members=s.to_members(), seed=1, place=n) for n, s in enumerate(samples)]
    )

    found = []
    for loss in (original_loss(model, batch, Weights()), task.loss(model, batch).total):
        model.zero_grad()
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((loss.item(), gradients))

    (expected, theirs), (ours, gradients) = found
    assert ours == pytest.approx(expected, rel=1e-5)
    assert theirs.keys() <= gradients.keys()
    for name, gradient in gradients.items():
        # what the original does not run in this batch has gradients of zero in ours
        wanted = theirs.get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
