"""Optimizer steps whose loss or gradient is NaN, infinite or a spike: found before they are made.

The verdict is made on the device from numbers that all processes share. AdamW's fused kernels
obey it there, so weights and moments stay as if there had been no step. The host, which waits for
no GPU, reads the verdict while the device works on the step after it.
"""

import json
import logging
import math
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from transformer.errors import UserError
from transformer.training.logging import of_all_processes
from transformer.training.objective import Prepared
from transformer.writing import write

OnBadStep = Literal["stop", "skip"]
WINDOW = 128  # steps
IN_A_ROW = 10  # bad steps, after which skipping stops: then the model is at fault, not its pairs
SHOWN = 3  # pairs in a message
LETTERS = 60  # of a line in a message
FILE = "bad_steps.jsonl"  # in the run folder: all pairs of bad steps
log = logging.getLogger(__name__)


class BadStep(UserError):
    """The loss or the gradient of an optimizer step is NaN, infinite or a spike."""

    def __init__(self, step: int, what: str, or_: str) -> None:
        super().__init__(
            f"{what}: try a lower model.learning_rate, more model.warmup_steps, "
            f"trainer.gradient_clip_val: 1.0, or {or_}"
        )
        self.step = step


class _Verdict(NamedTuple):
    """On its way from the device; `arrived` is None where there was no way to go."""

    step: int
    numbers: Tensor  # whether it is bad, loss per token, gradient norm
    arrived: Any
    batches: list[tuple[Tensor, Tensor]]


