"""A parent, a bundle that other runs begin from, and the command that begins one."""

from pathlib import Path

from toys import recipe, sentences

from transformer.__main__ import main
from transformer.models import ModelConfig, RNNConfig, TransformerConfig

TRANSFORMER = {"d_model": 16, "d_ff": 32, "num_heads": 2, "num_layers": 2}
SHAPES: dict[str, ModelConfig] = {
    "three_way": TransformerConfig(**TRANSFORMER),  # type: ignore[arg-type]
    "two_way": TransformerConfig(**TRANSFORMER, tied="two_way"),  # type: ignore[arg-type]
    "untied": TransformerConfig(**TRANSFORMER, tied="none"),  # type: ignore[arg-type]
    "bias": TransformerConfig(**TRANSFORMER, output_bias=True),  # type: ignore[arg-type]
    "learned": TransformerConfig(**TRANSFORMER, positions="learned"),  # type: ignore[arg-type]
    "rnn": RNNConfig(d_model=16),
}


def parent_of_french(folder: Path) -> Path:
    """Trains a German–English bundle `old/bundle`; puts a French–English recipe beside it."""
    longer = ["--trainer.max_epochs=30", "--trainer.check_val_every_n_epoch=30"]
    assert run(recipe(folder), f"--run_dir={folder}/old", *longer, "--model.search.beam=1") == 0
    for split, size in (("train", 120), ("val", 12), ("test", 10)):
        pairs = [(de.replace("ei", "oi"), en) for de, en in sentences(size, seed=size)]
        for side, lines in zip(("fr", "en"), zip(*pairs, strict=True), strict=True):
            text = "".join(f"{line}\n" for line in lines)
            (folder / "corpus" / f"french-{split}.{side}").write_text(text)
    splits = [f"{split}: {folder}/corpus/french-{split}" for split in ("train", "val", "test")]
    (folder / "french.yaml").write_text(
        "model: {schedule: constant, learning_rate: 0.01, warmup_steps: 0, search: {beam: 1}}\n"
        f"data: {{{', '.join(splits)}, src: fr, tgt: en, cache: {folder}/cache, "
        "tokenizer: {vocab_size: 290}, max_length: 60, max_tokens: 200}\n"
        "trainer: {max_epochs: 2, accelerator: cpu}\n"
    )
    return folder


def run(config: Path, *args: str) -> int:
    quiet = ["--logger", "none", "--trainer.enable_progress_bar", "false"]
    return main(["fit", "--config", str(config), *quiet, *args])


def begin(folder: Path, out: Path, *args: str) -> int:
    options = [f"--model.init_from={folder}/old/bundle", f"--run_dir={out}", *args]
    return run(folder / "french.yaml", *options)


def gate(folder: Path, *options: str) -> list[str]:
    return [f"--parent.test={folder}/corpus/test", *options]
