"""CTranslate2: decoding. Settings: `float32` and `int8`, each also with `+workers`.

The plain settings have one translator with all threads, those with workers as many translators as
threads, with one thread each. Length normalisation is length^alpha, called `power` here.
"""

import time
from tempfile import TemporaryDirectory
from typing import Any

import ctranslate2
from ctranslate2.specs import TransformerSpec

from ..worker import Handlers, Workload, run, translated
from .weights import Arrays, Bundle, read_bundle, sinusoids


def build(job: dict[str, Any]) -> tuple[Handlers, dict[str, Any]]:
    workload, bundle = Workload(job["workload"]), read_bundle(job["bundle"])
    compute, _, spread = job["setting"].partition("+")
    threads = {"inter_threads": job["threads"], "intra_threads": 1}
    if not spread:
        threads = {"inter_threads": 1, "intra_threads": job["threads"]}
    with TemporaryDirectory() as folder:
        specification(bundle, workload).save(folder)
        translator = ctranslate2.Translator(
            folder, device=job["device"], compute_type=compute, **threads
        )

    def translate(command: dict[str, Any]) -> dict[str, Any]:
        src = workload.test_src[: command["sentences"]]
        start = time.perf_counter()
        # It sorts by length itself.
        results = translator.translate_batch(
            [[str(id_) for id_ in row] for row in src],
            max_batch_size=command["batch"],
            beam_size=job["beam"],
            length_penalty=job["alpha"],
            max_decoding_length=max(map(len, src)) + job["max_extra"],
        )
        found = [[int(token) for token in result.hypotheses[0]] for result in results]
        return translated(time.perf_counter() - start, src, found)

    said = f"{compute}, {threads['inter_threads']} x {threads['intra_threads']} threads"
    return {"translate": translate}, {
        "versions": {"ctranslate2": ctranslate2.__version__},
        "parameters": bundle.embedding.size + sum(array.size for array in bundle.layers.values()),
        "setting": f"{said}, length^{job['alpha']}",
    }


def specification(bundle: Bundle, workload: Workload) -> TransformerSpec:
    """The bundle as CTranslate2's model. A token's name is its id."""
    network = bundle.network
    spec = TransformerSpec.from_config(network["num_layers"], network["num_heads"], pre_norm=False)
    positions = sinusoids(2048, network["d_model"])
    spec.encoder.embeddings[0].weight = spec.decoder.embeddings.weight = bundle.embedding
    spec.decoder.projection.weight = bundle.embedding
    spec.encoder.position_encodings.encodings = positions
    spec.decoder.position_encodings.encodings = positions
    for stack in ("encoder", "decoder"):
        for index, layer in enumerate(getattr(spec, stack).layer):
            fill(layer, bundle.layers, f"{stack}.{index}.")
    names = [str(id_) for id_ in range(workload.vocab)]
    spec.register_source_vocabulary(names)
    spec.register_target_vocabulary(names)
    config = spec.config
    config.bos_token = config.decoder_start_token = names[workload.bos]
    config.eos_token, config.unk_token = names[workload.eos], names[workload.unk]
    spec.validate()
    spec.optimize(quantization=None)
    return spec


def fill(layer: Any, arrays: Arrays, prefix: str) -> None:
    """Copy the weights of one layer."""

    def linear(spec: Any, name: str, rows: slice = slice(None)) -> None:
        spec.weight = arrays[f"{prefix}{name}.weight"][rows]
        spec.bias = arrays[f"{prefix}{name}.bias"][rows]

    def norm(spec: Any, place: int) -> None:
        spec.gamma = arrays[f"{prefix}residuals.{place}.norm.weight"]
        spec.beta = arrays[f"{prefix}residuals.{place}.norm.bias"]

    linear(layer.self_attention.linear[0], "self_attention.input_projection")
    linear(layer.self_attention.linear[1], "self_attention.output_projection")
    norm(layer.self_attention.layer_norm, 0)
    if hasattr(layer, "attention"):
        queries = len(arrays[f"{prefix}self_attention.output_projection.weight"])
        linear(layer.attention.linear[0], "cross_attention.input_projection", slice(queries))
        linear(layer.attention.linear[1], "cross_attention.input_projection", slice(queries, None))
        linear(layer.attention.linear[2], "cross_attention.output_projection")
        norm(layer.attention.layer_norm, 1)
    linear(layer.ffn.linear_0, "feed_forward.inner")
    linear(layer.ffn.linear_1, "feed_forward.outer")
    norm(layer.ffn.layer_norm, 2 if hasattr(layer, "attention") else 1)


if __name__ == "__main__":
    run(build)
