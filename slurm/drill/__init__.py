"""Rehearses failures on a real Slurm of a few hosts, and proves against an undisturbed run that nothing is lost.

recipe.py      the recipe that is rehearsed: data, training on three hosts, a check of the result
field.py       one run of it on the cluster: launching, waiting, finding its processes
trace.py       what a run folder and Slurm tell afterwards: losses, samples, attempts, jobs
proof.py       compares a disturbed run with an undisturbed one
faults.py      the ways to do harm
scenarios.py   the table of scenarios: what is done, which cause must be named
rehearsal.py   cluster up, the undisturbed run, the scenarios, cluster down
show.py        the table for people, the JSON for programs
"""
