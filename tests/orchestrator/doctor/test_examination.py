"""`orch doctor`: what it says of a machine, and what it says to do."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from orchestrator.doctor.examination import examine, tell
from orchestrator.doctor.findings import Finding
from orchestrator.doctor.packages import git_findings, package_findings
from orchestrator.doctor.storage import file_system, folder_findings
from orchestrator.doctor.tracking import tracking_findings
from orchestrator.local import LocalLauncher

PROJECT = """
[project]
requires-python = "{python}"
dependencies = [{plans}]
[project.optional-dependencies]
train = [{stages}]
"""


def write_project(root: Path, *, python: str = ">=3.11", plans: str = '"pytest"', stages: str = '"pytest"') -> Path:
    (root / "pyproject.toml").write_text(PROJECT.format(python=python, plans=plans, stages=stages), encoding="utf-8")
    return root


def levels(findings: Iterator[Finding]) -> dict[str, str]:
    return {finding.about: finding.level for finding in findings}


def of(level: str, findings: Iterator[Finding]) -> Finding:
    (found,) = [finding for finding in findings if finding.level == level]
    return found


@contextmanager
def server(status: int) -> Iterator[tuple[str, list[str]]]:
    """Starts a server that answers every question alike; gives its address and the logins it was shown."""
    logins: list[str] = []

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            logins.append(self.headers.get("Authorization", ""))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{serving.server_port}", logins
    finally:
        serving.shutdown()
        serving.server_close()


class NoPlace(LocalLauncher):
    """A place that has nothing to say: torch is slow to ask."""

    def examine(self, runs: Path) -> Iterator[Finding]:  # noqa: ARG002
        return iter(())


@pytest.mark.needs("torch")
def test_the_command_tells_of_everything_loads_nothing_heavy_and_leaves_nothing_behind(orch: Any) -> None:
    before = sorted(orch.folder.iterdir())
    code = (
        "import sys; sys.argv = ['orch', 'doctor', '--json']\n"
        "from orchestrator.cli import app\n"
        "print(app(standalone_mode=False))\n"
        "print([m for m in ('torch', 'deepspeed', 'mlflow', 'transformers', 'webdataset') if m in sys.modules])"
    )

    document, code_and_heavy = orch.python("-c", code).stdout.rsplit("}\n", 1)

    shown = json.loads(document + "}")
    assert code_and_heavy.split() == ["0", "[]"]
    assert (shown["on"], shown["fit"]) == ("local", True)
    about = {finding["about"] for finding in shown["findings"]}
    assert {"Python", "packages of stages", "run folder", "room for runs", "MLflow", "torch"} <= about
    assert sorted(orch.folder.iterdir()) == before


def test_a_machine_that_is_not_fit_is_told_apart_by_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").write_text("a file where runs should be", encoding="utf-8")
    root = write_project(tmp_path)

    fit = tell(NoPlace(), root, tmp_path, as_json=False)
    lines = capsys.readouterr().out
    unfit = tell(NoPlace(), root, tmp_path / "runs", as_json=False)
    faults = capsys.readouterr().out

    assert (fit, unfit) == (0, 3)
    assert "ok       Python: " in lines
    assert "0 faults, " in lines.splitlines()[-1]
    assert f"fault    run folder: {tmp_path}/runs is a file" in faults
    assert "         do: launch from another folder" in faults
    assert "1 fault, " in faults.splitlines()[-1]


def test_a_look_that_breaks_is_told_and_the_next_is_taken(tmp_path: Path) -> None:
    class Broken(NoPlace):
        def examine(self, runs: Path) -> Iterator[Finding]:  # noqa: ARG002
            raise RuntimeError("a cable is loose")

    fault = of("fault", examine(Broken(), write_project(tmp_path), tmp_path))

    assert (fault.about, fault.message) == ("local", "could not be looked at: RuntimeError: a cable is loose")


def test_packages_that_are_missing_or_too_old_are_named_with_what_installs_them(tmp_path: Path) -> None:
    root = write_project(tmp_path, stages='"pytest>=99", "not-there-at-all>=1"')

    fault = of("fault", package_findings(root, stages_run_here=True))

    assert fault.about == "packages of stages"
    assert "pytest>=99 is needed" in fault.message
    assert "not-there-at-all is missing" in fault.message
    assert "pip install" in fault.remedy


def test_a_machine_that_only_submits_may_lack_what_stages_need(tmp_path: Path) -> None:
    root = write_project(tmp_path, stages='"not-there-at-all"')

    assert levels(package_findings(root, stages_run_here=False))["packages of stages"] == "warning"


def test_another_python_is_a_fault(tmp_path: Path) -> None:
    assert levels(package_findings(write_project(tmp_path, python=">=4"), stages_run_here=True))["Python"] == "fault"


def test_versions_that_nobody_tested_are_named(tmp_path: Path) -> None:
    root = write_project(tmp_path)
    (root / "constraints.txt").write_text("# tested\npytest==0.1\nnot-there-at-all==1.0\n", encoding="utf-8")

    warning = of("warning", package_findings(root, stages_run_here=True))

    assert warning.about == "versions"
    assert "(tested with 0.1)" in warning.message
    assert "not-there-at-all" not in warning.message


def test_code_outside_of_git_has_no_commit_to_tell(tmp_path: Path) -> None:
    assert levels(git_findings(tmp_path)) == {"git": "warning"}


def test_a_folder_that_does_not_exist_yet_is_tried_where_it_would_be_made(tmp_path: Path) -> None:
    found = [*folder_findings(tmp_path / "not" / "yet")]

    assert found[0] == Finding(
        about="run folder", level="ok",
        message=f"{tmp_path} ({file_system(tmp_path)}): files are written, renamed and locked",
    )  # fmt: skip
    assert [*tmp_path.iterdir()] == []


def test_a_folder_of_the_kernel_cannot_be_written_to() -> None:
    fault = of("fault", folder_findings(Path("/proc/self")))

    assert "cannot be written to" in fault.message
    assert "ORCH_RUNS" in fault.remedy


def test_the_kernel_names_the_file_system_of_a_path() -> None:
    assert file_system(Path("/proc/self/status")) == "proc"
    assert file_system(Path("/proc")) == "proc"


def test_a_database_is_made_by_the_first_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")

    assert levels(tracking_findings()) == {"MLflow": "ok"}
    assert not (tmp_path / "mlflow.db").exists()


def test_what_is_no_database_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow.db").write_text("these are notes about mlflow\n" * 100, encoding="utf-8")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")

    assert "is no database" in of("fault", tracking_findings()).message


@pytest.mark.parametrize(
    ("status", "level"), [(200, "ok"), (404, "ok"), (401, "fault"), (403, "fault"), (500, "warning")]
)
def test_a_server_is_asked_with_our_login(status: int, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(status) as (address, logins):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:l%40velace@{address}")
        (found,) = tracking_findings()

    assert found.level == level
    assert logins == ["Basic YWRhOmxAdmVsYWNl"]  # ada:l@velace
    assert "velace" not in json.dumps([found.message, found.remedy])


def test_a_server_that_is_away_costs_nothing_but_news(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as held:  # bound and not listening: nobody answers there, and nobody else can take it
        held.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{held.getsockname()[1]}")
        warning = of("warning", tracking_findings())

    assert "does not answer" in warning.message
    assert "orch sync" in warning.remedy
