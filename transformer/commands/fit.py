"""`transformer fit`: train a model from a recipe, test it, and leave a bundle."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from transformer.allocator import keep_few_kernels, keep_freed_memory
from transformer.bundle import read_config
from transformer.commands.arguments import (
    CONFIG_OPTIONS,
    OneLineErrors,
    Peek,
    check_groups,
    with_recipes_found,
)
from transformer.data.datamodule import DataModule
from transformer.data.tokenizer import Tokenizer
from transformer.errors import UserError, is_for_the_user, message
from transformer.models import ARCHITECTURES, ModelConfig, architecture_of
from transformer.training.callbacks import EarlyStopping, TrainingLog
from transformer.training.checkpoints import Checkpoints
from transformer.training.checks import check
from transformer.training.forgetting import ForgettingGate, OldPair
from transformer.training.meter import NotFinite
from transformer.training.module import module_of
from transformer.training.progress import LiveProgress, progress
from transformer.training.report import (
    Split,
    evaluate,
    load_final_weights,
    results,
    save_final,
    summary,
)
from transformer.training.runs import (
    RUN_DIR,
    OnePrecision,
    SaveConfig,
    be_quiet,
    choose_precision,
    claim,
    let_go,
    recipe_name,
    resumable,
)
from transformer.training.stopping import (
    Interrupted,
    StopSafely,
    diverged,
    goodbye,
    is_of_a_lost_process,
    what_is_left,
)
from transformer.training.tracking import LoggerName, WandbTracker, log_bundle, make_logger

FORGOTTEN = 3  # the exit code
DEFAULTS = {
    "enable_model_summary": False,  # one line of ours instead
    "num_sanity_val_steps": 0,  # the data is checked before
    "use_distributed_sampler": False,  # our batches know their process
    "log_every_n_steps": 20,
}


def main(args: Sequence[str]) -> int:
    """Train a model.

    Args:
        args: the arguments after `fit`.

    Returns:
        The exit code: 0; 3 when the old pair was forgotten; 130 after Ctrl-C and 143 after SIGTERM,
        with everything saved.

    Raises:
        ValueError: for what the user can mend.
    """
    with lightning_errors():
        return train(FitCLI(args))


@contextlib.contextmanager
def lightning_errors() -> Iterator[None]:
    """Turns what Lightning finds wrong with settings into errors of ours, and keeps it quiet."""
    be_quiet()
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from error


def train(cli: FitCLI) -> int:
    """Train, test, and write the bundle; returns the exit code."""
    try:
        gate = forgetting_gate(cli)
        with cli.stop, how_to_go_on(cli):
            cli.trainer.fit(
                cli.model, datamodule=cli.datamodule, ckpt_path=cli.ckpt_path, weights_only=True
            )
        forgotten = finish(cli, gate)
        cli.is_new = cli.temporary  # what is written down stays, even where no step was asked for
    except NotFinite as error:
        raise diverged(error, cli.folder / "checkpoints", cli.model.peak) from error
    except Interrupted as stop:
        if not cli.trainer.is_global_zero:
            return 0  # else Lightning kills the first process, which may still be printing
        print(goodbye(stop, cli.folder, cli.again), flush=True)
        return 128 + stop.signum
    except SystemExit:  # Lightning's answer to KeyboardInterrupt
        print(f"\nStopped at once; {what_is_left(cli.folder, cli.again)}.", flush=True)
        return 128 + (cli.stop.signum or signal.SIGINT)
    finally:
        cli.tidy()
    return FORGOTTEN if forgotten else 0


@contextlib.contextmanager
def how_to_go_on(cli: FitCLI) -> Iterator[None]:
    """Names the checkpoint to resume from in an error that stops training on its way.

    Raises:
        ValueError: for what the user can mend.
        RuntimeError: for anything else, whose traceback stays before it.
    """
    try:
        yield
    except (Interrupted, NotFinite, MisconfigurationException):
        raise
    except Exception as error:
        if cli.stop.began is None:
            raise
        stopped = f"training stopped after step {cli.trainer.global_step:,}"
        left = f"{stopped}; {what_is_left(cli.folder, cli.again)}"
        if is_for_the_user(error):
            raise UserError(f"{message(error)}; {left}") from error
        if is_of_a_lost_process(error):
            raise UserError(
                f"another process of this run is gone, see its own words; {left}"
            ) from error
        raise RuntimeError(left) from error


def forgetting_gate(cli: FitCLI) -> ForgettingGate | None:
    """Score the pair that the bundle knows before anything is learned, if the recipe names one."""
    pair, bundle = cli.config_init.old_pair, cli.config.model.init_from
    if not pair.test or not cli.trainer.is_global_zero:
        return None
    gate = ForgettingGate(pair, bundle)
    print(gate.score_before(cli.model.search_config), flush=True)
    return gate


def finish(cli: FitCLI, gate: ForgettingGate | None) -> bool:
    """Score the final model and write everything down; whether it forgot its old pair."""
    trainer, module = cli.trainer, cli.model
    weights = load_final_weights(trainer, module)
    try:
        numbers = scored(cli, gate, weights)
    except BaseException:  # of hours of training there is a bundle, whatever became of the test
        if trainer.is_global_zero and not cli.temporary:
            numbers = results(trainer, module, cli.log, {}, None, weights)
            save_final(cli.folder, module, numbers, weights)
            print(f"\nThe model was not tested; it is in {cli.folder / 'bundle'}", flush=True)
        raise
    if not trainer.is_global_zero:
        return False
    picture = save_final(cli.folder, module, numbers, weights)
    print(summary(cli.folder, module, numbers, weights, picture), flush=True)
    log_bundle(trainer, cli.folder / "bundle", cli.name, numbers)
    if cli.temporary:
        print("\nThat was a trial run (trainer.fast_dev_run): nothing was kept.", flush=True)
    return bool(gate and numbers["old_pair"]["forgotten"])


def scored(cli: FitCLI, gate: ForgettingGate | None, weights: str) -> dict[str, Any]:
    """What `results.json` holds of the final model, after its test; the first process knows all."""
    trainer, module = cli.trainer, cli.model
    split: Split | None = "test" if cli.config.data.test else "val" if cli.config.data.val else None
    scores = evaluate(trainer, module, split) if split else {}
    numbers = results(trainer, module, cli.log, scores, split if scores else None, weights)
    if gate:
        numbers["old_pair"] = gate.score_after(module)
        gate.log(trainer, numbers["old_pair"])
    return numbers


def default_network(args: Sequence[str]) -> ModelConfig:
    """The network of which a recipe says what differs.

    It is that of the bundle that a run begins from, or else the default of the architecture. Known
    before everything else is parsed, since the options of `model.network` depend on it.

    Raises:
        ValueError: when there is no such architecture or bundle, or the bundle has another one.
    """
    name, where = peek(args, "architecture")
    if name is not None and name not in ARCHITECTURES:
        raise UserError(
            f"{where}architecture {name!r} is unknown: use {' or '.join(ARCHITECTURES)}"
        )
    folder, where = peek(args, "model", "init_from")
    if folder is None:
        return ARCHITECTURES[name or "transformer"]()
    try:
        bundle = read_config(Path(folder))
        network = ARCHITECTURES[bundle["architecture"]](**bundle["network"])
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}model.init_from: {error}") from None
    if name not in (None, bundle["architecture"]):
        raise UserError(
            f"architecture is {name}, but model.init_from {folder} has {bundle['architecture']}: "
            "leave architecture out, or begin from another bundle"
        )
    return network


def peek(args: Sequence[str], *key: str) -> tuple[str | None, str]:
    """What the command line, or else the last of its recipes, sets a key to, and where.

    Returns:
        The value, None if it is not set, and the beginning of a message about it.
    """
    option = f"--{'.'.join(key)}"
    parser = Peek(prog="transformer fit", add_help=False, allow_abbrev=False)
    parser.add_argument(option, dest="value")
    parser.add_argument(*CONFIG_OPTIONS, action="append", default=[])
    given, _ = parser.parse_known_args(with_recipes_found(args))
    if given.value is not None:
        # null takes back what a recipe sets
        return None if given.value == "null" else given.value, "--"
    for file in reversed(given.config):
        with contextlib.suppress(OSError, ValueError, yaml.YAMLError):  # the parser says it better
            content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
            for part in key:
                content = content.get(part) if isinstance(content, dict) else None
            if content is not None:
                return str(content), f"{file}: "
    return None, ""


class FitParser(OneLineErrors, LightningArgumentParser):
    """Lightning's parser, with errors in one line."""


