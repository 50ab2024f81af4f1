"""The keys of recipes, which are the options of `transformer fit`: a parser, and its help."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import Trainer

from transformer.commands.arguments import Parser, Recipe, apart, explained
from transformer.commands.recipes import CONFIG_OPTIONS
from transformer.data.datamodule import DataModule
from transformer.models import ARCHITECTURES, ModelConfig, architecture_of
from transformer.training.checks import module_of
from transformer.training.forgetting import ParentPair

#: Defaults of options of Lightning's Trainer that are not Lightning's own.
DEFAULTS = {
    "enable_model_summary": False,  # one line of ours instead
    "num_sanity_val_steps": 0,  # the data is checked before
    "use_distributed_sampler": False,  # our batches know their process
    "log_every_n_steps": 20,
}
#: Whole numbers are batches, others a share. Lightning's hints have no order: 1 might be 1.0, all.
LIMITS = [f"limit_{split}_batches" for split in ("train", "val", "test", "predict")]
#: The Trainer's options that the help explains: recipes and the README use them.
EXPLAINED = {
    "trainer.max_epochs": "Epochs, at most.",
    "trainer.max_steps": "Optimizer steps, at most.",
    "trainer.accelerator": "cpu, gpu or mps.",
    "trainer.devices": "How many, or which, as in [0, 2].",
    "trainer.strategy": "How processes share the work: ddp, each with the whole model.",
    "trainer.precision": "bf16-mixed or 32-true; when left out the one that the device is fast at.",
    "trainer.accumulate_grad_batches": "Batches of an optimizer step.",
    "trainer.gradient_clip_val": "Largest norm of the gradient; a larger one is scaled down.",
    "trainer.val_check_interval": "Batches between validations, or a share of an epoch (0.5).",
    "trainer.fast_dev_run": "A trial: one batch of everything, and nothing is kept.",
    "trainer.enable_progress_bar": "Whether there is a bar.",
}
#: Headings of the groups, in place of what their classes say to programmers.
HEADINGS = {
    "model": "How the model learns, and how it is scored.",
    "data": "The corpora, and how they become batches.",
    "trainer": "How long and on what device it trains; these are options of Lightning's Trainer.",
}
HELP = """usage: transformer fit --config <recipe> [--<key> <value> ...]

Trains a model from a recipe, tests it, and leaves a bundle.

A recipe is a YAML file that sets some of these keys. A key on the command line is written with
dots, as in --model.network.d_model 256, and wins over the recipe's. In brackets is its default,
then other values where they are few. --print_config prints all settings, and does nothing else.

"""
LIGHTNING = """
All other options of Lightning's Trainer are on
https://lightning.ai/docs/pytorch/stable/common/trainer.html#trainer-flags
"""


#: Options of a run that belong to no group: type, default, and what they are for.
RUN: dict[str, tuple[Any, Any, str]] = {
    "seed_everything": (int, 1, "Seed of weights, dropout and batches."),
    "architecture": (
        str, "", "Kind of model, which decides about the settings of model.network: "
        f"{', '.join(ARCHITECTURES)}.",
    ),
    "run_dir": (str | None, None, "Run folder; runs/<recipe's path> when left out."),
    "existing": (
        Literal["refuse", "number", "resume"], "refuse", "When the run folder exists: refuse; take "
        "the next free <folder>-2, -3, ... (number); go on where its run stopped, which can be "
        "repeated until it has ended (resume).",
    ),
    "logger": (Literal["wandb", "csv", "none"], "wandb", "Where the curves go."),
    "ckpt_path": (
        str | None, None, "Checkpoint to resume, in its own run folder; `last` is the newest whole "
        "one.",
    ),
    "average": (int, 0, "Final model = mean of the last N checkpoints."),
    "save_every": (
        int | None, None, "Optimizer steps between checkpoints; once an epoch when left out."
    ),
    "keep_best": (int, 1, "Checkpoints to keep by validation BLEU."),
    "patience": (
        int | None, None, "Stop after this many validations without a higher BLEU; never when left "
        "out.",
    ),
}  # fmt: skip


def parser_of(network: ModelConfig) -> Parser:
    """Makes the parser of all settings: the model, the data, the run, and Lightning's Trainer."""
    parser = FitParser(prog="transformer fit")
    add = parser.add_argument
    add(*CONFIG_OPTIONS, action=Recipe, help="Recipe; a later one overrides it.")
    for name, (kind, default, about) in RUN.items():
        add(f"--{name}", type=kind, default=default, help=about)
    options: dict[str, Any] = {"fail_untyped": False, "sub_configs": True}
    parser.add_class_arguments(module_of(network), "model", **options)
    parser.add_class_arguments(DataModule, "data", **options)
    add("--parent", type=ParentPair, default=ParentPair())
    parser.link_arguments("seed_everything", "model.seed")
    parser.link_arguments("seed_everything", "data.seed")
    parser.add_class_arguments(Trainer, "trainer", instantiate=False, skip={*LIMITS}, **options)
    for name in LIMITS:
        add(f"--trainer.{name}", type=int | float | None, help="Batches, or a share of them.")
    defaults = {f"trainer.{name}": value for name, value in DEFAULTS.items()}
    parser.set_defaults({"architecture": architecture_of(network), **defaults})
    return parser


class FitParser(Parser):
    """A parser of recipes, over which options win, and whose help is about their keys."""

    def parse_args(self, args: Sequence[str], *rest: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Reads recipes first, wherever they stand: jsonargparse goes from left to right."""
        recipes, others = apart(args)
        return super().parse_args([*(f"--config={r}" for r in recipes), *others], *rest, **kwargs)

    def format_help(self, *_: Any) -> str:
        """Lists keys by group, without most of Lightning's."""
        lines = []
        for group in self._action_groups:
            actions = [a for a in group._group_actions if a.default != argparse.SUPPRESS]
            shown = [a for a in actions if EXPLAINED.get(a.dest, "trainer." not in a.dest)]
            above = shown[0].dest.rpartition(".")[0] if shown else ""
            heading = HEADINGS.get(above, " ".join(str(group.title).split()))
            lines += ["", f"{above}: {heading}"] if above else []
            for action in shown:
                about = EXPLAINED.get(action.dest, str(action.help))
                lines.append(explained(action.dest.rpartition(".")[2], about, action))
        return "\n".join([HELP, *lines, LIGHTNING])