@dataclass
class StepGuard:
    """Judges each optimizer step, and names the pairs of a bad one.

    Args:
        action: what a bad step leads to.
        sigmas: a loss or gradient norm so many standard deviations above its mean over the last
            128 good steps is a spike, as OLMo-core's `SkipStepOptimizer` (OLMo 2) defines it;
            None: nothing is.
    """

    action: OnBadStep = "stop"
    sigmas: float | None = None
    skipped: int = 0
    in_a_row: int = 0
    #: (128, 2) losses per token and gradient norms of good steps; NaN, which nothing exceeds, at
    #: first.
    history: Tensor | None = None
    #: Summed loss and pair numbers of each micro-batch of the step so far, and its target tokens.
    batches: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    tokens: int = 0
    _verdict: _Verdict | None = None

    def add(self, loss: Tensor, prepared: Prepared) -> None:
        """Count a micro-batch."""
        self.batches.append((loss.detach(), prepared.batch.indices))
        self.tokens += prepared.tgt_tokens

    def sums(self, processes: int) -> tuple[Tensor, Tensor]:
        """The loss and the target tokens of the step over all processes, scalars on the device."""
        losses = [loss for loss, _ in self.batches]
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        # Filled on the device: a copy from the host would wait for it.
        both = torch.stack([loss, torch.full_like(loss, self.tokens)])
        if processes > 1:
            # Queued behind the gradients. Lightning's `reduce` has a barrier, where hosts wait for
            # their GPUs.
            dist.all_reduce(both)
        return both[0], both[1]

    def judge(self, module: Any, loss: Tensor, norm: Tensor) -> Tensor:
        """Close the step: 1.0 if it is bad, else 0.0, as a fused optimizer's `found_inf`.

        Args:
            module: the module that trains.
            loss: scalar, per target token.
            norm: scalar, of the gradients before clipping.

        Raises:
            BadStep: see `look`; about this step on a CPU, about the one before on a GPU.
        """
        self.look(module)
        numbers = torch.stack([loss, norm.to(loss.dtype)])
        bad = ~numbers.isfinite().all()
        if self.sigmas is not None:
            if self.history is None:
                self.history = numbers.new_full((WINDOW, 2), math.nan)
            history = self.history.to(numbers)
            limit = history.mean(0) + self.sigmas * history.std(0)
            bad = bad | (numbers > limit).any()
            self.history = torch.where(bad, history, torch.cat([history[1:], numbers[None]]))
        verdict = _sent(torch.cat([bad.to(loss.dtype)[None], numbers]))
        self._verdict = _Verdict(module.trainer.global_step + 1, *verdict, self.batches)
        self.batches, self.tokens = [], 0
        if norm.device.type == "cpu":
            self.look(module)
        return bad.float()

    def look(self, module: Any) -> None:
        """Read the verdict that is on its way, if any; all processes have to call it.

        Raises:
            BadStep: the step was bad, and is not to be skipped, or is one of many in a row.
        """
        if (verdict := self._verdict) is None:
            return
        self._verdict = None
        if verdict.arrived is not None:
            verdict.arrived.synchronize()
        bad, loss, norm = verdict.numbers.tolist()
        if not bad:
            self.in_a_row = 0
            return
        what = _describe(module, verdict, loss, norm)
        self.in_a_row += 1
        if self.action == "stop":
            raise BadStep(verdict.step, what, "model.on_bad_step: skip")
        self.skipped += 1
        if self.in_a_row == IN_A_ROW:
            what += f"; it is bad step {IN_A_ROW} in a row"
            raise BadStep(verdict.step, what, "a higher model.spike_sigmas, if it is set")
        if module.trainer.is_global_zero:
            log.warning("skipped: %s", what)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs in order to judge alike."""
        return {name: getattr(self, name) for name in ("skipped", "in_a_row", "history")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def _sent(numbers: Tensor) -> tuple[Tensor, Any]:
    """The numbers on the host, once the event beside them has come."""
    if numbers.device.type == "cpu":
        return numbers, None
    there = numbers.to("cpu", non_blocking=True)  # pinned memory
    arrived = torch.Event(numbers.device)
    arrived.record()
    return there, arrived


def _describe(module: Any, verdict: _Verdict, loss: float, norm: float) -> str:
    """What was wrong and in which pairs, all of which the first process writes into a file."""
    trainer = module.trainer
    mine = [
        {"loss": loss.item(), "rank": trainer.global_rank, "pairs": _pairs(module.data, indices)}
        for loss, indices in verdict.batches
    ]
    every = [batch for part in of_all_processes(trainer, mine) for batch in part]
    # A micro-batch whose own loss is broken is to blame; of a gradient nobody can tell.
    guilty = [batch for batch in every if not math.isfinite(batch["loss"])] or every
    pairs = [{"rank": batch["rank"], **pair} for batch in guilty for pair in batch["pairs"]]
    file = Path(trainer.default_root_dir) / FILE
    if trainer.is_global_zero:
        rows = [json.dumps({"step": verdict.step, **pair}, ensure_ascii=False) for pair in pairs]
        with suppress(OSError):
            write(file, "".join(f"{row}\n" for row in [*_rows_before(file, verdict.step), *rows]))
    what = f"jumped beyond those of the {WINDOW} steps before"
    if not math.isfinite(loss + norm):
        what = "became NaN or infinite"
    shown = "; ".join(
        f"{pair['where']} ({pair['src'][:LETTERS]!r}, {pair['tgt'][:LETTERS]!r})"
        for pair in pairs[:SHOWN]
    )
    return (
        f"the loss or its gradient {what} at step {verdict.step:,} (loss {loss:.4g}, gradient norm "
        f"{norm:.4g}) with {len(pairs):,} pairs: {shown}, ..., see {file}"
    )


def _rows_before(file: Path, step: int) -> list[str]:
    """The rows of earlier steps; others are of a life that was killed, and are made again."""
    # Split at newlines alone: text may hold others of Unicode's line ends.
    rows = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
    numbered = re.compile(r'\{"step": (\d+),')
    return [row for row in rows if not (found := numbered.match(row)) or int(found[1]) < step]


def _pairs(data: Any, indices: Tensor) -> list[dict[str, str]]:
    numbers = indices.tolist()
    try:
        return data.training_pairs(numbers)
    except (UserError, OSError):  # the text is gone by now; training need not stop for that
        return [{"where": f"pair {number + 1}", "src": "", "tgt": ""} for number in numbers]
