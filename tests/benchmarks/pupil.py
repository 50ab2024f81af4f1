"""A small trained model for decoding, latency and start-up: trained once, kept as a bundle."""

from pathlib import Path

from lightning.pytorch import Callback, Trainer

from transformer.bundle import save_bundle
from transformer.data.dataset import json_digest
from transformer.inference.search import SearchConfig
from transformer.training.module import Seq2SeqModule
from transformer.training.runs import set_up_libraries

from .papers import TINY
from .workload import Text

STEPS = 600


class Steps(Callback):
    """Prints a line every now and then."""

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        """Print how far it is."""
        if trainer.global_step % 50 == 0:
            print(f"  {trainer.global_step} of {STEPS} steps", flush=True)


def train_once(text: Text, workload: Path, bench: Path, device: str) -> Path:
    """The bundle of a tiny model after `STEPS` steps on the workload, trained unless it is there.

    Args:
        text: what the workload is made of.
        workload: its folder.
        bench: where the bundle is kept.
        device: `cpu` or `cuda`.
    """
    folder = bench / f"bundle-{json_digest([workload.name, STEPS])[:12]}"
    if folder.exists():
        return folder
    print(f"Training a tiny model for {STEPS} steps: {folder}", flush=True)
    set_up_libraries()
    data = text.data(bench / "cache")
    module = Seq2SeqModule(
        TINY, schedule="inverse_sqrt", learning_rate=0.005, warmup_steps=STEPS // 2,
        search=SearchConfig(beam=5, length_norm="power"),
    )  # fmt: skip
    Trainer(
        accelerator="gpu" if device == "cuda" else "cpu", devices=1, max_steps=STEPS, max_epochs=-1,
        callbacks=[Steps()],
        limit_val_batches=0, num_sanity_val_steps=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    ).fit(module, datamodule=data)  # fmt: skip
    card = "Trained by the project's benchmark; good for nothing else.\n"
    training = {"recipe": "benchmark", "steps": STEPS}
    save_bundle(
        folder, module.model.cpu(), data.tokenizer, **module.about(), training=training, card=card
    )
    return folder
