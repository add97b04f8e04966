"""What a place says about its machines, as far as the memory and the cost of a plan need it."""

from orchestrator.records import record


@record
class Hardware:
    """The GPUs of a place, and how often its nodes fail; null = it does not say, and nothing is concluded from it."""

    memory_gb_per_gpu: float | None = None  # in units of 10^9 bytes; what does not fit is said by `orch plan`
    tflops_per_gpu: float | None = None  # the peak in bf16 without sparsity, as its data sheet says
    utilisation: float = 0.35  # of that peak, which training is assumed to reach
    node_mtbf_hours: float | None = None  # mean time between two failures of one node
    restart_s: float = 300.0  # from a failure to the first new step
    storage_gb_per_s: float = 1.0  # at which a checkpoint is written, all ranks together; until one was measured

    def __post_init__(self) -> None:
        """Refuses what no machine has."""
        for name in ("memory_gb_per_gpu", "tflops_per_gpu", "node_mtbf_hours"):
            amount = getattr(self, name)
            if amount is not None and not 0 < amount < float("inf"):
                raise ValueError(f"{name} must be above 0, or null")
        if not 0 < self.utilisation <= 1:
            raise ValueError("utilisation must lie in (0, 1]")
        if not self.restart_s >= 0:
            raise ValueError("restart_s must be 0 or more")
        if not self.storage_gb_per_s > 0:
            raise ValueError("storage_gb_per_s must be above 0")
