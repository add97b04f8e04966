"""What a path holds is found out by what lies there; every layout gives the same tensors."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from orchestrator.errors import DamagedArtifact, InputError
from orchestrator.training.foreign.opening import open_source
from orchestrator.training.foreign.source import Held, Joined

TENSORS = {"x.weight": torch.arange(6.0).view(2, 3), "y": torch.tensor(7, dtype=torch.int64), "z": torch.ones(4).half()}


def _split(folder: Path, kind: str) -> None:
    """Writes two files and an index."""
    stem = "model" if kind == "safetensors" else "pytorch_model"
    placed: dict[str, str] = {}
    for number, names in enumerate((["x.weight"], ["y", "z"]), 1):
        file = f"{stem}-{number:05d}-of-00002.{kind}"
        tensors = {name: TENSORS[name] for name in names}
        if kind == "safetensors":
            save_file(tensors, folder / file)
        else:
            torch.save(tensors, folder / file)
        placed |= dict.fromkeys(names, file)
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))


@pytest.mark.parametrize("layout", ["model.safetensors", "pytorch_model.bin", "safetensors", "bin"])
def test_folders_of_hugging_face_are_read_whole_or_sharded(tmp_path: Path, layout: str) -> None:
    if layout == "model.safetensors":
        save_file(TENSORS, tmp_path / layout)
    elif layout == "pytorch_model.bin":
        torch.save(TENSORS, tmp_path / layout)
    else:
        _split(tmp_path, layout)

    source = open_source(tmp_path)

    assert {n: (e.shape, e.dtype) for n, e in source.entries.items()} == {
        n: (tuple(t.shape), t.dtype) for n, t in TENSORS.items()
    }
    assert all(torch.equal(source.read(name), tensor) for name, tensor in TENSORS.items())
    assert source.entries["x.weight"].size_bytes == 24


def test_an_index_that_names_a_tensor_its_files_lack_is_refused(tmp_path: Path) -> None:
    _split(tmp_path, "safetensors")
    path = tmp_path / "model.safetensors.index.json"
    plain = json.loads(path.read_text())
    plain["weight_map"]["w"] = plain["weight_map"]["y"]
    path.write_text(json.dumps(plain))

    with pytest.raises(DamagedArtifact, match="names w, which its files lack"):
        open_source(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_an_index_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)

    with pytest.raises(DamagedArtifact, match=r"index\.json cannot be read"):
        open_source(tmp_path)


def test_a_missing_or_torn_file_is_named(tmp_path: Path) -> None:
    _split(tmp_path, "safetensors")
    second = tmp_path / "model-00002-of-00002.safetensors"
    second.write_bytes(second.read_bytes()[:-3])
    with pytest.raises(DamagedArtifact, match=r"model-00002-of-00002\.safetensors cannot be read"):
        open_source(tmp_path)

    second.unlink()
    with pytest.raises(InputError, match=r"model-00002-of-00002\.safetensors"):
        open_source(tmp_path)


def test_what_is_nothing_known_is_refused_with_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")

    with pytest.raises(InputError, match=r"holds notes\.txt; needed is a \.safetensors"):
        open_source(tmp_path)
    with pytest.raises(InputError, match=r"notes\.txt is of no known kind"):
        open_source(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="nowhere is not there"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="is an adapter"):
        open_source(tmp_path)


def test_two_files_with_one_name_are_refused() -> None:
    parts = [Held("one", {"a": torch.ones(1)}), Held("two", {"a": torch.ones(1)})]

    with pytest.raises(DamagedArtifact, match="a is in one and in two"):
        Joined("both", list(parts))
