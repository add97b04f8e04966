"""A plain tokenizer in Hugging Face's fast form: text to ids and back, and which characters each id stands for."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from orchestrator.errors import InputError

FILES = ("tokenizer.json", "tokenizer_config.json")
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"  # of tokenizers made here: T5's tokens, in T5's order
_WORD = re.compile(r"\S+")


class WordPieces:
    """A tokenizer whose padding, first and last tokens are known.

    T5's texts begin with the padding token and end with `</s>`, BERT's begin with `[CLS]` and end with `[SEP]`.
    """

    def __init__(self, inner: Tokenizer, *, pad: str, start: str, end: str) -> None:
        """Checks that the tokenizer has these tokens."""
        self._inner, self._named = inner, {"pad_token": pad, "bos_token": start, "eos_token": end}
        known = {name: inner.token_to_id(token) for name, token in self._named.items()}
        if lacking := [f"{name} {self._named[name]!r}" for name, number in known.items() if number is None]:
            raise InputError(f"the tokenizer lacks its {' and its '.join(lacking)}")
        self.size: int = inner.get_vocab_size(with_added_tokens=True)
        self.pad_id, self.start_id, self.end_id = (number for number in known.values() if number is not None)
        inner.no_truncation()
        inner.no_padding()

    @classmethod
    def read(cls, folder: Path) -> "WordPieces":
        """Reads a folder that holds `files()`, or one of Hugging Face's."""
        try:
            return cls.of_files({name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()})
        except InputError as error:
            raise InputError(f"{folder}: {error}") from None

    @classmethod
    def of_files(cls, files: "dict[str, bytes]") -> "WordPieces":
        """Builds one from the contents of FILES."""
        if lacking := [name for name in FILES if name not in files]:
            raise InputError(f"no {' and no '.join(lacking)}: give a folder with a fast tokenizer of Hugging Face")
        try:
            inner = Tokenizer.from_str(files[FILES[0]].decode())
            settings: dict[str, Any] = json.loads(files[FILES[1]])
        except Exception as error:  # noqa: BLE001 - tokenizers raises nothing more precise
            raise InputError(f"the tokenizer cannot be read ({error})") from None
        pad = _content(settings.get("pad_token"))
        start = _content(settings.get("bos_token") or settings.get("cls_token")) or pad
        end = _content(settings.get("eos_token") or settings.get("sep_token"))
        return cls(inner, pad=pad, start=start, end=end)

    def files(self) -> dict[str, bytes]:
        """Returns the files that `read` needs: name -> content."""
        named = {**self._named, "tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "right"}
        return {
            "tokenizer.json": self._inner.to_str(pretty=False).encode(),
            "tokenizer_config.json": json.dumps(named, indent=1, ensure_ascii=False).encode(),
        }

    def encode(self, text: str) -> list[int]:
        """Returns ids, without first and last token."""
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns plain text, special tokens left out."""
        return str(self._inner.decode(list(ids), skip_special_tokens=True)).strip()

    def words(self, ids: Sequence[int]) -> tuple[str, list[tuple[tuple[int, int], tuple[int, ...]]]]:
        """Returns the text, and for each of its words the characters [start, end) and the places of its ids."""
        text = self.decode(ids)
        # how long the text is after each id tells which characters the id has brought
        ends = [min(len(self.decode(ids[: place + 1])), len(text)) for place in range(len(ids))]
        starts = [0, *ends[:-1]]
        return text, [
            (found.span(), tuple(p for p in range(len(ids)) if starts[p] < found.end() and found.start() < ends[p]))
            for found in _WORD.finditer(text)
        ]


def learn_pieces(texts: Iterable[str], size: int, *, attached: bool = False) -> WordPieces:
    """Learns a byte-level BPE from texts: any text can be written with it, frequent words are one token.

    `attached`: a word and the punctuation at its end may be one token, as in T5's own vocabulary.
    """
    inner = Tokenizer(models.BPE(unk_token=None))
    if attached:
        words = pre_tokenizers.Split(Regex(r"\s*\S+"), behavior="isolated")
        inner.normalizer = normalizers.Prepend(" ")
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    else:
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, END, UNKNOWN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return WordPieces(inner, pad=PAD, start=PAD, end=END)


def _content(token: "str | dict[str, str] | None") -> str:
    return "" if token is None else token if isinstance(token, str) else token["content"]
