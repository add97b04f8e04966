"""Slurm's short way of writing many hosts."""

import pytest

from slurm.devcluster import DevCluster
from slurm.hostlist import expand


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("n1", ["n1"]),
        ("n[1-3],m7", ["n1", "n2", "n3", "m7"]),
        ("n[08-10,12]", ["n08", "n09", "n10", "n12"]),
        ("gpu[1-2]r[1-2]", ["gpu1r1", "gpu1r2", "gpu2r1", "gpu2r2"]),
        ("a-b[1-2]-ib,c", ["a-b1-ib", "a-b2-ib", "c"]),
        ("", []),
        ("(null)", []),
        ("None assigned", []),
    ],
)
def test_every_host_is_listed_in_slurms_order(text: str, hosts: list[str]) -> None:
    assert expand(text) == tuple(hosts)


def test_slurm_itself_agrees(devcluster: DevCluster) -> None:
    text = "n[1-3,07-11],gpu[1-2]r[1-2],x"

    told = devcluster.run(["scontrol", "show", "hostnames", text]).stdout.split()

    assert expand(text) == tuple(told)
