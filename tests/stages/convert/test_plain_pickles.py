"""Pickles: plain data of any protocol and any Python is read; whatever else a pickle could do is not done."""

import collections
import os
import pickle
import pickletools
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import InputError
from stages.convert.pickles import read_pickle
from tests.stages.conversion import COMMITTED

PLAIN = [
    {
        "ref_id": 7,
        "big": 2**70,
        "score": 0.5,
        "none": None,
        "yes": True,
        "no": False,
        "sentences": [{"sent": "ein Pferd 🐎"}],
    },
    ("a", (), ("b",), ("c", "d"), ("e", "f", "g"), ("h", "i", "j", "k")),
    {},
    [],
    -1,
    300,
    70_000,
    "x" * 300,
    "long" * 20_000,
]


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "refs(unc).p"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_of_every_protocol_comes_back(protocol: int, tmp_path: Path) -> None:
    assert read_pickle(written(tmp_path, pickle.dumps(PLAIN, protocol=protocol))) == PLAIN


def test_what_stands_twice_in_a_pickle_is_read_twice(tmp_path: Path) -> None:
    shared = {"sent": "the same"}

    assert read_pickle(written(tmp_path, pickle.dumps([shared, shared], protocol=2))) == [shared, shared]


@pytest.mark.parametrize("name", ["refcoco/refs(unc).p", "refcoco+/refs(unc).p", "refcocog/refs(umd).p"])
def test_the_pickles_of_the_pack_are_what_pythons_own_reader_makes_of_them(name: str) -> None:
    path = COMMITTED / name

    assert read_pickle(path) == pickle.loads(path.read_bytes(), encoding="utf-8")  # noqa: S301 - our own file


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"S'caf\\xc3\\xa9'\n.", "café"),  # Python 2's str, UTF-8
        (b"S'caf\\xe9'\n.", "café"),  # the same, Latin-1
        (b"\x80\x02U\x05caf\xc3\xa9q\x00.", "café"),
        (b"\x80\x02T\x04\x00\x00\x00caf\xe9.", "café"),
        (b"Vcaf\\u00e9\n.", "café"),
        (b"I01\n.", True),
        (b"L12L\n.", 12),
    ],
)
def test_strings_of_python_2_are_texts(content: bytes, expected: Any, tmp_path: Path) -> None:
    assert read_pickle(written(tmp_path, content)) == expected


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_bytes_of_python_3_are_texts(protocol: int, tmp_path: Path) -> None:
    plain = [{b"sent": "café".encode(), b"long": b"x" * 70_000}]

    assert read_pickle(written(tmp_path, pickle.dumps(plain, protocol=protocol))) == [
        {"sent": "café", "long": "x" * 70_000}
    ]


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_runs_nothing(protocol: int, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    content = pickle.dumps([{"ref_id": 1, "sentences": Evil(proof)}], protocol=protocol)

    with pytest.raises(
        InputError, match=r"refs\(unc\)\.p is no pickle of plain data: it holds the instruction \w*GLOBAL"
    ):
        read_pickle(written(tmp_path, content))
    assert not proof.exists()
    pickle.loads(content)  # noqa: S301 - our own: it would have run
    assert proof.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'touch {proof}'\ntR.",  # GLOBAL, REDUCE
        b"(S'touch {proof}'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch {proof}'\no.",  # OBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0dtouch {proof}\x85R.",  # STACK_GLOBAL
        b"\x80\x02(S'os'\nS'system'\n\x93.",
        b"Pevil\n.",
        b"S'evil'\nQ.",  # PERSID, BINPERSID
        b"\x80\x02\x82\x01.",
        b"\x80\x02\x83\x01\x00.",
        b"\x80\x02\x84\x01\x00\x00\x00.",  # EXT1, 2, 4
        b"]}b.",
        b"]])R.",
        b"]})\x92.",
        b"])\x81.",  # BUILD, REDUCE, NEWOBJ_EX, NEWOBJ
        b"\x80\x05\x97.",
        b"\x80\x05\x97\x98.",  # NEXT_BUFFER, READONLY_BUFFER
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",  # BYTEARRAY8: would take all memory
        b"\xff.",
    ],
)
def test_instructions_that_are_not_of_plain_data_are_refused(content: bytes, tmp_path: Path) -> None:
    proof = tmp_path / "proof"

    with pytest.raises(InputError, match="which plain data does not need; nothing of it was run"):
        read_pickle(written(tmp_path, content.replace(b"{proof}", str(proof).encode())))
    assert not proof.exists()


