"""What is going to be measured, and about how long that takes on this machine."""

from .limit import flops_per_token
from .peers import Entry
from .works import Setup, shape_of

#: The share of float32 matrix products' rate that a training step of ours reaches, about.
SHARE = 0.4
#: Seconds that a turn of training should take, and that a contestant needs to start.
TURN, START = 10, 15
#: Training steps of the tiny shape that take about as long: work for ourselves, then a turn.
ALONE = {"loss": 600, "pipeline": 80, "processes": 140, "growth": 300, "bundle": 600}
DECODING = {"decode": 40, "latency": 5}


def step_seconds(setup: Setup, shape: str, rate: float) -> float:
    """Seconds of a training step in float32, where matrix products run at `rate` FLOP/s; about."""
    workload = setup.tokens
    tokens = sum(b.src_tokens + b.tgt_tokens for b in workload.train) / len(workload.train)
    return tokens * flops_per_token(workload, shape_of(shape, workload.vocab)) / (SHARE * rate)


def turn_steps(most: int, seconds: float) -> int:
    """Steps of a turn: `most`, or fewer where each takes many seconds, at least one."""
    return max(1, min(most, round(TURN / seconds)))


def plan(
    trainers: list[Entry], decoders: list[Entry], rounds: int,
    steps: dict[str, int], seconds: dict[str, float],
) -> dict[str, float]:  # fmt: skip
    """Seconds of each kind of work in its order, about; others are taken to be half as fast.

    Args:
        trainers: who trains.
        decoders: who decodes.
        rounds: turns of each.
        steps: of a turn, for each shape that is trained.
        seconds: of a step, for each shape.
    """

    def turns(field: list[Entry], seconds: float) -> float:
        settings = [setting for entry in field for setting in entry.settings]
        return (2 * len(settings) - 1) * ((rounds + 1) * seconds + START)

    tiny = seconds["tiny"]
    alone = {name: number * tiny for name, number in ALONE.items()}
    return {
        **{f"train-{shape}": turns(trainers, n * seconds[shape]) for shape, n in steps.items()},
        "loss": (2 * len(trainers) - 1) * alone.pop("loss"),
        **alone,
        "processes": rounds * alone["processes"],
        **{name: turns(decoders, number * tiny) for name, number in DECODING.items()},
        "startup": (rounds + 1) * 6,
    }


def about(seconds: float) -> str:
    """A duration in words."""
    return f"{max(seconds, 10):.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
