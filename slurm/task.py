"""What srun starts, one for each rank: `python -m slurm.task RUN STAGE`. Deaf first, everything else after."""

import sys
from pathlib import Path

from slurm.ear import hold


def main(arguments: list[str]) -> int:
    """Looks after one rank and returns 0 unless the whole step has to end with it."""
    hold()  # a signal that comes while Python imports would end us without a word
    from slurm.warden import Task, Warden

    return Warden(Path(arguments[0]), arguments[1], Task.from_environment()).work()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
