"""A demo that answers: an oracle's export behind a port of its own."""

from collections.abc import Iterator
from threading import Thread

import pytest

import stages
from orchestrator.artifacts import Export
from stages.demo.server import DemoServer
from tests.stages.oracle import OracleFamily, write_oracle
from tests.stages.scenes import scene


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    """Knows scene 1: a green bar from (4, 5) to (14, 35) and a blue one from (24, 5) to (34, 35), of 40 x 40 pixels."""
    folder = tmp_path_factory.mktemp("demo")
    checkpoint = write_oracle(folder / "model", [scene(1)])
    (folder / "export").mkdir()
    OracleFamily().export(checkpoint.path, folder / "export", card="# card")
    Export(folder / "export").commit("c" * 64, facts={"family": "oracle"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(stages.FAMILIES, "oracle", "tests.stages.oracle:OracleFamily")  # type: ignore[arg-type]  # a dict
        server = DemoServer(folder / "export", port=0)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
