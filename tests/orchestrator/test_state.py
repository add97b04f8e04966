"""What became of a stage is never mistaken: what cannot be read now is not what never was."""

import json
from pathlib import Path

import pytest

from orchestrator.errors import SurroundingsError
from orchestrator.state import StageState, outputs_ready, read_launch, read_state


def test_a_stage_without_a_state_has_not_begun(tmp_path: Path) -> None:
    assert read_state(tmp_path) == StageState()
    assert read_state(tmp_path / "not there") == StageState()


def test_a_state_that_cannot_be_read_now_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "state.json").symlink_to("state.json")  # the kernel gives up, as it does on a broken disk

    with pytest.raises(SurroundingsError, match=r"state\.json cannot be read"):
        read_state(tmp_path)


@pytest.mark.parametrize("text", ["garbage", "{}", "[]", '{"stages": 5}', '{"stages": [], "recipe": "toy"}'])
def test_a_launch_file_that_is_none_is_as_if_it_were_not_there(text: str, tmp_path: Path) -> None:
    (tmp_path / "launch.json").write_text(text, encoding="ascii")

    assert read_launch(tmp_path) is None


def test_what_a_later_version_added_is_passed_over(tmp_path: Path) -> None:
    launch = {"recipe": "toy", "launcher": "local", "host": "h", "user": "u", "started": 1.0, "stages": [{"name": "a"}]}
    (tmp_path / "launch.json").write_text(json.dumps({**launch, "weather": "fine"}), encoding="ascii")
    attempt = {"number": 1, "launcher": "local", "job_id": "7", "nodes": ["h"], "started": 1.0, "mood": "good"}
    (tmp_path / "state.json").write_text(json.dumps({"state": "running", "attempts": [attempt]}), encoding="ascii")

    known = read_launch(tmp_path)
    assert known is not None
    assert known.stages == ({"name": "a"},)
    assert [one.nodes for one in read_state(tmp_path).attempts] == [("h",)]


@pytest.mark.parametrize("text", ["garbage", "{}", "[]", '{"attempts": [3, {"number": 1}]}'])
def test_a_state_file_that_is_none_is_that_of_a_stage_that_has_not_begun(text: str, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(text, encoding="ascii")

    assert read_state(tmp_path) == StageState()


@pytest.mark.parametrize("text", ["garbage", "{}", "[]", '"text"', '{"kind": "report", "fingerprint": "of others"}'])
def test_an_output_without_a_manifest_of_this_plan_is_not_done(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="ascii")
    stage = {"fingerprint": "ours", "outputs": {"value": {"path": str(tmp_path), "kind": "report"}}}

    assert not outputs_ready(stage)
