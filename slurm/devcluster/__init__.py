"""A real Slurm of a few hosts on one machine, to try things on and to test with."""

from slurm.devcluster.cluster import DevCluster

__all__ = ["DevCluster"]
