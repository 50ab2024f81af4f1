"""A Marian model as Hugging Face's library computes it: the other side of the parity gate."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from transformer.data.tokenizer import BOS, EOS, PAD, UNK
from transformer.errors import UserError, message
from transformer.inference.batches import pad
from transformer.interop import needs
from transformer.interop.gate import Ids, Side

TARGET = "target"  # subfolder of the target's tokenizer, where it has one of its own


class MarianSide(Side):
    """A folder of Hugging Face, as its own library computes.

    Args:
        folder: of the model.
        ids: its id for each of the bundle's.
        code: what stands before a source sentence and names the language to translate into.
        never: ids that are not written, and have no share in the probabilities: `<pad>` by the
            generation settings of OPUS-MT (`bad_words_ids`, `renormalize_logits`).
    """

    name = "Hugging Face"

    def __init__(self, folder: Path, ids: Ids, code: str = "", never: Sequence[int] = ()) -> None:
        library = needs("transformers", "hf")
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
        options = {"local_files_only": True, "trust_remote_code": False}
        read = library.AutoTokenizer.from_pretrained
        try:
            self.tokenizer = self.tgt_tokenizer = read(folder, **options)
            if (folder / TARGET).is_dir():
                self.tgt_tokenizer = read(folder, subfolder=TARGET, **options)
            model = library.AutoModelForSeq2SeqLM.from_pretrained(
                folder, dtype=torch.float32, **options
            )
        except Exception as error:  # it has many kinds for files that do not fit it
            raise UserError(
                f"{folder} cannot be read by transformers ({message(error)}): copy its files again"
            ) from error
        self.model, self.code, self.ids = model.eval(), code, ids
        self.ours = {theirs: ours for ours, theirs in enumerate(ids)}
        model.generation_config = library.GenerationConfig(
            pad_token_id=ids[PAD],
            eos_token_id=ids[EOS],
            decoder_start_token_id=ids[BOS],
            bad_words_ids=[[token] for token in never] or None,
            renormalize_logits=True,
            length_penalty=0.0,
        )

    def encode(self, lines: list[str]) -> list[Ids]:
        texts = [self.code + line for line in lines]
        found = self.tokenizer(texts, split_special_tokens=True)["input_ids"]
        # Marian alone takes unknown characters that spell a special token for it, such as `</s>`.
        special = {self.ids[token] for token in (PAD, BOS, EOS)}
        return [
            [*(UNK if token in special else self.ours[token] for token in row[:-1]), EOS]
            for row in found
        ]

    def search(self, src: list[Ids], beam: int, limit: int) -> list[Ids]:
        options = {"num_beams": beam, "early_stopping": beam > 1, "max_new_tokens": limit}
        with torch.inference_mode():
            found = self.model.generate(**self._source(src), do_sample=False, **options)
        rows = ([self.ours[token] for token in row[1:]] for row in found.tolist())
        return [row[: row.index(EOS)] if EOS in row else row for row in rows]

    @torch.inference_mode()
    def logits(self, src: list[Ids], tgt: list[Ids]) -> Tensor:
        tgt_in, _ = pad(
            [[self.ids[token] for token in (BOS, *row)] for row in tgt], value=self.ids[PAD]
        )
        logits: Tensor = self.model(**self._source(src), decoder_input_ids=tgt_in).logits
        return logits[:, :, [token for token in self.ids if token < logits.size(2)]]

    def decode(self, ids: list[Ids]) -> list[str]:
        theirs = [[self.ids[token] for token in row] for row in ids]
        texts: list[str] = self.tgt_tokenizer.batch_decode(theirs, skip_special_tokens=True)
        return texts

    def _source(self, src: list[Ids]) -> dict[str, Tensor]:
        rows = [[self.ids[token] for token in row] for row in src]
        ids, lengths = pad(rows, value=self.ids[PAD])
        return {"input_ids": ids, "attention_mask": torch.arange(ids.size(1)) < lengths[:, None]}
