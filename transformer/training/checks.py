"""The settings of a run: which ones its network has, and refusals before anything is built."""

import math
from collections.abc import Iterator
from typing import Any

from transformer.errors import UserError
from transformer.models import ModelConfig
from transformer.training.module import Seq2SeqModule

#: The strategies in which each process has the whole model: the norm of a part would be another.
STRATEGIES = (
    "auto", "single_device", "SingleDeviceStrategy", "ddp", "ddp_find_unused_parameters_false",
    "ddp_find_unused_parameters_true", "DDPStrategy",
)  # fmt: skip


def module_of(default: ModelConfig) -> type[Seq2SeqModule]:
    """The module whose signature has the settings of an architecture: options are made from it."""
    shape = type(default)

    class Module(Seq2SeqModule):
        __doc__ = Seq2SeqModule.__doc__

        def __init__(self, network: shape = default, **settings: Any) -> None:  # type: ignore[valid-type]
            super().__init__(network=network, **settings)

    return Module


def check(config: Any) -> None:
    """Refuse settings that are out of their range or do not go together."""
    # One after the other: a number that is out of its range is not computed with.
    for find in (_ranges, _numerics, _groups, _lightning):
        for problem in find(config):
            raise UserError(problem)


def _ranges(config: Any) -> Iterator[str]:
    """Numbers below their smallest value; Lightning would divide by them, or train uphill."""
    for key, smallest in {
        "save_every": 1,
        "average": 0,
        "patience": 0,
        "keep_best": 0,
        "model.warmup_steps": 0,
        "model.learning_rate": 0,
        "model.weight_decay": 0,
        "model.label_smoothing": 0,
        "model.spike_sigmas": 1,
        "trainer.gradient_clip_val": 0,
        "trainer.accumulate_grad_batches": 1,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.log_every_n_steps": 1,
    }.items():
        value = config[key]
        if value is not None and not smallest <= value < math.inf:  # no NaN, either
            yield f"{key} is {value:g}: it must be at least {smallest}, and a finite number"
    if not 0 <= config.seed_everything < 1 << 32:
        yield f"seed_everything is {config.seed_everything}: it must be from 0 to {(1 << 32) - 1}"
    if config.model.label_smoothing >= 1:
        yield f"model.label_smoothing is {config.model.label_smoothing:g}: it must be below 1"


def _numerics(config: Any) -> Iterator[str]:
    precision = config.trainer.precision
    if str(precision) in ("16", "16-mixed", "16-true"):
        # The scaler's infinite gradients, which it skips, cannot be told from a run that diverged.
        yield f"trainer.precision {precision} cannot train here: use bf16-mixed or 32-true"
    # Checkpoints of a validation inside of an optimizer step could not be resumed exactly.
    interval, window = config.trainer.val_check_interval, config.trainer.accumulate_grad_batches
    counts = isinstance(interval, int)
    if window > 1 and (interval % window if counts else interval not in (None, 1.0)):
        near = -(-interval // window) * window if counts else window * 100
        yield (
            f"trainer.val_check_interval {interval} may end inside of an optimizer step, which has "
            f"trainer.accumulate_grad_batches {window}: give a multiple of it, such as {near}"
        )
    elif window > 1 and config.trainer.check_val_every_n_epoch is None:
        yield (
            "trainer.check_val_every_n_epoch null counts batches beyond the end of an epoch, whose "
            f"last step may have less than trainer.accumulate_grad_batches {window} of them: leave "
            "it out"
        )


def _groups(config: Any) -> Iterator[str]:
    """Settings that contradict each other, or need one that is not given."""
    network, longest = config.model.network, config.data.max_length
    if network.get("positions") == "learned" and longest > network.max_positions:
        yield (
            f"data.max_length is {longest}, but there are {network.max_positions} learned "
            "positions: lower it, or raise model.network.max_positions"
        )
    if network.get("tied") == "three_way" and not config.data.tokenizer.shared:
        yield (
            "model.network.tied three_way needs one vocabulary for both sides: set "
            "data.tokenizer.shared: true, or model.network.tied: two_way"
        )
    parent = config.parent
    if parent.test and not config.model.init_from:
        yield (
            f"parent.test {parent.test} is about the bundle that a run begins from: "
            "give model.init_from, or leave parent out"
        )
    for key, value in vars(parent).items():
        if value is not None and not parent.test:
            yield f"parent.{key} {value} does nothing without parent.test: give the corpus, too"
    if config.patience is not None and not config.data.val:
        yield (
            f"patience {config.patience} counts validations, but there is no data.val: give "
            "data.val, or leave patience out"
        )


def _lightning(config: Any) -> Iterator[str]:
    """Lightning's options whose work is done by others here, and splitting a model."""
    strategy = config.trainer.strategy
    name = strategy if isinstance(strategy, str) else strategy.class_path
    if name.rpartition(".")[2] not in STRATEGIES:
        yield (
            f"trainer.strategy {name} is not known here: use ddp, or leave it out; a model of the "
            "paper's sizes takes 4 GB with Adam's moments, which each process has whole (a part's "
            "gradients would have another norm, and be clipped by it)"
        )
    instead = {
        "default_root_dir": (None, "take run_dir"),
        "overfit_batches": (0.0, "take data.limit"),
        "reload_dataloaders_every_n_epochs": (0, "leave it out, each epoch has its own order"),
    }
    for key, (default, ours) in instead.items():
        if config.trainer[key] not in (None, default):
            yield f"trainer.{key} is not used here: {ours}"
