"""A small `tokenizer.model` in SentencePiece's format, and its byte-pair encoding in a few plain lines."""

from itertools import pairwise
from typing import Any

from transformers.convert_slow_tokenizer import import_protobuf

SPACE = "▁"
# the better score wins a merge; what is written of a word is made of these
MERGED = ("th", "in", f"{SPACE}A", "ed", f"{SPACE}b", "ar", "red", f"{SPACE}red", f"{SPACE}bar", "is", f"{SPACE}is")
LETTERS = f"{SPACE}abcdefghijklmnopqrstuvwxyzAEHISTUNR.,:?\n"
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


def pieces() -> list[tuple[str, float, int]]:
    """Lists piece, score and type in the order of their ids, as LLaMA's file has them."""
    found: list[tuple[str, float, int]] = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    found += [(f"<0x{value:02X}>", 0.0, BYTE) for value in range(256)]
    found += [(text, -float(place), NORMAL) for place, text in enumerate((*MERGED, *LETTERS))]
    return found


def tokenizer_model(*, model_type: int = 2) -> bytes:
    """Writes the file."""
    proto: Any = import_protobuf().ModelProto()
    for text, score, kind in pieces():
        proto.pieces.add(piece=text, score=score, type=kind)
    proto.trainer_spec.model_type = model_type
    proto.trainer_spec.unk_id, proto.trainer_spec.bos_id, proto.trainer_spec.eos_id = 0, 1, 2
    content: bytes = proto.SerializeToString()
    return content


def encoded(text: str) -> list[int]:
    """Merges the best pair again and again, bytes for what is no piece: what SentencePiece does, without its speed."""
    ids = {piece: place for place, (piece, *_) in enumerate(pieces())}
    scores = {piece: score for piece, score, kind in pieces() if kind == NORMAL}
    parts = list(SPACE + text.replace(" ", SPACE))
    while True:
        pairs = [(scores[one + two], -at) for at, (one, two) in enumerate(pairwise(parts))
                 if one + two in scores]  # fmt: skip
        if not pairs:
            break
        at = -max(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [
        number
        for part in parts
        for number in ([ids[part]] if part in ids else [ids[f"<0x{byte:02X}>"] for byte in part.encode()])
    ]
