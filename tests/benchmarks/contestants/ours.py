"""This package as its users run it: the module under Lightning's Trainer; the search on a bundle.

Lightning drives the steps itself, so the conversation with the arena runs in a second thread, and
a callback makes Lightning wait where the arena has not asked for more steps.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from transformer.data.batching import Batch
from transformer.data.tokenizer import Tokenizer
from transformer.inference.search import SearchConfig
from transformer.inference.translator import Translator
from transformer.kernels.process import keep_few_kernels, keep_freed_memory
from transformer.models import TransformerConfig
from transformer.training.logging import CsvLogger, TrainingLog
from transformer.training.module import Seq2SeqModule
from transformer.training.runs import choose_precision, set_up_libraries
from transformer.training.stopping import StopSafely

from ..worker import Handlers, Workload, claim_stdout, run, serve, translated

PRECISIONS = {"default": None, "float32": "32-true", "bf16": "bf16-mixed"}


class Quit(Exception):
    """The arena has seen enough."""


class Given(LightningDataModule):
    """The batches of the workload, in their order, as the package's own data module has them.

    Args:
        workload: the workload.
        folder: where its tokenizer lies.
    """

    def __init__(self, workload: Workload, folder: Path) -> None:
        super().__init__()
        self.workload, self.tokenizer = workload, Tokenizer.load(folder)

    def train_dataloader(self) -> "Loader":
        return Loader(self.workload)


class Loader:
    """Makes a batch when it is asked for."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload

    def __len__(self) -> int:
        return len(self.workload.train)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.workload.train:
            numbers = torch.arange(len(batch.src))
            yield Batch(numbers, *(torch.from_numpy(array) for array in batch))


