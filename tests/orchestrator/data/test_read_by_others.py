"""What we write is for everybody: webdataset, Megatron-Energon and Hugging Face datasets read it, byte for byte."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from orchestrator.artifacts import Shards
from orchestrator.data.writer import ShardWriter
from stages.samples import Region, Rle, Sample, TimedPoint, Turn
from tests.stages.conversion import RAW, convert

READ_WITH = Path(__file__).with_name("read_with.py")
BIN = Path(sys.executable).parent

Samples = Mapping[str, Mapping[str, bytes]]


def picture(number: int, format_: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24 + number, 16), (9 * number % 256, 90, 200)).save(buffer, format=format_)
    return buffer.getvalue()


def grounded(number: int) -> Sample:
    return Sample(
        key=f"part-{number:08d}-größe {number}", image=picture(number), width_px=24 + number, height_px=16,
        caption="ein großer Hund: 犬",
        regions=(
            Region(
                box_xyxy_px=(0, 0, 8.5, 9), mask=Rle(height_px=16, width_px=24 + number, counts="0" * number),
                phrase="ein große", spans=((0, 8),), score=0.5, source="me",
            ),
        ),
        points=(TimedPoint(word="ein", x_unit=0.1, y_unit=0.2, time_s=0.3),),
        turns=(Turn(question="What?", answer="A dog."),),
    )  # fmt: skip


def bare_sample(key: str) -> Sample:
    return Sample(key=key, image=picture(0), width_px=24, height_px=16)


def write(folder: Path, samples: Samples, *, samples_per_shard: int = 5) -> Path:
    with ShardWriter(folder, samples_per_shard=samples_per_shard) as writer:
        for key, members in samples.items():
            writer.write(key, members)
        facts = writer.close()
    Shards(folder).commit("fingerprint", facts=facts, sha256=writer.sha256)
    return folder


def read_with(reader: str, folder: Path) -> Any:
    return json.loads(succeeded([sys.executable, str(READ_WITH), reader, str(folder)], folder.parent).stdout)


def succeeded(command: list[str], home: Path) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"HOME": str(home), "XDG_CACHE_HOME": str(home), "HF_HOME": str(home / "hf")}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def prepare(folder: Path) -> str:
    """Makes the folder one of Energon's, as its manual says for raw samples."""
    options = ["--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset", "--num-workers", "1"]
    return succeeded([str(BIN / "energon"), "prepare", str(folder), *options, "--no-progress"], folder.parent).stdout


def digests(samples: Samples, *, decoded: bool = False) -> dict[str, dict[str, str]]:
    """Names what was written; `decoded`: JSON is compared by its meaning."""
    digest = _read_with_module().digest
    return {
        key: {
            name: digest(json.loads(content) if decoded and name == "json" else content)
            for name, content in members.items()
        }
        for key, members in samples.items()
    }


def _read_with_module() -> Any:
    import importlib.util

    spec = importlib.util.spec_from_file_location("read_with", READ_WITH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ODD: Samples = {
    "a": {"jpg": picture(1), "json": b"{}"},
    "zwölf Äpfel": {"jpg": picture(2), "json": b'{"a":[1]}'},
    "k" * 255: {"jpg": picture(3), "json": b"{}"},  # too long for a plain header
    "-dash, {brace} 'quote' %20": {"jpg": picture(4), "json": b"{}"},
    "empty": {"jpg": b"", "json": b"{}"},
    "parts": {"jpg": picture(5), "seg.png": picture(5, "PNG"), "json": b"{}", "txt": b"x" * 10_000},
}
OURS: Samples = {sample.key: sample.to_members() for sample in map(grounded, range(12))}


@pytest.mark.parametrize("samples", [ODD, OURS], ids=["odd", "ours"])
def test_webdataset_reads_every_tar_we_write_with_equal_content(tmp_path: Path, samples: Samples) -> None:
    folder = write(tmp_path / "set", samples)

    assert read_with("webdataset", folder) == digests(samples)


@pytest.mark.parametrize("samples", [ODD, OURS], ids=["odd", "ours"])
def test_energon_prepares_and_reads_every_tar_we_write_with_equal_content(tmp_path: Path, samples: Samples) -> None:
    folder = write(tmp_path / "set", samples)
    before = {path: path.read_bytes() for path in folder.iterdir()}

    prepare(folder)

    info = json.loads((folder / ".nv-meta" / ".info.json").read_text(encoding="utf-8"))
    assert sum(info["shard_counts"].values()) == len(samples)
    assert read_with("energon", folder) == digests(samples)
    assert {path: path.read_bytes() for path in before} == before  # both can use the same folder


def test_hugging_face_datasets_loads_every_tar_we_write_with_equal_content(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", OURS)

    assert read_with("datasets", folder) == digests(OURS, decoded=True)


def test_hugging_face_datasets_streams_sets_whose_first_samples_say_little(tmp_path: Path) -> None:
    # not streamed, it takes the types of all samples from the first ones, and needs `features=` for such a set
    bare = {f"bare-{number}": bare_sample(f"bare-{number}").to_members() for number in range(8)}
    folder = write(tmp_path / "set", bare | OURS, samples_per_shard=50)

    assert read_with("datasets, streaming", folder) == digests(bare | OURS, decoded=True)


@pytest.mark.parametrize("reader", ["webdataset", "energon", "datasets"])
def test_others_read_a_converted_data_set(tmp_path: Path, reader: str) -> None:
    converted = convert(tmp_path, RAW, source="pix2cap_coco")
    samples = {sample.key: sample.to_members() for sample in converted.samples()}
    plain = tmp_path / "plain"
    plain.mkdir()
    for tar in converted.directory.glob("*.tar"):
        shutil.copy(tar, plain)
    if reader == "energon":
        prepare(plain)

    assert samples
    assert read_with(reader, plain) == digests(samples, decoded=reader == "datasets")


KEYS = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="./\\"), min_size=1, max_size=60)
EXTENSIONS = st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,8}", fullmatch=True)
MEMBERS = st.dictionaries(EXTENSIONS, st.binary(max_size=1500), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(samples=st.dictionaries(KEYS.filter(lambda key: not key.startswith("__")), MEMBERS, min_size=1, max_size=8))
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files to the garbage collector
def test_whatever_the_writer_accepts_webdataset_delivers(tmp_path: Path, samples: Samples) -> None:
    folder = write(tmp_path / "set", samples, samples_per_shard=3)

    tars = [str(tar) for tar in sorted(folder.glob("*.tar"))]
    delivered = {
        sample["__key__"]: {name: content for name, content in sample.items() if not name.startswith("__")}
        for sample in webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)
    }
    assert delivered == samples
