"""Which weights ZeRO-3 has gathered at a time: the coordinator of DeepSpeed, played through without any weights."""

from functools import lru_cache

REUSE_ELEMENTS = 1_000_000_000  # DeepSpeed's stage3_max_reuse_distance: who is needed again that soon stays
LIVE_ELEMENTS = 1_000_000_000  # its stage3_max_live_parameters: with more there is nothing fetched ahead


@lru_cache(maxsize=64)
def gathering(
    sizes: tuple[int, ...], uses: tuple[tuple[int, ...], ...], persistence_threshold: int, ahead_elements: int
) -> tuple[int, int]:
    """Returns the most elements that are whole at a time, small ones apart, and the most that come at one go.

    `sizes` are those of all parameters, `uses` which of them each module call needs. What comes at one go lies there
    twice for a moment: as it came, and in its own place.
    """
    numels = [n if n > persistence_threshold else 0 for n in sizes]
    queue = [(step, number) for step, use in enumerate(uses) for number in use if numels[number]]
    passed = [0]  # elements before each use
    for use in uses:
        passed.append(passed[-1] + sum(sizes[number] for number in use))
    later = _next_uses(uses)
    whole: set[int] = set()
    live = most = largest = place = 0
    asked_for: dict[int, int] = {}  # parameter -> the last use that it was fetched for
    for step, use in enumerate(uses):
        fetch = [number for number in dict.fromkeys(use) if numels[number] and number not in whole]
        whole.update(fetch)
        now = sum(numels[number] for number in fetch)
        live, largest = live + now, max(largest, now if len(fetch) > 1 else 0)
        while place < len(queue) and queue[place][0] <= step:
            place += 1
        ahead = 0
        while place < len(queue) and ahead < min(ahead_elements, LIVE_ELEMENTS - live):
            at, number = queue[place]
            place, asked_for[number] = place + 1, at
            if number not in whole:
                whole.add(number)
                ahead += numels[number]
        live, largest = live + ahead, max(largest, ahead)
        most = max(most, live)
        for number in dict.fromkeys(use):
            again = later[step].get(number)
            soon = again is not None and passed[again] - passed[step + 1] < REUSE_ELEMENTS
            if number in whole and not soon and asked_for.get(number, -1) <= step:
                whole.discard(number)
                live -= numels[number]
    return most, largest


def _next_uses(uses: tuple[tuple[int, ...], ...]) -> list[dict[int, int]]:
    """Returns for each use which parameter of it is needed again, and at which use."""
    seen: dict[int, int] = {}
    found: list[dict[int, int]] = []
    for step in range(len(uses) - 1, -1, -1):
        found.append({number: seen[number] for number in uses[step] if number in seen})
        seen.update(dict.fromkeys(uses[step], step))
    return found[::-1]
