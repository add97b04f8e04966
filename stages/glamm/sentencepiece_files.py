"""Reads `tokenizer.model`, which the older LLaMAs (Vicuna, the published GLaMM) have instead of `tokenizer.json`.

It is SentencePiece's format, read by the description of it that transformers carries: SentencePiece need not be there.
"""

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers.convert_slow_tokenizer import generate_merges, import_protobuf

from orchestrator.errors import InputError

FILE = "tokenizer.model"
_BPE = 2  # TrainerSpec.ModelType
_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3  # SentencePiece.Type
_SPACE = "▁"


def read_sentencepiece(content: bytes) -> tuple[Tokenizer, dict[str, str]]:
    """Returns the tokenizer, as LLaMA's own code builds it, and the names of its special tokens."""
    proto: Any = import_protobuf().ModelProto()  # type: ignore[no-untyped-call]  # transformers'
    try:
        proto.ParseFromString(content)
    except Exception as error:  # noqa: BLE001 - protobuf's exceptions are not the same in all its versions
        raise InputError(f"{FILE} cannot be read ({error})") from None
    if not proto.pieces or proto.trainer_spec.model_type != _BPE:
        raise InputError(f"{FILE} is no byte-pair encoding of SentencePiece, which LLaMA's tokenizer is")
    ids = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces}
    unwritten = {piece.piece for piece in proto.pieces if piece.type != _NORMAL}
    named = _named(proto)
    inner = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=generate_merges(ids, scores, skip_tokens=unwritten),
            unk_token=named.get("unk_token"),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="first", split=False)
    inner.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    special = [piece.piece for piece in proto.pieces if piece.type in (_UNKNOWN, _CONTROL)]
    inner.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    if "bos_token" in named:
        begin = named["bos_token"]
        inner.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, ids[begin])]
        )
    return inner, named


def _named(proto: Any) -> dict[str, str]:
    """Names the special tokens by the ids that the file gives; -1 stands for none."""
    spec = proto.trainer_spec
    by_name = {"unk_token": spec.unk_id, "bos_token": spec.bos_id, "eos_token": spec.eos_id}
    return {
        name: str(proto.pieces[number].piece) for name, number in by_name.items() if 0 <= number < len(proto.pieces)
    }
