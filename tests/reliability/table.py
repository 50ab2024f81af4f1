"""One line of the table for each thing that was tried."""

import platform
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

#: The parts in their order; each is a module beside this one with a function `rows`, which gets an
#: empty folder, a seed, and the share of the full number of cases (1 in the run of record).
PARTS = ("kills", "faults", "processes", "hosts", "loading", "fuzz_text", "fuzz_files", "drift")


class Row(NamedTuple):
    """What was tried, how often, and how often something was lost, differed, hung or was silent."""

    what: str
    tried: int
    lost: int
    how: str = ""  # what was compared, in a few words


def markdown(rows: Iterable[tuple[str, Row, float]]) -> str:
    """A table of parts, their rows, and the seconds that each took."""
    lines = [
        "| part | tried | how often | lost | compared | seconds |",
        "|---|---|---:|---:|---|---:|",
    ]
    for part, row, seconds in rows:
        lines.append(
            f"| {part} | {row.what} | {row.tried:,} | {row.lost:,} | {row.how} | {seconds:.0f} |"
        )
    return "\n".join(lines)


def processor() -> str:
    """How many cores of what kind."""
    with Path("/proc/cpuinfo").open() as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0] if names else platform.processor()}"
