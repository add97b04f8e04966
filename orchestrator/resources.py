"""What a stage asks of whatever runs it. Read by jobs that begin between two stages: it imports next to nothing."""

from orchestrator.records import record


@record
class Resources:
    """What a stage asks of whatever runs it. Never part of a fingerprint."""

    nodes: int = 1
    gpus_per_node: int = 0
    tasks_per_node: int | None = None  # processes; None = one per GPU, or one
    cpus_per_task: int | None = None
    memory_gb: float | None = None  # per node
    hours: float | None = None

    def __post_init__(self) -> None:
        """Refuses amounts that no machine has."""
        if self.nodes < 1:
            raise ValueError("nodes must be at least 1")
        if self.gpus_per_node < 0:
            raise ValueError("gpus_per_node must be at least 0")
        for name, amount in (("tasks_per_node", self.tasks_per_node), ("cpus_per_task", self.cpus_per_task)):
            if amount is not None and amount < 1:
                raise ValueError(f"{name} must be at least 1, or null")
        for name, size in (("memory_gb", self.memory_gb), ("hours", self.hours)):
            if size is not None and not 0 < size < float("inf"):
                raise ValueError(f"{name} must be above 0, or null")


def rank_count(resources: Resources) -> int:
    """Returns how many processes a stage gets on a node: as asked, else one per GPU, else one."""
    return resources.tasks_per_node or max(1, resources.gpus_per_node)
