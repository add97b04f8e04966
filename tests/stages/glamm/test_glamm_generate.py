"""Writing with a cache gives what whole re-computation gives, alone or in company."""

import pytest
import torch

from orchestrator.errors import InputError
from stages.glamm.answer import GlammModel, Row
from stages.glamm.collate import Example
from stages.glamm.generate import Questions, Written, embed, write
from stages.glamm.model import Glamm
from stages.glamm.prompts import BBOX, Conversation, make_prompt
from tests.stages.glamm_models import picture, talkative, tiny_blueprint, vocabulary

WORDS = vocabulary()
WHOLE = f"Describe the region {BBOX} and mark it. Is it {BBOX}?"
ROWS = [
    Row(image=picture(1), boxes_xyxy_px=((0, 0, 20, 20), (5, 5, 40, 40))),
    Row(image=picture(2, (30, 50)), boxes_xyxy_px=((3, 3, 9, 40), (0, 0, 30, 50))),
    Row(image=picture(3, (64, 20)), boxes_xyxy_px=((30, 3, 60, 20), (1, 1, 3, 3))),
]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "adapters"])
def model(request: pytest.FixtureRequest) -> GlammModel:
    return GlammModel(talkative(Glamm(tiny_blueprint(WORDS, lora=request.param)), WORDS, 1), WORDS)


@torch.inference_mode()
def test_a_cache_changes_neither_words_nor_states(model: GlammModel) -> None:
    asked = model.questions(WHOLE, ROWS)

    written = write(model.network, asked, end_id=WORDS.end_id, max_new_tokens=30)

    prompt_BLD = _embedded_for_training(model)
    assert torch.allclose(embed(model.network, asked), prompt_BLD, atol=1e-5)
    language = model.network.language_model
    for prompt_LD, said in zip(prompt_BLD, written, strict=True):
        words_TD = language.get_input_embeddings()(torch.tensor(said.ids))
        whole_1LD = torch.cat([prompt_LD, words_TD])[None]
        states_LD = language.model(inputs_embeds=whole_1LD, use_cache=False).last_hidden_state[0]
        states_TD = states_LD[len(prompt_LD) - 1 : -1]
        assert torch.allclose(said.hidden_TD, states_TD, atol=1e-5)
        assert said.ids == tuple(language.lm_head(states_TD).argmax(-1).tolist())
        assert len(set(said.ids)) > 3


def test_a_row_writes_the_same_alone_and_in_company(model: GlammModel) -> None:
    together = model.write(WHOLE, ROWS, max_new_tokens=20)

    alone = [model.write(WHOLE, [row], max_new_tokens=20)[0] for row in ROWS]

    assert [one.ids for one in together] == [one.ids for one in alone]
    assert len({one.ids for one in together}) == len(ROWS)


def test_an_image_is_encoded_once_for_all_its_rows(model: GlammModel) -> None:
    image = picture(4)
    rows = [Row(image=image, boxes_xyxy_px=((n, n, n + 9, n + 20),)) for n in range(5)]

    asked = model.questions(f"What is in {BBOX}?", [*rows, Row(image=picture(5), boxes_xyxy_px=((0, 0, 9, 9),))])

    assert len(asked.clip_pixels_UCHW) == 2
    assert asked.image_B.tolist() == [0, 0, 0, 0, 0, 1]
    with torch.inference_mode():
        places = embed(model.network, asked)[:, asked.tokens.boxes[0]]
    assert len({tuple(row.tolist()) for row in places}) == 6  # every box has features of its own


def test_the_end_mark_ends_a_row_and_all_ended_rows_end_the_writing(model: GlammModel) -> None:
    asked = model.questions(WHOLE, ROWS)
    longer = write(model.network, asked, end_id=WORDS.end_id, max_new_tokens=24)
    chosen = longer[0].ids[4]  # take a written token as the end mark
    ends = [one.ids.index(chosen) if chosen in one.ids else len(one.ids) for one in longer]

    shorter = write(model.network, asked, end_id=chosen, max_new_tokens=24)

    assert ends[0] <= 4
    assert [one.ids for one in shorter] == [one.ids[:end] for one, end in zip(longer, ends, strict=True)]
    assert [len(one.hidden_TD) for one in shorter] == ends
    first = model.questions(WHOLE, ROWS[:1])
    assert _passes(model, first, end_id=chosen) == ends[0]  # one pass a token, but none after the last row's end


def test_writing_stops_where_the_model_has_no_more_room(model: GlammModel) -> None:
    rows = [Row(image=picture(1))]
    asked = len(model.questions("Hi.", rows).tokens.ids)

    written: list[Written] = model.write("Hi.", rows, max_new_tokens=10_000)

    assert len(written[0].ids) <= 256 - asked
    assert len(written[0].ids) > 50


def test_a_prompt_that_is_too_long_and_a_senseless_limit_are_refused(model: GlammModel) -> None:
    with pytest.raises(InputError, match="the prompt is too long"):
        model.write("why " * 300, [Row(image=picture(1))], max_new_tokens=5)
    with pytest.raises(InputError, match="max_new_tokens must be 1 or more, not 0"):
        model.write("why", [Row(image=picture(1))], max_new_tokens=0)


def test_no_rows_are_no_work(model: GlammModel) -> None:
    assert model.write("why", [], max_new_tokens=5) == []


def _embedded_for_training(model: GlammModel) -> torch.Tensor:
    """Embeds the same questions as a training batch would be."""
    examples = [
        Example(
            image=row.image,
            conversation=Conversation(
                text=make_prompt(WHOLE),
                answers=(),
                boxes_xyxy_px=tuple(tuple(map(float, b)) for b in row.boxes_xyxy_px),  # type: ignore[misc]  # four each
            ),
        )
        for row in ROWS
    ]
    return model.network.embed(model.collator.batch(examples))


def _passes(model: GlammModel, asked: Questions, *, end_id: int) -> int:
    """Counts the passes after the first one, which reads the prompt."""
    passes = -1

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    hook = model.network.language_model.model.register_forward_hook(count)
    write(model.network, asked, end_id=end_id, max_new_tokens=24)
    hook.remove()
    return passes
