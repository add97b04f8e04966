"""What 4,096 ranks and 1,000 stages would do to a file system and to Slurm: measured in small, computed for large.

python -m benchmarks.scale                 # a table, about five minutes
python -m benchmarks.scale --json --quick  # about a minute

Measured: what each rank does to the run's folder in a step (strace), what a prepared stage and an attempt leave there,
how long a verdict over thousands of ranks takes, which requests a chain makes to slurmctld (sdiag). Computed, and said
to be: the same for more ranks or stages than this machine can start.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks import claims
from benchmarks.scaling import files, requests, traffic
from orchestrator.errors import OrchError


class Size(NamedTuple):
    """How much is measured."""

    ranks: tuple[int, ...]  # that really run
    steps: int
    stages: tuple[int, ...]  # that are prepared
    fallen: tuple[int, ...]  # ranks whose records are judged
    chain: int  # stages whose requests are counted


FULL = Size(ranks=(1, 2, 4), steps=60, stages=(100, 1000), fallen=(512, 4096), chain=8)
QUICK = Size(ranks=(1, 3), steps=20, stages=(50, 500), fallen=(256, 2048), chain=3)


def main() -> None:
    """Measures and prints, as a table or as JSON."""
    parser = claims.command_line(__doc__)
    options = parser.parse_args()
    size, machine = QUICK if options.quick else FULL, claims.machine()
    found: list[claims.Claim] = []
    with tempfile.TemporaryDirectory(prefix="orch-scale-", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        found += claims.told("traffic", traffic.traffic_per_step(folder / "traffic", size.ranks, size.steps))
        found += claims.told("files", files.control_files(folder / "files", size.stages))
        found += claims.told("verdict", files.verdicts(folder / "verdicts", size.fallen))
        found += claims.told("requests", requests.requests(size.chain))
    claims.show(found, machine, claims.versions(), as_json=options.json)


if __name__ == "__main__":
    try:
        main()
    except (OrchError, TimeoutError, subprocess.SubprocessError) as error:
        sys.exit(f"benchmarks.scale: {error}")
