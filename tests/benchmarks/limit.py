"""What the machine could do at most: the model's arithmetic, and the rate of matrix products."""

import json
import subprocess
import sys
import time
from typing import Any

import numpy as np

from .arena import environment
from .worker import Batch, Ints, Workload

SECONDS = 1.0  # of matrix products in each precision
SIZE = {"cpu": 2048, "cuda": 8192}


def flops_per_token(workload: Workload, shape: dict[str, Any]) -> float:
    """Floating point operations of a training step for each real token, both sides counted.

    Six for each multiply-accumulate of a matrix product: two forward, four backward. Products of
    padding are left out, and the half of the decoder's own scores that is masked.
    """
    work = sum(products(batch, shape) for batch in workload.train)
    return 6 * work / sum(batch.src_tokens + batch.tgt_tokens for batch in workload.train)


def products(batch: Batch, shape: dict[str, Any]) -> float:
    """Multiply-accumulates of the forward pass of a batch, without padding."""
    d, d_ff, layers = shape["d_model"], shape["d_ff"], shape["num_layers"]
    s, t = batch.src_lengths.astype(float), batch.tgt_lengths.astype(float)
    src, tgt = s.sum(), t.sum()
    encoder = src * (4 * d * d + 2 * d * d_ff) + 2 * d * (s * s).sum()
    decoder = tgt * (6 * d * d + 2 * d * d_ff) + src * 2 * d * d
    scores = 2 * d * (t * (t + 1) / 2 + t * s).sum()
    return float(layers * (encoder + decoder + scores) + tgt * d * shape["vocab"])


def measure(device: str, threads: int) -> dict[str, float]:
    """Matrix products in FLOP per second, by a process of its own, which takes some seconds.

    Returns:
        The rate in float32, and in bfloat16 where the device computes in it.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.limit", device], env=environment(threads), text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    rates: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return rates


def padding_share(batches: list[Batch]) -> float:
    """The share of the tensors' places that hold no token."""
    cells = sum(batch.src.size + batch.tgt_out.size for batch in batches)
    real: Ints = np.array([batch.src_tokens + batch.tgt_tokens for batch in batches])
    return 1 - float(real.sum()) / cells


def rates(device: str) -> dict[str, float]:
    """The same in this process."""
    import torch

    from transformer.kernels import has_bfloat16

    size, rates = SIZE[device], {}
    for dtype in (torch.float32, torch.bfloat16)[: 1 + has_bfloat16(device)]:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        seconds: list[float] = []
        while not seconds or sum(seconds) < SECONDS:
            start = time.perf_counter()
            a @ b
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        rates[str(dtype).removeprefix("torch.")] = 2 * size**3 / min(seconds)
    return rates


if __name__ == "__main__":
    print(json.dumps(rates(sys.argv[1])))
