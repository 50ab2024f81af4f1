"""The LightningModule: one training step, one validation, and its part of a checkpoint."""

from dataclasses import asdict
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn.utils import parametrize

from transformer.data.batching import Batch
from transformer.data.datamodule import DataModule
from transformer.data.tokenizer import Tokenizer
from transformer.errors import UserError
from transformer.inference.batches import unpad
from transformer.inference.engines import Engine
from transformer.inference.search import Hypothesis, SearchConfig, search
from transformer.kernels.process import seed_of
from transformer.models import ModelConfig, Seq2Seq, TransformerConfig, architecture_of
from transformer.models.renamed import with_new_names
from transformer.training import objective, transfer
from transformer.training.bad_steps import OnBadStep, StepGuard
from transformer.training.logging import Meter
from transformer.training.objective import Prepared, Schedule
from transformer.training.scoring import Scorer, probe

#: The number that ranks checkpoints: BLEU; of equal ones (at first 0) the lower loss is better.
SELECTION = "val/rank"


class Seq2SeqModule(LightningModule):
    """Trains and evaluates a sequence-to-sequence model.

    The loss of an optimizer step is a sum over target tokens divided by the number of target
    tokens in the whole step, over all micro-batches and all processes (paper, section 5).

    Args:
        network: the shape of the model.
        label_smoothing: mass spread over the vocabulary in the target distribution (section 5.4).
        schedule: `noam` (equation 3), `inverse_sqrt` (the same with its peak given) or `constant`.
        learning_rate: with `noam` a factor, 1 in the paper; else the highest learning rate.
        warmup_steps: optimizer steps over which the learning rate rises linearly.
        betas: Adam's decay rates of the two moments (section 5.3).
        eps: Adam's constant for stability.
        weight_decay: decoupled weight decay (AdamW); 0 is the paper's Adam.
        search: how validation, test and the bundle look for translations.
        score_tokenize: sacreBLEU's, `13a` for most languages, `zh`, `ja-mecab`, `ko-mecab`, `char`.
        score_lowercase: ignore case in BLEU and chrF.
        score_detokenized: the text is tokenised as Moses does it: also give BLEU of the
            detokenised text with `13a`, the field's usual, as `bleu_detokenized`.
        init_from: bundle, or org/name of the hub, whose weights and network a new run begins with;
            rows of pieces that its vocabulary holds are copied.
        new_rows: other pieces begin as the `mean` of the old pieces that spell them, or `random`.
        freeze: patterns for names of parameters that do not learn: `[encoder.*]`, `["*"]` for all.
        lora: adapters that learn beside frozen matrices.
        probes: also decode some 50 strange lines after each validation; the share of loops, empty
            and far too long translations is logged.
        on_bad_step: `stop` before an optimizer step whose loss or gradient is NaN, infinite or a
            spike, or `skip` it; its pairs are named.
        spike_sigmas: a loss or gradient norm is a spike when it lies this many standard deviations
            above its mean over the 128 steps before, such as 6; by default nothing is.
        compile: torch.compile the network and the loss, which takes minutes: for long GPU runs.
        seed: of the initial weights and of dropout.
    """

    def __init__(
        self,
        network: ModelConfig = TransformerConfig(),  # noqa: B008 - frozen
        label_smoothing: float = 0.1,
        schedule: Schedule = "noam",
        learning_rate: float = 1.0,
        warmup_steps: int = 4000,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-9,
        weight_decay: float = 0.0,
        search: SearchConfig = SearchConfig(),  # noqa: B008 - frozen
        score_tokenize: str = "13a",
        score_lowercase: bool = False,
        score_detokenized: bool = False,
        init_from: str | None = None,
        new_rows: transfer.NewRows = "mean",
        freeze: tuple[str, ...] = (),
        lora: transfer.LoRAConfig = transfer.LoRAConfig(),  # noqa: B008 - frozen
        probes: bool = False,
        on_bad_step: OnBadStep = "stop",
        spike_sigmas: float | None = None,
        compile: bool = False,
        seed: int = 1,
    ) -> None:
        super().__init__()
        self.config, self.search_config = network, search
        self.label_smoothing = label_smoothing
        self.schedule, self.learning_rate = schedule, learning_rate
        self.warmup_steps, self.seed = warmup_steps, seed
        self.adam: dict[str, Any] = {"betas": betas, "eps": eps, "weight_decay": weight_decay}
        self.init_from, self.new_rows = init_from, new_rows
        self.freeze_patterns, self.lora = freeze, lora
        self.probes, self.compiled = probes, compile
        #: How scores are computed, by the names of the arguments; a bundle carries it.
        self.evaluation = {
            "label_smoothing": label_smoothing,
            "score_tokenize": score_tokenize,
            "score_lowercase": score_lowercase,
            "score_detokenized": score_detokenized,
        }
        self.scorer = Scorer(score_tokenize, score_lowercase, score_detokenized)
        self.network: Seq2Seq | None = None
        self.engine: Engine | None = None  # searches in a test, where the network does not
        self.origin: list[str] = []  # where the weights came from, in words
        self.learned_parameters = 0  # how many of its numbers learn
        self.recipe: dict[str, Any] = {}  # name and settings of the run, plain values
        self.meter = Meter()
        self.guard, self.micro_batches = StepGuard(on_bad_step, spike_sigmas), 0

    # Building

    @property
    def data(self) -> DataModule:
        return cast(DataModule, self.trainer.datamodule)  # type: ignore[attr-defined]

    @property
    def tokenizer(self) -> Tokenizer:
        return self.data.tokenizer

    @property
    def model(self) -> Seq2Seq:
        """The network, once there is a tokenizer to give it its size."""
        assert self.network is not None, "configure_model() has not run"
        return self.network

    def setup(self, stage: str) -> None:
        # Evaluation batches depend on how much a search holds at once.
        self.data.beams, self.data.extra = self.search_config.width, self.search_config.max_extra

    def configure_model(self) -> None:
        if self.network is not None:
            return
        torch.manual_seed(self.seed)
        sizes = self.tokenizer.src_vocab_size, self.tokenizer.tgt_vocab_size
        self.network = self.config.build(*sizes)
        if self.init_from:
            self.origin = transfer.begin_from(
                self.init_from, self.model, self.tokenizer, self.new_rows
            )
        self.learned_parameters = transfer.choose_what_learns(
            self.network, self.freeze_patterns, self.lora
        )
        if self.compiled:
            self.network.compile(dynamic=True)  # each batch has a shape of its own
        # Buffers are constants here. Left to DDP, their broadcast would wait for processes that
        # have no validation batch left.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    def rate(self, step: int) -> float:
        return objective.learning_rate(
            self.schedule, step, self.learning_rate, self.warmup_steps, self.config.d_model
        )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam, fused so that it can leave a bad step out, and a schedule that counts all steps."""
        learning = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=1.0, fused=True, **self.adam)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: self.rate(done + 1))
        each_step: Any = {"scheduler": scheduler, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": each_step}

    # Training

    def on_fit_start(self) -> None:
        """Refuse a line that the model cannot read or write before anything is learned."""
        if self.model.max_length is not None:
            self.data.check_lengths(self.model.max_length)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Prepared:
        """Count tokens on the host, where it costs the device nothing."""
        prepared = objective.prepare(batch)
        # From pinned memory a batch travels while the GPU still works on the one before.
        return prepared.pin() if self.device.type == "cuda" else prepared

    def loss(self, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """Label-smoothed loss and negative log-likelihood, in nats, summed over target tokens."""
        batch = prepared.batch
        hidden = self.model(batch.src, batch.src_lengths, batch.tgt_in)
        return objective.label_smoothed_loss(
            self.model.project, hidden, batch.tgt_out, prepared.rows, self.label_smoothing,
            self.compiled,
        )  # fmt: skip

    def training_step(self, prepared: Prepared, batch_idx: int) -> Tensor:
        """The loss summed over tokens; `configure_gradient_clipping` divides it."""
        # Dropout depends on these three numbers alone.
        torch.manual_seed(seed_of(self.seed, self.micro_batches, self.global_rank))
        loss, nll = self.loss(prepared)
        self.meter.add(loss, nll, prepared)
        self.guard.add(loss, prepared)
        self.micro_batches += 1
        return loss

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Divide the gradients by the target tokens of the optimizer step; clip; judge the step.

        Lightning divides each micro-batch's loss by `accumulate_grad_batches` and DDP averages
        over processes; both are undone here, which is right for a short last window, too.
        """
        if gradient_clip_val and gradient_clip_algorithm == "value":
            raise UserError(
                "trainer.gradient_clip_algorithm is 'value', only 'norm' is known: leave it out"
            )
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        loss, tokens = self.guard.sums(self.trainer.world_size)
        parts = self.trainer.accumulate_grad_batches * self.trainer.world_size
        norm = objective.divide_and_clip_(gradients, tokens, parts, gradient_clip_val)
        self.meter.norm = norm
        optimizer.found_inf = self.guard.judge(self, loss / tokens, norm)

    def on_train_batch_end(self, outputs: Any, batch: Prepared, batch_idx: int) -> None:
        # Lightning would keep the gradients, which nobody needs any more, until the next backward.
        if not self.guard.batches:
            self.zero_grad()

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        self._split: Literal["val", "test"] = "test" if self.trainer.testing else "val"
        self.scorer.begin(*self.data.texts(self._split), self.data.tgt)

    def validation_step(self, prepared: Prepared, batch_idx: int) -> None:
        batch = prepared.batch
        if not len(batch.indices):
            return  # this process has none
        # On a CPU in full precision, as a bundle is evaluated there.
        device = self.device.type
        mixed = torch.is_autocast_enabled(device) and device != "cpu"
        # Adapters are merged once for each batch.
        with torch.autocast(device, enabled=mixed), parametrize.cached():
            loss, nll = self.loss(prepared)
            found = self.search(batch)
        hypotheses = self.tokenizer.decode([best[0].ids for best in found])
        indices = batch.indices.tolist()
        self.scorer.add(indices, hypotheses, loss.item(), nll.item(), prepared.tgt_tokens)

    def search(self, batch: Batch) -> list[list[Hypothesis]]:
        """The hypotheses of each sentence, best first."""
        if self.engine is None:
            return search(self.model, batch.src, batch.src_lengths, self.search_config)
        return self.engine.search(unpad(batch.src, batch.src_lengths), self.search_config)

    def on_validation_epoch_end(self) -> None:
        """Scores of the whole set. Loggers get them from a callback, with the step of the rest."""
        self.scorer.finish(self.trainer)
        found, split = self.scorer.scores, self._split
        if self.probes and split == "val":
            found.update(probe(self.model, self.data, self.search_config))
        scores = {f"{split}/{key}": value for key, value in found.items()}
        if split == "val":
            scores[SELECTION] = found["bleu"] - 1e-6 * found["loss"]
        self.log_dict(scores, logger=False)

    def on_test_start(self) -> None:
        if not self.micro_batches:  # else `on_fit_start` has done it
            self.on_fit_start()

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    # Checkpoints

    def about(self) -> dict[str, Any]:
        """The settings of a bundle beside its shape, as `save_bundle` takes them."""
        return {
            "src": self.data.src,
            "tgt": self.data.tgt,
            "search": asdict(self.search_config),
            "max_length": self.data.max_length,
            "evaluation": self.evaluation,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.guard.look(self)  # a run that ends here replaces no good checkpoint
        checkpoint["bundle"] = {
            "architecture": architecture_of(self.config),
            "network": asdict(self.config),  # type: ignore[call-overload]
            "about": self.about(),
            "tokenizer": self.tokenizer.to_text(),
        }
        for name in ("origin", "recipe", "micro_batches"):
            checkpoint[name] = getattr(self, name)
        checkpoint["guard"] = self.guard.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = with_new_names(checkpoint["state_dict"])
        transfer.check_resumed(checkpoint["bundle"], self.config, self.tokenizer)
        self.micro_batches = checkpoint["micro_batches"]
        self.origin = checkpoint["origin"]
        self.guard.load_state_dict(checkpoint.get("guard", {}))
