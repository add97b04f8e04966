"""The same chain without orch: jobs chained by afterok that start the stages' processes, by sbatch or by submitit."""

import shlex
import sys
import time
from pathlib import Path

from benchmarks.command import Orch
from slurm.devcluster import DevCluster

PREPARE = """
import sys
from pathlib import Path
from orchestrator.plan import Catalog, plan_recipe
from orchestrator.run import Run
from stages import FAMILIES, STAGES
plan = plan_recipe(Path(sys.argv[1]), [], Catalog(stages=STAGES, families=FAMILIES))
with Run(plan.directory).lock("benchmark"):
    Run(plan.directory).prepare(plan, Path(sys.argv[2]))
for stage in plan.stages:
    (plan.directory / stage.name / "logs" / "attempt_1").mkdir(parents=True)
print(plan.directory.resolve())
print(*[stage.name for stage in plan.stages])
"""
_SUBMITIT = """
import subprocess, sys
import submitit
run, python, *stages = sys.argv[1:]
before = None
for stage in stages:
    executor = submitit.SlurmExecutor(folder=f"{run}/{stage}/submitit")
    more = {"dependency": f"afterok:{before}"} if before else {}
    executor.update_parameters(time=10, nodes=1, ntasks_per_node=1, cpus_per_task=1, mem="1G", **more)
    command = [python, "-P", "-m", "orchestrator.worker", run, stage]
    before = executor.submit(subprocess.run, command).job_id
"""


class BareChain:
    """A prepared run whose stages are submitted by hand."""

    def __init__(self, cluster: DevCluster, orch: Orch, recipe: Path) -> None:
        """Prepares the run folder, off the clock."""
        self._cluster, self._orch = cluster, orch
        repository = orch.environment["PYTHONPATH"]
        folder, names = orch.python("-c", PREPARE, str(recipe), repository).splitlines()
        self.run, self.stages = Path(folder), names.split()

    def submit(self) -> None:
        """Submits one job a stage, each after the one before."""
        before = ""
        for stage in self.stages:
            line = shlex.join(["srun", sys.executable, "-P", "-m", "orchestrator.worker", str(self.run), stage])
            log = self.run / stage / "logs" / "attempt_1" / "rank_0.log"
            flags = ["--parsable", "-p", "cpu", "-n", "1", "-c", "1", "--mem=1G", "-o", str(log)]
            chained = [f"--dependency=afterok:{before}"] if before else []
            done = self._cluster.run(
                ["sbatch", *flags, *chained, "--wrap", line], env=self._orch.environment, check=True, cwd=self.run
            )
            before = done.stdout.strip()

    def by_submitit(self) -> float:
        """Submits the same chain by submitit, and returns how many seconds the process took that did."""
        began = time.perf_counter()
        self._orch.python("-c", _SUBMITIT, str(self.run), sys.executable, *self.stages)
        return time.perf_counter() - began
