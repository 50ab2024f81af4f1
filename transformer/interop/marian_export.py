"""Bundles become Marian models of Hugging Face."""

from pathlib import Path

from safetensors.torch import save_file

from transformer.bundle import Bundle, load_bundle
from transformer.data.tokenizer import BOS, EOS, PAD
from transformer.errors import UserError
from transformer.inference.search import SearchConfig, search_of
from transformer.interop import needs
from transformer.interop.gate import BundleSide, compare, passed
from transformer.interop.marian_config import config_of
from transformer.interop.marian_side import TARGET, MarianSide
from transformer.interop.marian_weights import weights_of
from transformer.interop.sentencepiece import code_of, write_hf_tokenizer
from transformer.models import Transformer
from transformer.writing import whole_folder

ROOM = 1024  # positions, at least
SPECIAL = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS,
           "decoder_start_token_id": BOS}  # fmt: skip
README = """# {src} → {tgt}

Exported from a bundle of transformer-recipes, as a Marian model of Hugging Face. `parity.json` says
how its translations were compared with the bundle's.

```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

model = AutoModelForSeq2SeqLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
ids = model.generate(**tokenizer(["{code}..."], return_tensors="pt", padding=True))
print({target}.batch_decode(ids, skip_special_tokens=True))
```

{notes}
"""


def export_hf(bundle: str, folder: str) -> None:
    """Writes a folder that `AutoModelForSeq2SeqLM` and `AutoTokenizer` of Hugging Face load.

    Args:
        bundle: Folder of the bundle, or org/name of the hub.
        folder: Folder to write, which must not exist.

    Raises:
        UserError: Marian's models are not like this one, or the two do not translate alike.
    """
    library = needs("transformers", "hf")
    given = load_bundle(bundle)
    if not isinstance(given.model, Transformer):
        raise UserError(
            f"{bundle}: architecture is {given.config['architecture']}: such a model cannot be "
            "exported to Hugging Face, as Marian's models are Transformers"
        )
    sizes = given.tokenizer.src_vocab_size, given.tokenizer.tgt_vocab_size
    shape = config_of(given.model.config, sizes)
    search = search_of(given.config, bundle)
    longest = given.config["max_length"]
    room = max(ROOM, longest + search.max_extra)
    with whole_folder(Path(folder)) as growing:
        library.MarianConfig(
            **shape,
            **SPECIAL,
            forced_eos_token_id=None,
            max_position_embeddings=room,
            architectures=["MarianMTModel"],
        ).save_pretrained(growing)
        library.GenerationConfig(
            **SPECIAL,
            num_beams=search.beam,
            # It has `power` alone: `gnmt` becomes that with the same exponent, which ranks
            # hypotheses of different lengths a little differently.
            length_penalty=0.0 if search.length_norm == "none" else search.alpha,
            early_stopping=search.beam > 1,
            no_repeat_ngram_size=search.no_repeat_ngram,
            max_length=longest + search.max_extra,
        ).save_pretrained(growing)
        save_file(weights_of(given.model), growing / "model.safetensors", metadata={"format": "pt"})
        write_hf_tokenizer(given.tokenizer, growing, longest)
        card = _card(given, Path(folder).name, search, (growing / TARGET).exists())
        (growing / "README.md").write_text(card, encoding="utf-8")
        code = code_of(given.tokenizer, given.config["tgt"])
        theirs = MarianSide(growing, [*range(max(sizes))], code)
        passed(compare(BundleSide(given), theirs), growing)


def _card(bundle: Bundle, name: str, search: SearchConfig, two_vocabularies: bool) -> str:
    """The README.md of the export."""
    target = "tokenizer"
    if two_vocabularies:
        target = f'AutoTokenizer.from_pretrained("{name}", subfolder="target")'
    code = code_of(bundle.tokenizer, bundle.config["tgt"])
    lines = [f"Sources have at most {bundle.config['max_length']} tokens."]
    if bundle.tokenizer.tags:
        codes = ", ".join(f"`{code_of(bundle.tokenizer, tag)}`" for tag in bundle.tokenizer.tags)
        lines.append(f"What stands before a source says into which language: {codes}.")
    if search.length_norm == "gnmt" and search.beam > 1:
        lines.append(
            f"Beams are ranked by log-probability / length^{search.alpha}; the bundle divides by "
            f"((5 + length) / 6)^{search.alpha}, which Hugging Face does not have."
        )
    src, tgt = bundle.config["src"], bundle.config["tgt"]
    notes = "\n".join(f"- {line}" for line in lines)
    return README.format(src=src, tgt=tgt, name=name, code=code, target=target, notes=notes)