class FitCLI(LightningCLI):
    """LightningCLI with a run folder, our callbacks and our defaults.

    Args:
        args: the command line.
        again: the command that began the run, to be printed when it is stopped; `fit` if None.
    """

    def __init__(self, args: Sequence[str], again: str | None = None) -> None:
        self.again = again
        self.log = TrainingLog()
        self.folder, self.is_new = Path(), False
        try:
            self._build(args)
        except BaseException:
            self.tidy()
            raise

    def _build(self, args: Sequence[str]) -> None:
        self.network = default_network(args)
        super().__init__(
            module_of(self.network),
            DataModule,
            save_config_callback=None,
            trainer_defaults=DEFAULTS,
            seed_everything_default=1,
            parser_class=FitParser,
            parser_kwargs={"prog": "transformer fit", "description": __doc__},
            args=list(args),
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what a run needs beyond model, data and trainer."""
        add = parser.add_argument
        add(
            "--architecture",
            type=str,
            default=architecture_of(self.network),
            help=f"Kind of model, which decides about the settings of model.network: "
            f"{', '.join(ARCHITECTURES)}.",
        )
        add("--run_dir", type=str | None, help="Run folder; runs/<recipe's path> when left out.")
        add(
            "--existing",
            type=Literal["refuse", "number"],
            default="refuse",
            help="When the run folder exists: refuse, or take the next free <folder>-2, -3, ...",
        )
        add("--logger", type=LoggerName, default="wandb", help="Where the curves go.")
        add("--ckpt_path", type=str | None, help="Checkpoint to resume, in its own run folder.")
        add("--average", type=int, default=0, help="Final model = mean of the last N checkpoints.")
        add(
            "--save_every",
            type=int | None,
            help="Optimizer steps between checkpoints; once an epoch when left out.",
        )
        add("--keep_best", type=int, default=1, help="Checkpoints to keep by validation BLEU.")
        add(
            "--patience",
            type=int | None,
            help="Stop after this many validations without a higher BLEU; never when left out.",
        )
        add("--old_pair", type=OldPair, default=OldPair())
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Lightning's own warns whenever arguments are passed in."""
        self.config = parser.parse_args(args)
        check_groups(cast(FitParser, parser).files)
        check(self.config)

    def before_instantiate_classes(self) -> None:
        """Find the run folder and the checkpoint before anything is built."""
        config = self.config
        self.ckpt_path: str | None = config.ckpt_path
        self.checkpoint = resumable(config) if config.ckpt_path else None
        self.name = recipe_name(config, self.checkpoint)
        stored = self.checkpoint and self.checkpoint["recipe"]["config"]["trainer"]["precision"]
        trainer = config.trainer
        trainer.precision = choose_precision(trainer.accelerator, trainer.precision, stored)
        self.temporary = bool(config.trainer.fast_dev_run) and not config.run_dir
        if self.temporary:
            self.folder, self.is_new = Path(tempfile.mkdtemp()), True
        else:
            self.folder, self.is_new = claim(config, self.name)
        config.run_dir = str(self.folder)
        os.environ[RUN_DIR] = config.run_dir
        keep_freed_memory()
        keep_few_kernels(config.model.network.d_model)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer with our logger, checkpoints and display."""
        config = self.config
        self.stop = StopSafely(self.folder / "checkpoints")
        text = self.parser.dump(config, skip_unset=False)
        self.model.recipe = {"name": self.name, "config": yaml.safe_load(text)}
        if self.checkpoint:
            self.model.init_from = None  # the checkpoint has all weights
            self.datamodule.tokenizer = Tokenizer.from_text(self.checkpoint["bundle"]["tokenizer"])
        run_id = (self.checkpoint or {}).get("wandb_id")
        kind: LoggerName = "none" if config.trainer.fast_dev_run else config.logger
        # The log comes after what a validation does for W&B, for it starts the clock again.
        callbacks = [
            OnePrecision(), WandbTracker(), self.log, SaveConfig(self.folder, text), Banner(self),
        ]  # fmt: skip
        if config.trainer.enable_progress_bar is not False:
            callbacks.append(progress(self.log))
        if config.patience is not None:
            callbacks.append(EarlyStopping(config.patience))
        saved: dict[str, Any] = {k: config[k] for k in ("keep_best", "average", "save_every")}
        callbacks += [Checkpoints(self.folder / "checkpoints", **saved), self.stop]
        given = self.config_init.trainer
        logger = given.logger
        if logger is None:
            logger = make_logger(kind, self.folder, self.name, run_id) or False
        try:
            return super().instantiate_trainer(
                logger=logger,
                callbacks=[*(given.callbacks or []), *callbacks],
                default_root_dir=str(self.folder),
                enable_progress_bar=any(isinstance(c, LiveProgress) for c in callbacks),
            )
        except (TypeError, ModuleNotFoundError) as error:  # a device or a plugin that is not there
            raise UserError(f"trainer: {error}") from None

    def tidy(self) -> None:
        """Leave no folder behind in which nothing was trained: it would be in the way."""
        trainer: Trainer | None = getattr(self, "trainer", None)  # None: not even built
        if self.is_new and (self.temporary or not trainer or trainer.global_step == 0):
            shutil.rmtree(self.folder, ignore_errors=True)
        let_go(self.folder)


class Banner(Callback):
    """Says in three lines what is about to be trained.

    Args:
        cli: the command.
    """

    def __init__(self, cli: FitCLI) -> None:
        self.cli = cli

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print them."""
        if not trainer.is_global_zero:
            return
        cli = self.cli
        module, data = cli.model, cli.datamodule
        vocabularies = {module.tokenizer.src_vocab_size, module.tokenizer.tgt_vocab_size}
        learns = module.learned_parameters
        learned = f", {learns:,} of them learn," if module.frozen or module.lora.rank else ""
        origin = "".join(f"{line}\n" for line in module.origin)
        skipped = f" ({data.skipped:,} too long and skipped)" if data.skipped else ""
        print(
            f"{cli.name}: {data.src} -> {data.tgt}, {data.pairs:,} pairs{skipped}, vocabulary of "
            f"{' and '.join(f'{size:,}' for size in sorted(vocabularies))}\n"
            f"{module.model.count_parameters():,} parameters{learned} on {trainer.world_size} x "
            f"{module.device.type}, precision {trainer.precision}\n"
            f"{origin}{'resuming in' if cli.ckpt_path else 'writing to'} {cli.folder}",
            flush=True,
        )