def test_of_pythons_instructions_exactly_these_are_refused(tmp_path: Path) -> None:
    refused = set()
    for opcode in pickletools.opcodes:
        with pytest.raises(InputError) as caught:  # alone, none of them is a whole pickle
            read_pickle(written(tmp_path, opcode.code.encode("latin-1")))
        refused |= {opcode.name} if "nothing of it was run" in str(caught.value) else set()

    assert refused == {
        "GLOBAL",
        "STACK_GLOBAL",
        "INST",
        "OBJ",
        "NEWOBJ",
        "NEWOBJ_EX",
        "REDUCE",
        "BUILD",
        "PERSID",
        "BINPERSID",
        "EXT1",
        "EXT2",
        "EXT4",
        "NEXT_BUFFER",
        "READONLY_BUFFER",
        "BYTEARRAY8",
        "EMPTY_SET",
        "ADDITEMS",
        "FROZENSET",
    }


@pytest.mark.parametrize(
    "value", [collections.OrderedDict(a=1), {1, 2}, complex(1, 2), Path("x"), slice(1), bytearray(b"x")], ids=str
)
def test_objects_that_are_no_plain_data_are_refused_with_the_file(value: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"refs\(unc\)\.p is no pickle of plain data"):
        read_pickle(written(tmp_path, pickle.dumps([value], protocol=2 if not isinstance(value, bytearray) else 5)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"(",
        b".",
        b"a.",
        b"]a.",
        b"I1\n",
        b"Ix\n.",
        b"S'open\n.",
        b"g7\n.",
        b"\x80\x09.",
        b"}]Ns.",
        b"(NNNd.",
        b"\x80\x02X\xff\xff\xff\xffabc.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"\x80\x04\x95\x05",
        b"\x80\x02r\xff\xff\xff\x7f.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"I" + b"9" * 5000 + b"\n.",
        struct.pack("<BBBI", 0x80, 2, 0x8B, 0x80000000),
        b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
    ],
)
def test_damaged_pickles_are_named_and_not_followed_by_a_traceback(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"refs\(unc\)\.p is no pickle of plain data"):
        read_pickle(written(tmp_path, content))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("setting", [b"}h\x00Ns.", b"}(h\x00Nu.", b"(h\x00Nd."])
def test_a_key_that_takes_for_ever_to_hash_is_refused(setting: bytes, tmp_path: Path) -> None:
    twice = b"2\x86"  # DUP, TUPLE2: a tuple of the same thing twice, 2^60 leaves after sixty times

    with pytest.raises(InputError, match="a key of a dictionary is neither a text nor a number"):
        read_pickle(written(tmp_path, b"\x80\x02N" + twice * 60 + b"q\x00" + setting))


def test_a_pickle_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = pickle.dumps(PLAIN[:3], protocol=0)

    for end in range(0, len(whole) - 1, 7):
        with pytest.raises(InputError):
            read_pickle(written(tmp_path, whole[:end]))


def test_the_reader_needs_no_memory_for_what_a_pickle_only_claims(tmp_path: Path) -> None:
    # one place of the memo, numbered two billion: Python's reader in C makes room for all that come before it
    path = written(tmp_path, b"\x80\x02]r\xff\xff\xff\x7f.")

    tracemalloc.start()
    assert read_pickle(path) == []
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak_bytes < 1 << 20
