"""Writing tensors where the first rank cannot: every rank hears of it, none waits for the others."""

from pathlib import Path

import pytest
import torch

from orchestrator.errors import SurroundingsError
from orchestrator.training import elastic, writing
from orchestrator.world import World
from tests.ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch")]


def _written(world: World, directory: Path) -> str:
    piece = elastic.share(elastic.whole("weight", torch.ones(8)), world)
    try:
        writing.write(directory, [piece], world)
    except SurroundingsError as error:
        return str(error)
    return "written"


def test_all_ranks_raise_where_the_first_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    said = run_ranks(2, _written, tmp_path / "file" / "weights", directory=tmp_path)

    assert said[0] == said[1]
    assert "Not a directory" in said[0]


def test_all_ranks_write_where_they_can(tmp_path: Path) -> None:
    assert run_ranks(2, _written, tmp_path / "weights", directory=tmp_path) == ["written", "written"]
