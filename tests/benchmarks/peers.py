"""Who takes part, and the environment that each peer needs."""

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
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
    Entry("ours", ("default",), on_gpu=True),
    Entry("huggingface_decode", PLAIN, peer="huggingface", on_gpu=True),
    Entry(
        "ctranslate2", ("float32", "float32+workers", "int8", "int8+workers"), peer="ctranslate2"
    ),
    Entry("joeynmt_decode", ("float32",), peer="joeynmt"),
)


class Unavailable(Exception):
    """A peer cannot take part; the message says why."""


def python_of(peer: str | None, bench: Path) -> str:
    """The Python that has this peer; its environment is made where it is not there yet.

    Args:
        peer: a key of `REQUIREMENTS`, None for what runs in this environment.
        bench: the folder that holds the environments.

    Raises:
        Unavailable: when it cannot be made.
    """
    if peer is None:
        return sys.executable
    folder = bench / peer
    stamp, wanted = folder / ".stamp", "\n".join(REQUIREMENTS[peer])
    python = folder / "bin" / "python"
    if stamp.exists() and stamp.read_text() == wanted:
        return str(python)
    print(f"Setting up {peer} in {folder}: {' '.join(REQUIREMENTS[peer])}", flush=True)
    try:
        _call(sys.executable, "-m", "venv", "--clear", str(folder))
        _call(str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check",
              *REQUIREMENTS[peer])  # fmt: skip
    except Unavailable:
        # Where nothing can be installed, what is there already may do.
        if importlib.util.find_spec({"huggingface": "transformers"}.get(peer, peer)):
            return sys.executable
        raise
    stamp.write_text(wanted)  # last, so that what failed half-way is begun again
    return str(python)


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        errors = [line for line in lines if "ERROR" in line] or lines or ["no message"]
        raise Unavailable(f"its environment cannot be made: {errors[-1]}")
