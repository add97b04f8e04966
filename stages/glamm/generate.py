"""Greedy writing with a key-value cache: the words, and for each the hidden state that chose it.

Legend: U images, B rows (one question each), L tokens of the question, T written tokens, R boxes, D language width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.errors import InputError
from orchestrator.records import record
from stages.glamm.collate import Tokens
from stages.glamm.model import Glamm


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Questions:
    """One wording put to B rows, each with an image and boxes of its own; an image is encoded once for all its rows."""

    tokens: Tokens  # of every row
    clip_pixels_UCHW: Tensor
    image_B: Tensor  # which image a row is about
    boxes_R4: Tensor  # row by row, as many a row as the wording has <bbox>


@record
class Written:
    """What one row wrote, up to its end mark and without it."""

    ids: tuple[int, ...]
    hidden_TD: Tensor  # the state that chose each id


@torch.inference_mode()
def write(model: Glamm, questions: Questions, *, end_id: int, max_new_tokens: int) -> list[Written]:
    """Writes the most likely token again and again, until every row has ended."""
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be 1 or more, not {max_new_tokens}")
    limit = _room(model, questions, max_new_tokens)
    language = model.language_model
    output = language.model(inputs_embeds=embed(model, questions), use_cache=True)
    ids: list[Tensor] = []
    states: list[Tensor] = []
    ended_B = torch.zeros_like(questions.image_B, dtype=torch.bool)
    while True:
        hidden_BD = output.last_hidden_state[:, -1]
        chosen_B = language.lm_head(hidden_BD).argmax(-1)
        ids.append(chosen_B)
        states.append(hidden_BD)
        ended_B |= chosen_B == end_id
        if len(ids) == limit or bool(ended_B.all()):
            break
        embeds_B1D = language.get_input_embeddings()(chosen_B)[:, None]
        output = language.model(inputs_embeds=embeds_B1D, past_key_values=output.past_key_values, use_cache=True)
    hidden_BTD = torch.stack(states, dim=1)
    rows: list[list[int]] = torch.stack(ids, dim=1).tolist()
    lengths = [row.index(end_id) if end_id in row else len(row) for row in rows]
    return [
        Written(ids=tuple(row[:length]), hidden_TD=hidden_TD[:length])
        for row, length, hidden_TD in zip(rows, lengths, hidden_BTD, strict=True)
    ]


def embed(model: Glamm, questions: Questions) -> Tensor:
    """Embeds the questions, image and boxes in their places: B x L x D."""
    tokens, image_B = questions.tokens, questions.image_B
    image_UND, levels_UND = model.see(model.encode(questions.clip_pixels_UCHW))
    ids_L = torch.tensor(tokens.ids, device=image_B.device)
    embeds_BLD: Tensor = model.language_model.get_input_embeddings()(ids_L).repeat(len(image_B), 1, 1)
    embeds_BLD[:, slice(*tokens.image)] = image_UND[image_B].to(embeds_BLD.dtype)
    if tokens.boxes:
        count = len(tokens.boxes)
        box_image_R = image_B.repeat_interleave(count)
        regions_RD = model.region_encoder(levels_UND, questions.boxes_R4, box_image_R)
        embeds_BLD[:, list(tokens.boxes)] = regions_RD.unflatten(0, (-1, count)).to(embeds_BLD.dtype)
    return embeds_BLD


def _room(model: Glamm, questions: Questions, max_new_tokens: int) -> int:
    asked = len(questions.tokens.ids)
    most: int = model.language_model.config.max_position_embeddings
    # as many tokens as training ever saw: then the question was cut, or leaves no room
    if asked >= min(most, model.blueprint.max_tokens):
        raise InputError(f"the prompt is too long: with its image it takes {asked} tokens or more, of at most {most}")
    return min(max_new_tokens, most - asked)
