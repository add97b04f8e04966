"""A GLaMM computes in bf16 as it does in fp32, whether a batch has masks and boxes or not."""

import pytest
import torch

from stages.glamm.collate import Collator, Example
from stages.glamm.model import Glamm
from stages.glamm.prompts import BBOX, GCG_QUESTIONS, PHRASE_END, PHRASE_START, SEG, make_conversation
from stages.glamm.task import GlammTask, Start, Weights
from stages.samples import Turn
from tests.stages.glamm_models import half, picture, talkative, tiny_blueprint, vocabulary

WORDS = vocabulary()


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "adapters"])
@pytest.mark.parametrize("pointed", [False, True], ids=["words only", "boxes and masks"])
def test_a_loss_in_bf16_is_close_to_that_in_fp32_and_reaches_the_weights(*, lora: bool, pointed: bool) -> None:
    blueprint = tiny_blueprint(WORDS, lora=lora)
    task = GlammTask(blueprint, WORDS, {}, start=Start(), weights=Weights(), max_regions=4)
    model = talkative(Glamm(blueprint), WORDS, 1).eval()
    batch = Collator(blueprint, WORDS).batch([_example(number, pointed=pointed) for number in range(2)])

    exact = task.loss(model, batch).total
    rounded = task.loss(model.bfloat16(), batch).total
    rounded.backward()

    assert rounded.item() == pytest.approx(exact.item(), rel=0.03)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    assert len(gradients) > 100


def _example(number: int, *, pointed: bool) -> Example:
    image = picture(number, (30, 20))
    if not pointed:
        turns = [Turn(question="What is it?", answer="A red bar.")]
        return Example(image=image, conversation=make_conversation(turns, end=WORDS.end))
    answer = f"{PHRASE_START} A red bar {PHRASE_END} {SEG}"
    turns = [Turn(question=f"{GCG_QUESTIONS[0]} {BBOX}", answer=answer)]
    conversation = make_conversation(turns, end=WORDS.end, boxes_xyxy_px=[(1, 2, 20, 18)])
    return Example(image=image, conversation=conversation, masks=(half(image, left=True),))
