"""The tars that everything is measured on: photographs of noise and stripes, and sets that are larger than they are."""

import io
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from orchestrator.artifacts import Shards, write_json
from orchestrator.data.index import index_path
from orchestrator.data.writer import ShardWriter

SIDE_PX = 256
_DIFFERENT_IMAGES = 200
_File = dict[str, str | int]


def write_set(folder: Path, samples: int, *, samples_per_shard: int = 1000) -> Path:
    """Writes shards of samples with a JPEG of 15 to 35 kB and a short JSON."""
    images = [_jpeg(number) for number in range(min(samples, _DIFFERENT_IMAGES))]
    with ShardWriter(folder, samples_per_shard=samples_per_shard) as writer:
        for number in range(samples):
            text = json.dumps({"caption": "a red square on a green ground", "number": number}).encode()
            writer.write(f"{number:09d}", {"jpg": images[number % len(images)], "json": text})
        facts = writer.close()
    Shards(folder).commit("benchmark", facts=facts, sha256=writer.sha256)
    return folder


def write_large_set(folder: Path, samples: int, one: Path) -> Path:
    """Makes a set of many samples out of one tar under many names: real files, real reads, few bytes."""
    folder.mkdir()
    per_tar = int(Shards(one).facts()["samples"])
    tar = next(one.glob("*.tar"))
    files: list[_File] = []
    for number in range(samples // per_tar):
        name = folder / f"shard-{number:06d}.tar"
        os.link(tar, name)
        os.link(index_path(tar), index_path(name))
        files.append({"path": name.name, "size_bytes": tar.stat().st_size, "sha256": "0" * 64})
    _commit(folder, files, [per_tar] * len(files))
    return folder


def write_manifest_only(folder: Path, samples: int, tars: int) -> Path:
    """Makes the manifest of a set that is not there, to see what opening it costs."""
    folder.mkdir()
    files: list[_File] = [{"path": f"shard-{n:06d}.tar", "size_bytes": 10**9, "sha256": "0" * 64} for n in range(tars)]
    files += [{"path": f"shard-{n:06d}.idx", "size_bytes": 10**6, "sha256": "0" * 64} for n in range(tars)]
    _commit(folder, files, [samples // tars] * tars)
    return folder


def _commit(folder: Path, files: list[_File], counts: list[int]) -> None:
    facts = {"samples": sum(counts), "shards": len(counts), "samples_per_tar": counts}
    manifest = {"kind": Shards.kind, "fingerprint": "benchmark", "digest": "", "files": files, "facts": facts}
    write_json(folder / "manifest.json", manifest)


def _jpeg(number: int) -> bytes:
    """Draws a picture whose JPEG has the size of a photograph's of this resolution."""
    noise = np.random.default_rng(number)
    coarse = noise.integers(0, 255, (16, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
    grain = Image.fromarray(noise.integers(0, 255, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8))
    picture = Image.blend(picture, grain.filter(ImageFilter.GaussianBlur(0.8)), 0.15 + 0.35 * noise.random())
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()
