"""How often to save, and what share of the time is then left for work: the formulas of Young and Daly. No torch.

Failures are taken to come at a constant rate (exponential gaps), independently on each node. Sources: J. W. Young, "A
first order approximation to the optimum checkpoint interval", CACM 17(9), 1974; J. T. Daly, "A higher order estimate of
the optimum checkpoint interval for restart dumps", Future Generation Computer Systems 22(3), 2006.
"""

import math


def job_mtbf_s(node_mtbf_hours: float, nodes: int) -> float:
    """Returns the mean seconds between two failures of a job that any of its nodes can end."""
    return node_mtbf_hours * 3600 / nodes


def best_interval_s(save_s: float, mtbf_s: float) -> float:
    """Returns the seconds of work between two saves that lose the least time; infinity if nothing ever fails.

    `save_s` is how long training stands still for a save, `mtbf_s` the job's mean time between failures. Daly's
    equation 37: sqrt(2 save mtbf) (Young) with two terms more, minus the save itself; `mtbf_s` where saves take longer
    than twice that. ValueError if a time is negative or `mtbf_s` is 0.
    """
    _check(save_s, mtbf_s)
    if math.isinf(mtbf_s):
        return math.inf
    if save_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = save_s / (2 * mtbf_s)
    return math.sqrt(2 * save_s * mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_s


def expected_goodput(save_s: float, mtbf_s: float, restart_s: float, interval_s: float | None = None) -> float:
    """Returns the expected share (0..1) of a long job's wall time that is work kept; the rest is saved, redone, waited.

    `restart_s` passes from a failure to the first new step; `interval_s` of work between two saves, null = the best.
    Daly's equation 20: a segment of work and its save takes mtbf exp(restart / mtbf) (exp((work + save) / mtbf) - 1).
    ValueError if a time is negative, or `mtbf_s` or `interval_s` is 0.
    """
    _check(save_s, mtbf_s)
    work_s = best_interval_s(save_s, mtbf_s) if interval_s is None else interval_s
    if restart_s < 0 or work_s < 0 or interval_s == 0:
        raise ValueError("restart_s must be 0 or more, interval_s above 0")
    if math.isinf(mtbf_s):
        return 1.0 if math.isinf(work_s) else work_s / (work_s + save_s)
    if work_s == 0:  # saves cost nothing, so one never stops saving: only restarts are lost
        return math.exp(-restart_s / mtbf_s)
    exponent = (work_s + save_s) / mtbf_s
    if exponent > _MOST_EXPONENT:
        return 0.0
    return work_s / (mtbf_s * math.exp(min(restart_s / mtbf_s, _MOST_EXPONENT)) * math.expm1(exponent))


_MOST_EXPONENT = 700.0  # e to a higher power is no float


def _check(save_s: float, mtbf_s: float) -> None:
    if not (save_s >= 0 and mtbf_s > 0):
        raise ValueError("save_s must be 0 or more, mtbf_s above 0")
