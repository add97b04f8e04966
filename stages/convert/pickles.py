"""Reads pickles of plain data: lists, tuples, dictionaries, texts, numbers. No other instruction of a pickle is known.

A pickle is a program. Of its instructions this reader has those that build plain data, and none of those that name,
call or change anything else: what is not there cannot run, however the file is put together.
"""

import io
import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError
from stages.convert.raw import MALFORMED

_PLAIN = (
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP",
    "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS",
    "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET",
)  # fmt: skip
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8")  # become texts: they are what Python 2 called a string

_CODES = {opcode.name: ord(opcode.code) for opcode in pickletools.opcodes}
_NAMES = {code: name for name, code in _CODES.items()}

_Step = Callable[[Any], None]


class _Steps(dict[int, _Step]):
    """The instructions that are known, by their codes."""

    def __missing__(self, code: int) -> _Step:
        what = f"the instruction {_NAMES[code]}" if code in _NAMES else f"the byte {code}"
        raise pickle.UnpicklingError(f"it holds {what}, which plain data does not need; nothing of it was run")


def _then_text(step: _Step) -> _Step:
    def run(unpickler: Any) -> None:
        step(unpickler)
        unpickler.stack[-1] = _text(unpickler.stack[-1])

    return run


def _with_plain_keys(step: _Step, keys: slice) -> _Step:
    """Refuses keys that are no text or number: tuples of the same tuples, again and again, take for ever to hash."""

    def run(unpickler: Any) -> None:
        if not all(isinstance(key, str | int) for key in unpickler.stack[keys]):
            raise pickle.UnpicklingError("a key of a dictionary is neither a text nor a number")
        step(unpickler)

    return run


def _steps() -> _Steps:
    everything: Mapping[int, _Step] = pickle._Unpickler.dispatch  # noqa: SLF001
    steps = {_CODES[name]: everything[_CODES[name]] for name in _PLAIN}
    steps |= {_CODES[name]: _then_text(everything[_CODES[name]]) for name in _BYTES}
    # where the keys are when the instruction comes: above the mark, in turn with their values, or below the value
    places = {"DICT": slice(0, None, 2), "SETITEMS": slice(0, None, 2), "SETITEM": slice(-2, -1)}
    return _Steps(steps | {_CODES[name]: _with_plain_keys(steps[_CODES[name]], at) for name, at in places.items()})


class _PlainUnpickler(pickle._Unpickler):  # noqa: SLF001 - the one in C has no table that could be cut down
    """Python's own reader with fewer instructions."""

    dispatch = _steps()

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}; nothing of it was run")

    def _decode_string(self, value: bytes) -> str:
        return _text(value)


def read_pickle(path: Path) -> Any:
    """Reads a pickle of any protocol, written by Python 2 or 3; refuses one that holds more than plain data."""
    try:
        return _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except (pickle.UnpicklingError, EOFError, AssertionError, MemoryError, struct.error, *MALFORMED) as error:
        raise InputError(f"{path} is no pickle of plain data: {str(error) or type(error).__name__}") from None


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")
