"""What `transformer serve` can be told."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

from transformer.errors import UserError
from transformer.inference.engines import EngineName
from transformer.kernels import Precision


@dataclass(frozen=True)
class Options:
    """What is served, where, and what is refused.

    Args:
        bundles: Folders that `transformer fit` or `transformer average` wrote, or `org/name` of the
            hub. Requests ask for one by the folder's name; of `run/bundle` it is that of the run.
        host: Address to listen at; 0.0.0.0 lets other machines in.
        port: Port to listen at; 0 takes a free one.
        max_tokens: Source tokens that are decoded together, times the beams of each.
        max_waiting: Source tokens that may wait, times the beams of each; what comes beyond is
            refused with the time to come again (429).
        max_body: Bytes of the longest request; longer ones are refused (413).
        max_length: Longest line, in tokens; the longest of the training if left out.
        device: auto, cpu, cuda, cuda:1, mps.
        precision: auto is bfloat16 on a GPU that computes in it, float32 elsewhere; int8 and its
            like are those of --engine ctranslate2.
        engine: What searches: torch is this package's own search; ctranslate2 must be installed.
    """

    bundles: Sequence[str]
    _: KW_ONLY
    host: str = "127.0.0.1"
    port: int = 8000
    max_tokens: int = 16_384
    max_waiting: int = 262_144
    max_body: int = 262_144
    max_length: int | None = None
    device: str = "auto"
    precision: Precision = "auto"
    engine: EngineName = "torch"

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_waiting", "max_body"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}: it must be 1 or more")
