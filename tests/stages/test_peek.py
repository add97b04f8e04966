"""What a look at samples shows: everything in them, in matching colours, also where a sample is broken or foreign."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.artifacts import Shards
from orchestrator.data.collection import open_collection
from orchestrator.data.writer import ShardWriter
from orchestrator.errors import InputError
from stages.peek import draw_sample, peek, sheet
from stages.pictures import PALETTE
from stages.samples import Caption, Grounding, Region, Sample, TimedPoint, Turn
from stages.vision import rle_from_mask

WIDTH, HEIGHT = 60, 40


def picture(format_: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 128)).save(buffer, format=format_)
    return buffer.getvalue()


def region(left: int, *, masked: bool = True, phrase: str = "a dog", span: tuple[int, int] | None = None) -> Region:
    mask_HW = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    mask_HW[5:30, left : left + 10] = True
    return Region(
        box_xyxy_px=(left, 5, left + 10, 30), mask=rle_from_mask(mask_HW) if masked else None, phrase=phrase,
        spans=(span,) if span else (),
    )  # fmt: skip


def sample(key: str = "k", *regions: Region, caption: str = "") -> Sample:
    return Sample(key=key, image=picture(), width_px=WIDTH, height_px=HEIGHT, caption=caption, regions=regions)


def write(folder: Path, samples: Mapping[str, Mapping[str, bytes]]) -> Path:
    with ShardWriter(folder, samples_per_shard=4) as writer:
        for key, members in samples.items():
            writer.write(key, members)
        facts = writer.close()
    Shards(folder).commit("f", facts=facts, sha256=writer.sha256)
    return folder


def count(shown: Image.Image, colour: str) -> int:
    rgb = tuple(int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return int((np.asarray(shown) == rgb).all(axis=-1).sum())


def drawn(one: Sample) -> Image.Image:
    return draw_sample(one.key, one.to_members())


def test_regions_and_their_words_have_the_same_colour() -> None:
    one = sample("k", region(2, span=(0, 5)), region(30, masked=False, phrase="a cat"), caption="a dog runs")

    shown = drawn(one)

    top, below = shown.crop((0, 0, shown.width, 200)), shown.crop((0, 290, *shown.size))
    for colour in PALETTE[:2]:
        assert count(top, colour) > 50
        assert count(below, colour) > 300


def test_regions_that_share_their_words_share_a_colour() -> None:
    together = drawn(sample("k", region(2, span=(0, 4)), region(30, span=(0, 4)), caption="dogs run"))

    assert count(together, PALETTE[0]) > 0
    assert count(together, PALETTE[1]) == 0


def test_a_crowded_sample_shows_its_largest_regions_and_counts_the_others() -> None:
    crowded = drawn(sample("k", *(region(left) for left in range(40))))
    few = drawn(sample("k", *(region(left) for left in range(12))))

    assert few.height < crowded.height < few.height + 60


def test_captions_turns_and_traces_are_shown_too() -> None:
    bare = sample("k", region(2))
    full = Sample(
        key="k", image=picture(), width_px=WIDTH, height_px=HEIGHT, regions=bare.regions,
        turns=(Turn(question="What?", answer="A dog."),), points=tuple(
            TimedPoint(word="a", x_unit=x / 10, y_unit=0.5, time_s=float(x)) for x in range(10)
        ),
        more_captions=(Caption(text="a brown dog"), Caption(text="one dog", groundings=(
            Grounding(span=(4, 7), regions=(0,)),
        ))),
    )  # fmt: skip

    shown = drawn(full)

    assert shown.height > drawn(bare).height  # the texts
    assert shown.width > 1.8 * drawn(bare).width  # a panel for the other grounded caption
    assert count(shown.crop((shown.width // 2, 0, *shown.size)), PALETTE[0]) > 50
    assert not np.array_equal(np.asarray(shown)[40:200, 20:300], np.asarray(drawn(bare))[40:200, 20:300])  # the trace


def test_a_foreign_sample_is_shown_as_it_is() -> None:
    for members in (
        {"png": picture("PNG"), "txt": b"a dog"},
        {"jpg": picture(), "json": b"[1, 2]"},
        {"cls": b"3"},
        {"json": b"{", "npy": b"\x93NUMPY"},
    ):
        assert draw_sample("k", members).width > 100


def test_a_seed_chooses_the_samples(tmp_path: Path) -> None:
    path = write(tmp_path / "set", {f"k{n}": sample(f"k{n}").to_members() for n in range(30)})

    chosen = [[look.key for look in peek(open_collection(path), 5, seed)] for seed in (1, 1, 2)]

    assert len(set(chosen[0])) == 5
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_small_set_is_shown_whole_with_the_place_of_each_sample(tmp_path: Path) -> None:
    path = write(tmp_path / "set", {f"k{n}": sample(f"k{n}").to_members() for n in range(6)})

    looks = peek(open_collection(path), 100, 0)

    assert [(look.tar, look.number, look.key) for look in looks][3:5] == [
        ("shard-000000.tar", 3, "k3"),
        ("shard-000001.tar", 0, "k4"),
    ]
    assert sheet(looks).height >= 2 * looks[0].picture.height


def test_a_broken_sample_is_shown_as_broken(tmp_path: Path) -> None:
    good = sample("good").to_members()
    path = write(tmp_path / "set", {"good": good, "bad": good | {"json": b'{"schema": 1}'}})

    looks = peek(open_collection(path), 2, 0)

    assert [look.key for look in looks] == ["good", "bad"]
    assert sheet(looks).width > 0


def test_a_lost_tar_is_shown_as_broken(tmp_path: Path) -> None:
    path = write(tmp_path / "set", {f"k{n}": sample(f"k{n}").to_members() for n in range(6)})
    (path / "shard-000000.tar").unlink()

    assert [look.key for look in peek(open_collection(path), 6, 0)] == ["", "", "", "", "k4", "k5"]


def test_no_samples_are_refused_in_words(tmp_path: Path) -> None:
    path = write(tmp_path / "set", {"k": sample("k").to_members()})

    with pytest.raises(InputError, match="--samples must be 1 or more, not 0"):
        peek(open_collection(path), 0, 0)
