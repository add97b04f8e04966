"""The command line on the login node of a cluster."""

from pathlib import Path
from typing import Any

import yaml

from slurm.devcluster import DevCluster
from tests.command_line import Orch


class Line(Orch):
    """`orch` in a folder of its own, with a cluster file that a test may change."""

    def __init__(self, folder: Path, cluster: DevCluster) -> None:
        super().__init__(folder)
        self._environment.update(cluster.environment())
        self.cluster = cluster
        self.cluster_file = folder / "cluster.yaml"
        self.describe()

    def set(self, **environment: str) -> None:
        self._environment.update(environment)

    def describe(self, **more: Any) -> None:
        """Writes the cluster file, with other keys than usual."""
        written = yaml.safe_load(self.cluster.cluster_file().read_text(encoding="utf-8"))
        self.cluster_file.write_text(yaml.safe_dump({**written, **more}), encoding="utf-8")

    def launch(self, stages: dict[str, Any], *more: Any, code: int = 0) -> Any:
        return self("launch", self.recipe(stages), "--on", self.cluster_file, *more, code=code)

    def runs_at(self, stage: str, step: int) -> None:
        self.wait(lambda: (self.stage(stage)["step"] or 0) >= step, 40)

    def jobs(self) -> list[str]:
        return self.cluster.run(["squeue", "-h", "-o", "%j"], check=True).stdout.split()

    def controller_remembers(self) -> bool:
        """Tells whether the controller has saved all jobs; a killed one forgets what came in its last seconds."""
        saved = self.cluster.layout.folder / "state" / "job_state"
        return saved.exists() and all(name.encode() in saved.read_bytes() for name in self.jobs())

    def queue_empties(self) -> None:
        """Waits until Slurm has no job any more: one that is over stays in the queue while its hosts tidy up."""
        self.wait(lambda: not self.jobs(), 20)
