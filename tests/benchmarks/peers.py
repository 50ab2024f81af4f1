"""Who takes part, and the environment that each peer needs."""

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

#: The same torch for everybody: that of this environment.
TORCH = f"torch=={version('torch').split('+')[0]}"
#: Peer -> what is installed for it.
REQUIREMENTS = {
    "huggingface": [TORCH, "transformers==5.*", "numpy"],
    "joeynmt": [TORCH, "joeynmt==2.3.0", "importlib_metadata", "safetensors", "numpy"],
    "eole": [TORCH, "eole==0.6.*", "aiohttp", "numpy"],
    "ctranslate2": ["ctranslate2==4.8.*", "safetensors", "numpy"],
}


@dataclass(frozen=True)
class Entry:
    """A contestant in one kind of work.

    Args:
        module: its file in `contestants/`.
        settings: the variants in which it takes part; the best one counts.
        peer: the environment that it runs in; None for this one.
        on_gpu: whether it takes part there.
        on_cpu: the same for a CPU.
    """

    module: str
    settings: tuple[str, ...]
    peer: str | None = None
    on_gpu: bool = False
    on_cpu: bool = True

    @property
    def name(self) -> str:
        """What `--contestants` calls it."""
        return self.peer or self.module.replace("_", ".")


PLAIN = ("float32", "bf16")
TRAINING = (
    Entry("ours", ("default", *PLAIN)),
    Entry("ours", ("default+compile", "default", "float32"), on_gpu=True, on_cpu=False),
    Entry(
        "huggingface",
        (*PLAIN, "float32+compile", "bf16+compile"),
        peer="huggingface",
        on_gpu=True,
    ),
    Entry("torch_nn", PLAIN, on_gpu=True),
    Entry("joeynmt", ("float32",), peer="joeynmt"),
    Entry("eole", PLAIN, peer="eole"),
)
DECODING = (
    Entry("ours", ("default", "ctranslate2", "ctranslate2+int8")),
    Entry("ours", ("default",), on_gpu=True, on_cpu=False),
    Entry("huggingface_decode", PLAIN, peer="huggingface", on_gpu=True),
    Entry(
        "ctranslate2", ("float32", "float32+workers", "int8", "int8+workers"), peer="ctranslate2"
    ),
    Entry("joeynmt_decode", ("float32",), peer="joeynmt"),
)


class Unavailable(Exception):
    """A peer cannot take part; the message says why."""


@cache
def python_of(peer: str | None, bench: Path) -> tuple[str, str]:
    """The Python that has this peer; its environment is made, or tried, once.

    It is kept, and made anew when what is installed for it changes.

    Args:
        peer: a key of `REQUIREMENTS`, None for what runs in this environment.
        bench: the folder that holds the environments.

    Returns:
        The Python, and why there is none, of which one is empty.
    """
    if peer is None:
        return sys.executable, ""
    folder = bench / peer
    stamp, wanted = folder / ".stamp", "\n".join(REQUIREMENTS[peer])
    python = folder / "bin" / "python"
    if stamp.exists() and stamp.read_text() == wanted:
        return str(python), ""
    packages = " ".join(REQUIREMENTS[peer])
    print(f"Making the environment of {peer}, some minutes: {packages} in {folder}", flush=True)
    try:
        _call(sys.executable, "-m", "venv", "--clear", str(folder))
        _call(str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check",
              *REQUIREMENTS[peer])  # fmt: skip
    except Unavailable as reason:
        # Where nothing can be installed, what is there already may do.
        here = importlib.util.find_spec({"huggingface": "transformers"}.get(peer, peer))
        return (sys.executable, "") if here else ("", str(reason))
    stamp.write_text(wanted)  # last, so that what failed half-way is begun again
    return str(python), ""


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        errors = [line for line in lines if "ERROR" in line] or lines or ["no message"]
        raise Unavailable(f"its environment cannot be made: {errors[-1]}")
