"""Taking turns, so that a change of the machine's speed meets all contenders."""

import time
from collections.abc import Callable, Mapping


def take_turns(contenders: Mapping[str, Callable[[], object]], turns: int, steps: int) -> dict[str, list[float]]:
    """Seconds of each call: `steps` calls a turn, after one turn to warm up that does not count."""
    times = {name: [] for name in contenders}
    for turn in range(turns + 1):
        for name, run in contenders.items():
            for _ in range(steps):
                start = time.perf_counter()
                run()
                if turn:
                    times[name].append(time.perf_counter() - start)
    return times
