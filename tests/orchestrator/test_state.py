"""What became of a stage is never mistaken: what cannot be read now is not what never was."""

from pathlib import Path

import pytest

from orchestrator.errors import SurroundingsError
from orchestrator.state import StageState, read_state


def test_a_stage_without_a_state_has_not_begun(tmp_path: Path) -> None:
    assert read_state(tmp_path) == StageState()
    assert read_state(tmp_path / "not there") == StageState()


def test_a_state_that_cannot_be_read_now_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "state.json").symlink_to("state.json")  # the kernel gives up, as it does on a broken disk

    with pytest.raises(SurroundingsError, match=r"state\.json cannot be read"):
        read_state(tmp_path)
