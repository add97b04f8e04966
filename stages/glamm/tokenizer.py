"""The tokenizer: made from data for small models, read from a folder for large ones; special tokens checked by id."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from orchestrator.errors import InputError
from orchestrator.records import record
from stages.glamm.config import SPECIAL_TOKENS
from stages.glamm.prompts import BBOX, IM_START, PHRASE_END, PHRASE_START, SEG, tidy
from stages.glamm.sentencepiece_files import FILE as SENTENCEPIECE
from stages.glamm.sentencepiece_files import read_sentencepiece

FILES = ("tokenizer.json", "tokenizer_config.json")  # what is written
ADDED = "added_tokens.json"  # of older folders: token -> id
READ = (*FILES, "special_tokens_map.json", ADDED, SENTENCEPIECE)


@record
class Piece:
    """A stretch of generated text: plain words, or a phrase in `<p> ... </p>`."""

    text: str
    phrase: bool
    seg: int | None  # which [SEG] of the answer follows the phrase


class Vocabulary:
    """A tokenizer whose special tokens are where they must be."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Checks the special tokens: present, last, in their order."""
        self.tokenizer = tokenizer
        ids = [tokenizer.backend_tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
        size = len(tokenizer)
        wanted = list(range(size - len(SPECIAL_TOKENS), size))
        if ids != wanted:
            raise InputError(
                f"special tokens {', '.join(SPECIAL_TOKENS)} must have the ids {wanted}, this tokenizer gives {ids}: "
                "it was saved by other code or another order of adding"
            )
        if tokenizer.eos_token is None or tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no end-of-sequence token, so no answer could ever end")
        by_name = dict(zip(SPECIAL_TOKENS, wanted, strict=True))
        self.size = size
        self.end: str = str(tokenizer.eos_token)
        self.end_id: int = int(tokenizer.eos_token_id)
        self.image_id, self.box_id, self.seg_id = by_name[IM_START], by_name[BBOX], by_name[SEG]
        self.phrase_start_id, self.phrase_end_id = by_name[PHRASE_START], by_name[PHRASE_END]
        self.special_ids = frozenset(wanted) | {self.end_id}

    @classmethod
    def read(cls, folder: Path) -> "Vocabulary":
        """Reads a folder that `save` wrote, or one of Hugging Face's; special tokens that it lacks are added."""
        try:
            return cls.of_files({name: (folder / name).read_bytes() for name in READ if (folder / name).is_file()})
        except InputError as error:
            raise InputError(f"{folder}: {error}") from None

    @classmethod
    def of_files(cls, files: "dict[str, bytes]") -> "Vocabulary":
        """Builds one from the contents of files in READ.

        Where a folder says which ids its special tokens had when its weights were trained, they must come out the same.
        """
        try:
            settings = json.loads(files.get("special_tokens_map.json", b"{}"))
            settings |= json.loads(files.get("tokenizer_config.json", b"{}"))
            inner, named = _inner(files)
            added = json.loads(files.get(ADDED, b"{}"))
            promised = {str(token): int(number) for token, number in added.items()}
            promised |= {_content(token): int(key) for key, token in settings.get("added_tokens_decoder", {}).items()}
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 - tokenizers raises nothing more precise
            raise InputError(f"the tokenizer cannot be read ({error})") from None
        named |= {
            name: _content(settings[name]) for name in ("eos_token", "bos_token", "unk_token") if settings.get(name)
        }
        _add_specials(inner)
        found = cls(_fast(inner, named))
        _expect_ids(inner, promised)
        return found

    def files(self) -> dict[str, bytes]:
        """Returns the files that `read` needs: name -> content."""
        named = {"eos_token": self.end, "tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "right"}
        for name, token in (("bos_token", self.tokenizer.bos_token), ("unk_token", self.tokenizer.unk_token)):
            if token is not None:
                named[name] = str(token)
        return {
            "tokenizer.json": self.tokenizer.backend_tokenizer.to_str(pretty=False).encode(),
            "tokenizer_config.json": json.dumps(named, indent=1, ensure_ascii=False).encode(),
        }

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns ids, and for each the code points [start, end) it stands for."""
        encoded = self.tokenizer.backend_tokenizer.encode(text)
        return list(encoded.ids), list(encoded.offsets)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns plain text, special tokens left out."""
        return tidy(" ".join(piece.text for piece in self.pieces(ids)))

    def tagged(self, ids: Sequence[int]) -> list[str]:
        """Returns the text of each `<p> ... </p>`, whether a [SEG] follows it or not, in order."""
        found: list[str] = []
        start: int | None = None
        for place, token in enumerate(ids):
            if token == self.phrase_start_id and start is None:
                start = place + 1
            elif token == self.phrase_end_id and start is not None:
                found.append(tidy(str(self.tokenizer.decode(list(ids[start:place]), skip_special_tokens=True))))
                start = None
        return found

    def pieces(self, ids: Sequence[int]) -> list[Piece]:
        """Cuts generated ids at phrases; a phrase that is not closed, or has no [SEG], is plain text."""
        found: list[Piece] = []
        words: list[int] = []
        start, seg = None, 0

        def flush(*, phrase: bool = False, which: int | None = None) -> None:
            text = str(self.tokenizer.decode(words, skip_special_tokens=True)).strip()
            if text:
                found.append(Piece(text=text, phrase=phrase, seg=which))
            words.clear()

        for place, token in enumerate(ids):
            if token == self.end_id:
                break
            if token == self.phrase_start_id:
                flush()
                start = place
            elif token == self.phrase_end_id:
                pointed = start is not None and place + 1 < len(ids) and ids[place + 1] == self.seg_id
                flush(phrase=pointed, which=seg if pointed else None)
                start = None
            elif token == self.seg_id:
                seg += 1
            elif token not in self.special_ids:
                words.append(token)
        flush()
        return found


def train_vocabulary(texts: Iterable[str], size: int) -> Vocabulary:
    """Learns a byte-level BPE from texts: any text can be written with it, frequent words are one token."""
    inner = Tokenizer(models.BPE(unk_token=None))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL_TOKENS),
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    _add_specials(inner)
    named = {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    return Vocabulary(_fast(inner, named))


def _inner(files: "dict[str, bytes]") -> tuple[Tokenizer, dict[str, str]]:
    """Opens the fast form if there is one, else LLaMA's older one; also names the special tokens, if it does."""
    if "tokenizer.json" in files:
        return Tokenizer.from_str(files["tokenizer.json"].decode()), {}
    if SENTENCEPIECE in files:
        return read_sentencepiece(files[SENTENCEPIECE])
    raise InputError(f"no tokenizer.json: give a folder with a tokenizer of Hugging Face (or LLaMA's {SENTENCEPIECE})")


def _expect_ids(inner: Tokenizer, promised: dict[str, int]) -> None:
    wrong = {
        token: (number, given)
        for token, number in promised.items()
        if token in SPECIAL_TOKENS and (given := inner.token_to_id(token)) != number
    }
    if wrong:
        told = "; ".join(f"{token} had the id {old}, here it gets {new}" for token, (old, new) in wrong.items())
        raise InputError(f"the weights of this folder were trained with other ids: {told}")


def _fast(inner: Tokenizer, named: dict[str, str]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=inner, **named)  # type: ignore[no-untyped-call]  # transformers'


def _add_specials(inner: Tokenizer) -> None:
    # lstrip: the space before a special token belongs to it, so that wrapping a phrase costs no token of its own
    inner.add_special_tokens(
        [AddedToken(token, lstrip=True, normalized=False, special=True) for token in SPECIAL_TOKENS]
    )


def _content(token: "str | dict[str, str]") -> str:
    return token if isinstance(token, str) else token["content"]
