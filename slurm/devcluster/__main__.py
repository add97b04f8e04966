"""`python -m slurm.devcluster`: installs the Debian packages that the tests of Slurm need, where it may."""

from orchestrator.errors import SurroundingsError
from slurm.devcluster import surroundings


def main() -> None:
    """Installs what is missing, or says what stays missing; never fails: those tests are then skipped by name."""
    if packages := surroundings.lacking_packages():
        print(f"Installing Debian packages for the tests of Slurm: {' '.join(packages)} ...", flush=True)
        try:
            surroundings.install()
        except SurroundingsError as error:
            print(f"{error}\nThe tests that need a Slurm will be skipped.", flush=True)


main()
