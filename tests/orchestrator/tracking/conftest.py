"""What tests against a real MLflow server share."""

from collections.abc import Iterator

import pytest

from slurm.drill.server import TrackingServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    """Starts one server for the tests of a file that need no other; each of them leaves it running."""
    made = TrackingServer(tmp_path_factory.mktemp("server"))
    made.start()
    yield made
    made.kill()
