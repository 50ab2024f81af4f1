"""The training step of contestants that are a torch module and nothing around it."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..worker import Batch, Handlers, Workload


class Ids(NamedTuple):
    """A batch on its device; the shapes and names are those of `worker.Batch`."""

    src: Tensor
    src_lengths: Tensor
    tgt_in: Tensor
    tgt_out: Tensor
    tgt_lengths: Tensor


class Loop:
    """Adam with an inverse square root schedule on a module that gives logits.

    Args:
        job: what the arena asks for. Its setting is `float32` or `bf16` (autocast), with
            `+compile` after it where loss and model shall be compiled together.
        model: the module.
        logits: turns a batch into logits (B, T, V) with that module.
    """

    def __init__(
        self, job: dict[str, Any], model: nn.Module, logits: Callable[[Ids], Tensor]
    ) -> None:
        self.device = torch.device(job["device"])
        self.model, self.logits = model.to(self.device), logits
        self.workload = Workload(job["workload"])
        self.batches = self.workload.rounds()
        self.smoothing = job["label_smoothing"]
        self.precision, _, compiled = job["setting"].partition("+")
        # Compiled for any shape from the start: sentences differ in length from step to step.
        self.loss = torch.compile(self._loss, dynamic=True) if compiled else self._loss
        self.optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=1.0, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0, fused=True,
        )  # fmt: skip
        peak, warmup = job["learning_rate"], job["warmup_steps"]
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda done: peak * min((done + 1) / warmup, (warmup / (done + 1)) ** 0.5),
        )

    @property
    def handlers(self) -> Handlers:
        """What the arena may ask for."""
        return {"steps": self.steps, "validate": self.validate}

    def ready(self, setting: str, **versions: str) -> dict[str, Any]:
        """What the contestant says of itself."""
        parameters = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        versions = {"torch": torch.__version__, **versions}
        return {"versions": versions, "parameters": parameters, "setting": setting}

    def steps(self, command: dict[str, Any]) -> dict[str, Any]:
        """Trains for `n` steps."""
        self.model.train()
        batches = [next(self.batches) for _ in range(command["n"])]
        start = self._now()
        losses = [self._step(self._to_device(batch)) for batch in batches]
        seconds = self._now() - start
        src, tgt = sum(b.src_tokens for b in batches), sum(b.tgt_tokens for b in batches)
        loss = sum(loss.item() * b.tgt_tokens for loss, b in zip(losses, batches, strict=True))
        return {
            "seconds": seconds, "steps": len(batches), "src_tokens": src, "tgt_tokens": tgt,
            "loss": loss / tgt,
        }  # fmt: skip

    @torch.no_grad()
    def validate(self, command: dict[str, Any]) -> dict[str, Any]:
        """Negative log-likelihood of the validation set."""
        self.model.eval()
        start, batches = self._now(), self.workload.val
        sums = [
            self._loss(self._to_device(batch), 0.0).item() * batch.tgt_tokens for batch in batches
        ]
        nll = sum(sums) / sum(batch.tgt_tokens for batch in batches)
        return {"nll": nll, "seconds": self._now() - start}

    def _step(self, ids: Ids) -> Tensor:
        loss = self.loss(ids, self.smoothing)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _loss(self, ids: Ids, smoothing: float) -> Tensor:
        with self._autocast():
            logits = self.logits(ids)
            return F.cross_entropy(
                logits.flatten(0, 1), ids.tgt_out.flatten(),
                ignore_index=self.workload.pad, label_smoothing=smoothing,
            )  # fmt: skip

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _to_device(self, batch: Batch) -> Ids:
        tensors = (torch.from_numpy(array) for array in batch)
        if self.device.type == "cuda":
            tensors = (t.pin_memory().to(self.device, non_blocking=True) for t in tensors)
        return Ids(*tensors)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
