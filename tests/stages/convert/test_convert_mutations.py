"""Annotation files with anything in any place: what can be kept is kept, the rest is named, nothing breaks."""

import json
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from orchestrator.errors import InputError
from stages.convert.chunks import _made
from stages.convert.pickles import read_pickle
from stages.convert.raw import Notes, RawPart
from stages.convert.sources import SOURCES
from stages.convert.stage import _attempts
from stages.samples import Sample
from tests.stages.conversion import COMMITTED
from tests.stages.long_text_files import DCI_FILE, write_dci, write_docci, write_sharegpt4v

FILES = {
    "coco/annotations/captions_val2017.json": ("coco", "val", "captions_val2017"),
    "coco/annotations/instances_val2017.json": ("coco", "val", "instances_val2017"),
    "coco/annotations/panoptic_val2017.json": ("coco", "val", "panoptic_val2017"),
    "pix2cap_coco/pix2cap_coco_train.json": ("pix2cap_coco", "train", None),
    "refcoco/refs(unc).p": ("refcoco", "train", None),
    "refcoco/instances.json": ("refcoco", "train", None),
    "visual_genome/region_descriptions.json": ("visual_genome", "train", "region_descriptions"),
    "visual_genome/train.json": ("visual_genome", "train", "train"),
    "localized_narratives/coco_val_localized_narratives.jsonl": ("localized_narratives", "val", None),
    "grit/grit-20m/coyo_0_snappy.parquet": ("grit", "train", None),
    "grand/annotations/sa_142238.json": ("grand", "train", None),
    "grandf/annotations/train/GranDf_HA_GCG_train.json": ("grand_f", "train", "GranDf_HA_GCG_train"),
    "grandf/annotations/train/RefCOCOg_GCG_train.json": ("grand_f", "train", "RefCOCOg_GCG_train"),
    "grandf/annotations/train/flickr_mergedGT_GCG_train.json": ("grand_f", "train", "flickr_mergedGT_GCG_train"),
    "grandf/annotations/val_test/val_gcg_coco_mask_gt.json": ("grand_f", "val", "val_gcg_coco"),
    "grandf/annotations/val_test/val_gcg_coco_caption_gt.json": ("grand_f", "val", "val_gcg_coco"),
    "llava/blip_laion_cc_sbu_558k.json": ("llava", "train", None),
    "longgrit/longgrit.jsonl": ("longgrit", "train", None),
    "semantic/ade20k_classes.json": ("ade20k", "train", None),
    "docci/docci_descriptions.jsonlines": ("docci", "test", None),
    "sharegpt4v/data/share-captioner_coco_lcs_sam_1246k_1107.json": ("sharegpt4v", "test", None),
    DCI_FILE: ("dci", "all", None),
    "densely_captioned_images/splits.json": ("dci", "test", None),
}
HOSTILE = [
    None,
    True,
    -1,
    0,
    2**64,
    10**400,
    0.5,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    " ",
    "half \ud83d",
    "../../etc/passwd",
    "/dev/zero",
    "a\0b",
    "x" * 5000,
    [],
    [[]],
    [None],
    {},
    {"a": {}},
    [1, 2],
    [float("nan")] * 4,
    {"size": [9, 9], "counts": "zz"},
]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the real data, and made files beside it, that are broken one after the other."""
    root = Path(shutil.copytree(COMMITTED, tmp_path_factory.mktemp("mutations") / "raw_data"))
    write_docci(root)
    write_sharegpt4v(root, 3)
    write_dci(root)
    return root


@pytest.mark.parametrize("name", FILES)
def test_anything_anywhere_in_a_file_is_survived(name: str, raw: Path) -> None:
    survive(raw, name, range(12))


@pytest.mark.long
@pytest.mark.parametrize("name", FILES)
def test_anything_anywhere_in_a_file_is_survived_many_times(name: str, raw: Path) -> None:
    survive(raw, name, range(12, 500))


def survive(raw: Path, name: str, seeds: range) -> None:
    """Breaks one or two places of the file for each seed, and converts."""
    original, content = plain_of(raw / name), (raw / name).read_bytes()
    kept, unnamed = 0, list[str]()
    for seed in seeds:
        chance = random.Random(f"{name} {seed}")
        mutant = json.loads(json.dumps(original))
        for _ in range(chance.randint(1, 2)):
            mutant = mutated(mutant, chance)
        write(raw / name, mutant)
        try:
            kept += sum(1 for _ in samples(raw, *FILES[name]))
        except InputError as error:  # a file that cannot be read as a whole; any other exception fails the test
            unnamed += [] if str(raw) in str(error) else [f"seed {seed}: {error}"]
        finally:
            (raw / name).write_bytes(content)

    assert unnamed == []
    assert kept > 0


def samples(raw: Path, source: str, split: str, subset: str | None) -> Iterator[Sample]:
    """Does what the stage does with every record, in this process."""
    notes = Notes()
    for _, attempt in _attempts([RawPart(raw, part) for part in SOURCES[source].chosen(split, subset)], notes):
        for made in notes.judged(attempt.name, lambda attempt=attempt: _made(attempt)) or ():
            yield Sample.from_members(made.found.sample.key, made.members)
    json.dumps(notes.skipped, ensure_ascii=False).encode()
    assert all(note["record"] and note["reason"] for note in notes.skipped)


def mutated(plain: Any, chance: random.Random) -> Any:
    """Replaces, removes or repeats one value, as deep as chance leads."""
    if isinstance(plain, dict | list) and plain and chance.random() < 0.9:
        place = chance.choice(list(plain)) if isinstance(plain, dict) else chance.randrange(len(plain))
        if chance.random() < 0.75:
            plain[place] = mutated(plain[place], chance)
        elif chance.random() < 0.5 and isinstance(plain, list):
            plain.append(plain[place])
        else:
            del plain[place]
        return plain
    return chance.choice(HOSTILE)


def plain_of(path: Path) -> Any:
    readers: dict[str, Callable[[Path], Any]] = {
        ".json": lambda path: json.loads(path.read_text()),
        ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
        ".jsonlines": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
        ".p": read_pickle,
        ".parquet": lambda path: parquet.read_table(path).to_pylist(),
    }
    return readers[path.suffix](path)


def write(path: Path, plain: Any) -> None:
    if path.suffix == ".parquet":
        try:
            parquet.write_table(pa.Table.from_pylist(plain), path)
        except (pa.ArrowException, LookupError, TypeError, ValueError, AttributeError, OverflowError):
            path.write_bytes(b"what no parquet file can hold")
    elif path.suffix == ".p":
        path.write_bytes(pickle.dumps(plain, protocol=2))
    elif path.suffix in {".jsonl", ".jsonlines"} and isinstance(plain, list):
        path.write_text("".join(json.dumps(line) + "\n" for line in plain))
    else:
        path.write_text(json.dumps(plain))
