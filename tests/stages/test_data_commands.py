"""`orch data` as it is typed: answers, exit codes, files, and what is said to mistakes."""

import io
import shutil
from pathlib import Path

import pytest
from PIL import Image

from orchestrator.artifacts import Shards
from orchestrator.data.writer import ShardWriter
from stages.samples import Region, Sample
from tests.command_line import Orch


@pytest.fixture
def orch(tmp_path: Path) -> Orch:
    return Orch(tmp_path)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Writes five samples of our schema into two tars."""
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), (90, 120, 200)).save(buffer, format="JPEG")
    folder = tmp_path / "shards"
    with ShardWriter(folder, samples_per_shard=3) as writer:
        for number in range(5):
            region = Region(box_xyxy_px=(1, 2, 30, 30), mask=None, phrase="a dog")
            one = Sample(key=f"k{number}", image=buffer.getvalue(), width_px=60, height_px=40, regions=(region,))
            writer.write(one.key, one.to_members())
        facts = writer.close() | {
            "schema": 1, "source": "coco", "licence": "CC BY 4.0", "counts": {"images": 5},
            "skipped": {"total": 2, "reasons": {"no image": 2}},
        }  # fmt: skip
    Shards(folder).commit("f", facts=facts, sha256=writer.sha256)
    return folder


def plain_copy(shards: Path, folder: Path) -> Path:
    """Copies the tars only, as somebody else would have them."""
    folder.mkdir()
    for tar in shards.glob("*.tar"):
        shutil.copy(tar, folder)
    return folder


def damage_one(shards: Path) -> None:
    tar = shards / "shard-000001.tar"
    content = bytearray(tar.read_bytes())
    content[700] ^= 0xFF
    tar.write_bytes(content)


def test_inspect_tells_what_a_set_holds(orch: Orch, shards: Path) -> None:
    text = orch("data", "inspect", shards).stdout
    document = orch.json("data", "inspect", shards)

    for words in ("5 samples in 2 tars", "source: coco", "licence: CC BY 4.0", "schema: 1", "skipped: 2: 2 no image"):
        assert words in text
    assert {
        "path", "kind", "samples", "shards", "bytes", "members", "schema", "source", "licence", "counts", "skipped",
        "largest", "smallest", "damage", "faults",
    } <= document.keys()  # fmt: skip
    assert document["members"]["json"]["samples"] == 5


def test_verify_answers_0_for_a_whole_set(orch: Orch, shards: Path) -> None:
    shown = orch("data", "verify", shards)

    assert "5 samples in 2 tars" in shown.stdout
    assert "read and decoded: all as written" in shown.stdout
    assert shown.stderr == ""


def test_verify_answers_1_and_names_what_is_wrong(orch: Orch, shards: Path) -> None:
    damage_one(shards)

    text = orch("data", "verify", shards, code=1).stdout
    document = orch.json("data", "verify", shards, "--processes", 1, code=1)

    assert "shard-000001.tar  k3  member 'jpg'" in text
    assert document["valid"] is False
    assert ("shard-000001.tar", "k3") in {(fault["tar"], fault["key"]) for fault in document["faults"]}
    assert (document["samples"], document["decoded"]) == (4, True)


def test_foreign_tars_of_our_schema_are_decoded_too(orch: Orch, shards: Path, tmp_path: Path) -> None:
    document = orch.json("data", "verify", plain_copy(shards, tmp_path / "plain"))

    assert (document["valid"], document["decoded"], document["samples"]) == (True, True, 5)


def test_peek_writes_a_picture(orch: Orch, shards: Path, tmp_path: Path) -> None:
    text = orch("data", "peek", shards, "--samples", 2, "--seed", 5, "--out", tmp_path / "look.png").stdout
    document = orch.json("data", "peek", shards, "--samples", 2, "--seed", 5, "--out", tmp_path / "again.png")

    assert (tmp_path / "look.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    with Image.open(tmp_path / "look.png") as picture:
        assert picture.width > 300
    assert len(document["samples"]) == 2
    assert all(one["key"] in text for one in document["samples"])


def test_index_makes_foreign_tars_a_set(orch: Orch, shards: Path, tmp_path: Path) -> None:
    plain = plain_copy(shards, tmp_path / "plain")
    before = {tar.name: tar.read_bytes() for tar in plain.iterdir()}

    text = orch("data", "index", plain).stdout
    document = orch.json("data", "index", plain, "--out", tmp_path / "elsewhere")

    assert "5 samples in 2 tars" in text
    assert document["samples"] == 5
    assert {name: (plain / name).read_bytes() for name in before} == before
    for folder in (plain, tmp_path / "elsewhere"):
        assert orch.json("data", "inspect", folder)["kind"] == "shards"
        assert orch.json("data", "verify", folder)["decoded"] is True


def test_inspect_may_index_foreign_tars_first(orch: Orch, shards: Path, tmp_path: Path) -> None:
    plain = plain_copy(shards, tmp_path / "plain")

    document = orch.json("data", "inspect", plain, "--index")

    assert document["samples"] == 5
    assert (plain / "manifest.json").is_file()


def test_an_output_of_a_run_is_found_by_name(orch: Orch) -> None:
    orch("launch", orch.recipe({"first": {"stage": "count"}}))

    for words in ("toy:first.value", "toy/first/value", "runs/toy/first/value"):
        assert "holds report, not shards" in orch("data", "inspect", words, code=2).stderr
    assert "it has value" in orch("data", "inspect", "toy:first.shards", code=2).stderr
    assert "no run 'nothing'" in orch("data", "inspect", "nothing:first.shards", code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect", "nowhere"], "allowed: a path, RUN/STAGE/OUTPUT, RUN:STAGE.OUTPUT"),
        (["verify", "/no/such/folder"], "/no/such/folder does not exist"),
        (["verify", "shards", "--processes", "0"], "processes must be 1 or more, not 0"),
        (["peek", "shards", "--samples", "0"], "--samples must be 1 or more, not 0"),
        (["peek", "shards", "--out", "no/such/folder/look.png"], "in a folder that exists"),
        (["index", "nowhere"], "nowhere does not exist"),
        (["index", "shards"], "holds an artifact of ours already"),
        (["inspect"], "PATH"),
    ],
)
def test_mistakes_are_told_in_words(orch: Orch, shards: Path, arguments: list[str], words: str) -> None:
    assert words in orch("data", *arguments, code=2).stderr
