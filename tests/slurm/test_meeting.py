import socket

import pytest

from slurm.meeting import address_for, address_of, free_port, interface_towards, interface_variables


def outward() -> tuple[str, str]:
    """Returns an interface of this machine other than lo, and its address."""
    for _, name in socket.if_nameindex():
        address = address_of(name)
        if name != "lo" and address is not None:
            return name, address
    pytest.skip("needs a network interface with an address")


def test_a_job_of_one_node_meets_on_that_node() -> None:
    assert address_for(["anywhere"], "auto") == "127.0.0.1"
    assert interface_towards("127.0.0.1") == "lo"


def test_the_interface_of_the_cluster_file_gives_the_address_and_is_what_gloo_and_nccl_get() -> None:
    name, address = outward()

    assert address_for(["here", "there"], f"={name}") == address
    assert interface_variables(f"={name}", address) == {"NCCL_SOCKET_IFNAME": f"={name}", "GLOO_SOCKET_IFNAME": name}


def test_without_one_it_is_the_interface_that_leads_to_the_first_node() -> None:
    name, address = outward()

    assert interface_variables("auto", address) == {"NCCL_SOCKET_IFNAME": f"={name}", "GLOO_SOCKET_IFNAME": name}
    assert interface_variables("^docker0", address)["NCCL_SOCKET_IFNAME"] == "^docker0"  # gloo knows no such words
    assert interface_variables("^docker0", address)["GLOO_SOCKET_IFNAME"] == name


def test_a_free_port_can_be_bound_and_is_none_that_outgoing_connections_get() -> None:
    port = free_port("127.0.0.1")

    assert port < 32_000
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))


def test_an_interface_that_is_not_there_has_no_address() -> None:
    assert address_of("nowhere0") is None