class Gate(Callback):
    """Lets Lightning take as many steps as the arena asks for, and holds the clock.

    The clock runs from the start of the first step to where the one after the last would start:
    fetching a batch, which comes before the start of its step, counts once for each step.

    Args:
        workload: the workload.
        setting: a key of `PRECISIONS`.
        out: where the answers go.
    """

    def __init__(self, workload: Workload, setting: str, out: Any) -> None:
        self.workload, self.setting, self.out = workload, setting, out
        self.batches = workload.rounds()
        self.commands: Queue[dict[str, Any]] = Queue(1)
        self.answers: Queue[dict[str, Any]] = Queue(1)
        self.losses: list[torch.Tensor] = []
        self.granted, self.start = 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to listen: there is a model now."""
        ready = {
            "versions": {"torch": torch.__version__},
            "parameters": sum(p.numel() for p in pl_module.parameters()),
            "setting": f"{self.setting}: Lightning, precision {trainer.precision}",
        }
        handlers: Handlers = {"steps": self._pass_on, "validate": self._pass_on}

        def talk() -> None:
            serve(handlers, ready, self.out)
            self.commands.put({"do": "quit"})

        threading.Thread(target=talk, daemon=True).start()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Wait for the arena when all steps are taken that it asked for."""
        if len(self.losses) < self.granted:
            return
        if self.granted:
            self.answers.put(self._report())
        while (command := self.commands.get())["do"] == "validate":
            self.answers.put(self._validate(trainer, cast(Seq2SeqModule, pl_module)))
        if command["do"] == "quit":
            raise Quit
        self.losses, self.granted = [], command["n"]
        self.start = _now()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss, a sum over target tokens, where it is."""
        self.losses.append(outputs["loss"])

    def _pass_on(self, command: dict[str, Any]) -> dict[str, Any]:
        self.commands.put(command)
        return self.answers.get()

    def _report(self) -> dict[str, Any]:
        seconds = _now() - self.start
        batches = [next(self.batches) for _ in self.losses]
        src, tgt = sum(b.src_tokens for b in batches), sum(b.tgt_tokens for b in batches)
        loss = torch.stack(self.losses).double().sum().item() / tgt
        return {
            "seconds": seconds, "steps": len(batches), "src_tokens": src, "tgt_tokens": tgt,
            "loss": loss,
        }  # fmt: skip

    @torch.no_grad()
    def _validate(self, trainer: Trainer, module: Seq2SeqModule) -> dict[str, Any]:
        module.eval()
        start, total = _now(), 0.0
        for batch in self.workload.val:
            given = Batch(torch.arange(len(batch.src)), *map(torch.from_numpy, batch))
            prepared = trainer.strategy.batch_to_device(module.on_before_batch_transfer(given, 0))
            with trainer.precision_plugin.val_step_context():
                total += module.loss(prepared)[1].item()
        module.train()
        tokens = sum(batch.tgt_tokens for batch in self.workload.val)
        return {"nll": total / tokens, "seconds": _now() - start}


def precision(setting: str, accelerator: str) -> Any:
    """What `transformer fit` would set for the Trainer on this device."""
    return choose_precision(accelerator, PRECISIONS[setting.split("+")[0]])


def module_of(job: dict[str, Any]) -> Seq2SeqModule:
    """The module that a recipe with these values gives."""
    names = ("d_model", "d_ff", "num_heads", "num_layers", "dropout")
    return Seq2SeqModule(
        TransformerConfig(**{name: job["shape"][name] for name in names}),
        label_smoothing=job["label_smoothing"],
        schedule="inverse_sqrt",
        learning_rate=job["learning_rate"],
        warmup_steps=job["warmup_steps"],
        compile=job["setting"].endswith("+compile"),
    )


def train(job: dict[str, Any], folder: Path) -> None:
    """Trains until the arena has seen enough."""
    out = claim_stdout()
    set_up_libraries()
    keep_freed_memory()  # as `transformer fit` does, and the next line
    keep_few_kernels(job["shape"]["d_model"])
    workload = Workload(job["workload"])
    gate = Gate(workload, job["setting"], out)
    accelerator = "gpu" if job["device"] == "cuda" else "cpu"
    trainer = Trainer(
        accelerator=accelerator, devices=1, precision=precision(job["setting"], accelerator),
        callbacks=[gate, TrainingLog(), StopSafely(folder)],
        logger=CsvLogger(folder), log_every_n_steps=20,
        default_root_dir=folder, max_epochs=-1, limit_val_batches=0, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    try:
        trainer.fit(module_of(job), datamodule=Given(workload, Path(job["workload"]).parent))
    except Quit:
        return


def build(job: dict[str, Any]) -> tuple[Handlers, dict[str, Any]]:
    """Decoding with a `Translator`, which makes its own batches.

    The setting is `default`, or an engine, perhaps with a precision: `ctranslate2+int8`.
    """
    workload = Workload(job["workload"])
    engine, _, precision = job["setting"].replace("default", "torch").partition("+")
    translator = Translator.load(
        job["bundle"], job["device"], precision=precision or "auto", engine=engine
    )
    keep_freed_memory()  # as `transformer translate` does
    config = SearchConfig(
        beam=job["beam"], length_norm="power", alpha=job["alpha"], max_extra=job["max_extra"]
    )

    def translate(command: dict[str, Any]) -> dict[str, Any]:
        src = workload.test_src[: command["sentences"]]
        start = time.perf_counter()
        results = translator.engine.search(src, config)
        found = [hypotheses[0].ids for hypotheses in results]
        return translated(time.perf_counter() - start, src, found)

    parameters = list(translator.model.parameters())
    ready = {
        "versions": {"torch": torch.__version__},
        "parameters": sum(p.numel() for p in parameters),
        "setting": f"{engine}, {precision or str(parameters[0].dtype).removeprefix('torch.')}",
        "batches": ["its own"],
    }
    return {"translate": translate}, ready


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if asked["task"] == "decode":
        run(build)
    else:
        with TemporaryDirectory() as where:
            train(asked, Path(where))
