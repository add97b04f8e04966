"""The account of memory that tests hold predictions against."""

from threading import Thread

import torch

from tests.allocations import allocated

MB = 1_000_000


def _elsewhere_freed(times: int) -> None:
    for _ in range(times):
        held = [torch.empty(MB, dtype=torch.uint8)]
        thread = Thread(target=held.clear)  # as a thread of gloo's does when it is the last to let go
        thread.start()
        thread.join()


def test_what_another_thread_freed_is_not_counted_as_alive() -> None:
    assert allocated(lambda: _elsewhere_freed(5))[1] == MB


def test_what_was_alive_before_does_not_count() -> None:
    before, _ = allocated(lambda: torch.empty(MB, dtype=torch.uint8))

    def work() -> None:
        first = torch.empty(MB, dtype=torch.uint8)
        del first
        torch.empty(2 * MB, dtype=torch.uint8)

    assert before.numel() == MB
    assert allocated(work)[1] == 2 * MB
