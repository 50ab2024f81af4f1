"""`transformer fit`: train a model from a recipe, test it, and leave a bundle."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from jsonargparse import Namespace
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from transformer.bundle import read_config
from transformer.commands.arguments import given
from transformer.commands.keys import parser_of
from transformer.data.tokenizer import Tokenizer
from transformer.errors import UserError
from transformer.kernels.process import keep_few_kernels, keep_freed_memory
from transformer.models import ARCHITECTURES, ModelConfig
from transformer.training.checks import check
from transformer.training.folders import RUN_DIR, checkpoint_to_resume, resumable, take_folder
from transformer.training.runs import choose_precision, recipe_name, set_up_libraries
from transformer.training.train import Run, train

#: Settings of a run that is begun in a new folder.
BEGUN = Namespace(ckpt_path=None, existing="refuse")


def main(args: Sequence[str]) -> int:
    """Trains a model; returns the exit code."""
    with prepared(args) as run:
        return train(run)


@contextlib.contextmanager
def prepared(args: Sequence[str], again: str | None = None) -> Iterator[Run]:
    """Builds a run; a folder in which nothing is trained does not stay.

    What Lightning finds wrong with its settings, here or later, becomes an error of ours.

    Args:
        args: The arguments after `fit`.
        again: The command that begins it, to be printed when it is stopped; `fit` if None.
    """
    set_up_libraries()
    parser = parser_of(default_network(args))
    config = parser.parse_args(args)
    check(config)
    seed_everything(config.seed_everything, workers=True)
    config.ckpt_path = checkpoint_to_resume(config)
    checkpoint = resumable(config) if config.ckpt_path else {}
    name = recipe_name(config, checkpoint)
    trainer = config.trainer
    stored = checkpoint and checkpoint["recipe"]["config"]["trainer"]["precision"]
    trainer.precision = choose_precision(trainer.accelerator, trainer.precision, stored)
    is_trial = bool(trainer.fast_dev_run)
    folder, is_new = (Path(tempfile.mkdtemp()), True) if is_trial else take_folder(config, name)
    run = Run(config, name, folder, is_new, is_trial, again)
    try:
        config.run_dir = os.environ[RUN_DIR] = str(folder)
        keep_freed_memory()
        keep_few_kernels(config.model.network.d_model)
        built = parser.instantiate(config)
        # How a run is entered is no part of what it is.
        text = parser.dump(config.clone().update(BEGUN), skip_unset=False)
        run.module, run.data, run.parent = built.model, built.data, built.parent
        run.module.recipe = {"name": name, "config": yaml.safe_load(text)}
        if checkpoint:
            run.module.init_from = None  # the checkpoint has all weights
            run.data.tokenizer = Tokenizer(checkpoint["bundle"]["tokenizer"])
        run.make_trainer(built.trainer, text, checkpoint)
        yield run
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from error
    finally:
        run.tidy()


def default_network(args: Sequence[str]) -> ModelConfig:
    """The network of which a recipe says what differs: of its bundle, or of the architecture.

    Known before everything else is parsed, since the options of `model.network` depend on it.
    """
    name, where = given(args, "architecture")
    if name is not None and name not in ARCHITECTURES:
        raise UserError(
            f"{where}architecture {name!r} is unknown: use {' or '.join(ARCHITECTURES)}"
        )
    folder, where = given(args, "model.init_from")
    if folder is None:
        return ARCHITECTURES[name or "transformer"]()
    try:
        network, bundle = read_config(folder)
    except UserError as error:
        goes_on = given(args, "ckpt_path")[0] or given(args, "existing")[0] == "resume"
        hint = "; a run that goes on does without: --model.init_from null" if goes_on else ""
        raise UserError(f"{where}model.init_from: {error}{hint}") from None
    if name not in (None, bundle["architecture"]):
        raise UserError(
            f"architecture is {name}, but model.init_from {folder} has {bundle['architecture']}: "
            "leave architecture out, or begin from another bundle"
        )
    return network
