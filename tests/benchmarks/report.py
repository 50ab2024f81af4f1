"""What was measured, as Markdown."""

import platform
from pathlib import Path
from typing import Any

import torch

from .arena import cores

NAMES = {
    "ours": "this package",
    "huggingface": "Hugging Face",
    "huggingface_decode": "Hugging Face",
    "torch_nn": "torch.nn.Transformer",
    "joeynmt": "JoeyNMT",
    "joeynmt_decode": "JoeyNMT",
    "eole": "eole",
    "ctranslate2": "CTranslate2",
}


def machine(device: str, threads: int) -> dict[str, Any]:
    """What it runs on."""
    found: dict[str, Any] = {
        "cpu": _cpu("model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "amx": "amx_bf16" in _cpu("flags").split(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    return {**found, "gpu": torch.cuda.get_device_name()} if device == "cuda" else found


def heading(results: dict[str, Any]) -> str:
    """Machine, workload and command."""
    on, text = results["machine"], results["workload"]
    where = f"{on['cpu']}, {on['cores']} cores, AMX {'yes' if on['amx'] else 'no'}"
    gpu = f"{on['gpu']}; " if "gpu" in on else ""
    return (
        f"Machine: {gpu}{where}; {on['threads']} threads each; {on['system']}, "
        f"Python {on['python']}\n"
        f"Workload: {text['corpus']}, vocabulary {text['vocab']:,}, batches of "
        f"{text['max_tokens']:,} tokens a side, of which {text['padding']:.1%} are padding\n"
        f"Command: `{results['command']}`"
    )


def training(result: dict[str, Any]) -> str:
    """Table, ratios and the share of the limit."""
    shape = result["shape"]
    title = (
        f"## Training, {shape['name']} (d_model {shape['d_model']}, {shape['num_layers']}+"
        f"{shape['num_layers']} layers)\n\nMedians of {result['rounds']} rounds of "
        f"{result['steps']} steps, in brackets lowest to highest; tokens of both sides without "
        "padding."
    )
    columns = ["contestant", "setting", "tokens/s", "ours is", "ms/step", "peak MiB", "parameters"]
    rows = []
    for row in result["rows"]:
        if "problem" in row:
            rows.append(_missing(row, len(columns)))
            continue
        rows.append([
            NAMES[row["name"]], row["setting"], _rate(row["rate"]), _times(row),
            f"{row['ms']:,.0f}", f"{row['peak_mib']:,.0f}", f"{row['parameters'] / 1e6:.2f} M",
        ])  # fmt: skip
    lines = [title, _table(columns, rows), *_against_best(result["rows"]), _limit(result)]
    return "\n\n".join(line for line in lines if line)


def racing(result: dict[str, Any]) -> str:
    """Time to a given validation loss."""
    rows = []
    for row in result["rows"]:
        known = not row["problem"] and row["nll"] is not None
        took = f"{row['seconds']:,.0f}" if row["reached"] else "not reached"
        rows.append([
            NAMES[row["name"]], row["setting"], took if known else row["problem"],
            f"{row['steps']:,}", f"{row['nll']:.3f}" if known else "",
        ])  # fmt: skip
    columns = ["contestant", "setting", "seconds of training", "steps", "NLL"]
    title = (
        f"## Time to a validation loss of {result['target']} nats a token, tiny\n\n"
        f"Validated every {result['portion']} steps."
    )
    return f"{title}\n\n{_table(columns, rows)}"


def decoding(result: dict[str, Any]) -> str:
    """Table and ratios."""
    columns = ["contestant", "setting", "target tokens/s", "ours is", "batch", "same", "BLEU",
               "peak MiB"]  # fmt: skip
    rows = []
    for row in result["rows"]:
        if "problem" in row:
            rows.append(_missing(row, len(columns)))
            continue
        same, bleu = (f"{row['same']:.1%}", f"{row['bleu']:.2f}") if "same" in row else ("", "")
        rows.append([
            NAMES[row["name"]], row["setting"], _rate(row["rate"]), _times(row), str(row["batch"]),
            same, bleu, f"{row['peak_mib']:,.0f}",
        ])  # fmt: skip
    title = (
        "## Decoding, tiny, beam 5\n\nEach with its best batch of "
        f"{', '.join(map(str, result['batches']))} sentences, ours with those it makes itself; "
        "`same`: share of the translations that are ours, too."
    )
    return "\n\n".join([title, _table(columns, rows), *_against_best(result["rows"])])


def waiting(result: dict[str, Any]) -> str:
    """Latency of one sentence."""
    rows = []
    for row in result["rows"]:
        if "problem" in row:
            rows.append(_missing(row, 4))
            continue
        ms = 1e3 / row["rate"]["median"]
        share = f"{1 / row['ours_over_it']['median']:.2f}" if row["ours_over_it"] else ""
        rows.append([NAMES[row["name"]], row["setting"], f"{ms:.1f}", share])
    title = (
        f"## One sentence of {result['tokens']} tokens, warm, tiny, beam 5\n\nMedians of "
        f"{result['rounds']} rounds, each the median of {result['repeats']} translations."
    )
    return f"{title}\n\n{_table(['contestant', 'setting', 'ms', 'our share of that'], rows)}"


def starting(result: dict[str, Any]) -> str:
    """Start-up."""
    rows = [
        ["`transformer --help`", _seconds(result["help"]), ""],
        ["`transformer translate <bundle> <sentence>`", _seconds(result["translate"]),
         _spread(result["ratio"])],
        ["import of torch and reading the weights", _seconds(result["least"]), "1"],
    ]  # fmt: skip
    return f"## Start-up, tiny\n\n{_table(['command', 'seconds', 'ratio'], rows)}"


def feeding(result: dict[str, Any]) -> str:
    """The input pipeline."""
    return (
        "## Input pipeline, tiny\n\n"
        f"A batch takes {1e3 * result['seconds']:.2f} ms from the memory-mapped corpus to the "
        f"model, a training step {1e3 * result['step']:.0f} ms: {result['share']:.2%}."
    )


def sharing(result: dict[str, Any]) -> str:
    """Processes beside threads."""
    rows = [[name, _rate(result[name])] for name in ("two threads", "two processes")]
    rows.append(["processes over threads", _spread(result["ratio"])])
    title = "## Two DDP processes with one thread each, one process with two threads, tiny"
    return f"{title}\n\n{_table(['', 'tokens/s'], rows)}"


def growing(result: dict[str, Any]) -> str:
    """One line for each axis; the slope from the second last value to the last is the steepest."""
    rows = [
        [
            task, axis, ", ".join(f"{value:,}" for value in found["values"]),
            ", ".join(f"{1e3 * seconds:,.0f}" for seconds in found["seconds"]),
            ", ".join(f"{slope:.2f}" for slope in found["slopes"]),
        ]
        for task in ("training", "decoding")
        for axis, found in result[task].items()
    ]  # fmt: skip
    columns = ["", "what grows", "values", "ms", "slopes between neighbours (1 is linear)"]
    title = (
        f"## How cost grows, tiny, {result['precision']}\n\nMedians of {result['repeats']} rounds. "
        "Where nothing else is said: 32 tokens a sentence, vocabulary 10,000, 4,096 tokens a "
        "batch, beam 5, 16 sentences decoded."
    )
    return f"{title}\n\n{_table(columns, rows)}"


def versions(results: dict[str, Any]) -> str:
    """Of everything that took part."""
    found: dict[str, str] = {}
    for part in results.values():
        for row in part.get("rows", []) if isinstance(part, dict) else []:
            found |= row.get("versions", {})
    return f"Versions: {', '.join(f'{name} {number}' for name, number in sorted(found.items()))}"


def best(rows: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """The fastest setting of a contestant."""
    measured = [row for row in rows if row["name"] == name and "problem" not in row]
    return max(measured, key=lambda row: row["rate"]["median"], default=None)


def _against_best(rows: list[dict[str, Any]]) -> list[str]:
    """One line for each peer: what we are beside its best setting."""
    if "problem" in rows[0]:
        return []
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        row = best(rows, name)
        if name == "ours" or row is None or not row["ours_over_it"]:
            continue
        memory = rows[0]["peak_mib"] / row["peak_mib"]
        lines.append(
            f"- beside {NAMES[name]}'s best ({row['setting']}): {_spread(row['ours_over_it'])} "
            f"times as fast, {memory:.2f} times the memory"
        )
    return ["\n".join(lines)] if lines else []


def _limit(result: dict[str, Any]) -> str:
    ours = result["rows"][0]
    if "problem" in ours:
        return ""
    shares = ", ".join(
        f"{ours['flops'] / rate:.1%} of {rate / 1e12:.2f} TFLOP/s in {name}"
        for name, rate in result["limit"].items()
    )
    return (
        f"Limit: {result['flops_per_token'] / 1e6:.1f} MFLOP a token; {NAMES['ours']} makes "
        f"{ours['flops'] / 1e12:.3f} TFLOP/s, which is {shares} (large matrix products, measured "
        "in the same run)."
    )


def _missing(row: dict[str, Any], columns: int) -> list[str]:
    problem = row["problem"].replace("|", "/")
    return [NAMES[row["name"]], row["key"], f"not measured: {problem}", *[""] * (columns - 3)]


def _rate(rate: dict[str, float]) -> str:
    return f"{rate['median']:,.0f} ({rate['min']:,.0f}–{rate['max']:,.0f})"


def _times(row: dict[str, Any]) -> str:
    return _spread(row["ours_over_it"]) + " x" if row["ours_over_it"] else ""


def _spread(value: dict[str, float]) -> str:
    return f"{value['median']:.2f} ({value['min']:.2f}–{value['max']:.2f})"


def _seconds(value: dict[str, float]) -> str:
    return _spread(value)


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cpu(field: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")
