"""Strange lines at each validation, and the shares of flaws among their translations."""

from pathlib import Path

import pytest
from toys import FixedData, module, trainer

from transformer.inference.guard import flaw_rates, probes
from transformer.inference.translator import Translator
from transformer.training.logging import TrainingLog


def test_probes_are_strange_and_fit() -> None:
    data = FixedData([4], [40])
    sources, targets = data.texts("val")
    found = probes(data.tokenizer.encode_src, sources, targets, 60)
    assert found == probes(data.tokenizer.encode_src, sources, targets, 60)
    lines = [line for kind in found.values() for line in kind]
    assert 40 <= len(lines) <= 55
    lengths = [len(ids) for ids in data.tokenizer.encode_src(lines)]
    assert max(lengths) <= 60
    assert all(len(ids) > 30 for ids in data.tokenizer.encode_src(found["long"]))
    assert all(word in sources[0] or " " not in word for word in found["word"])
    assert all(line.isupper() for line in found["capitals"])
    assert found["empty"] == ["", " "]
    assert not any(c.isalnum() for line in found["punctuation"] for c in line)
    assert not any(c.isalpha() for line in found["digits"] for c in line)
    assert set(found["wrong language"]) <= set(targets)
    short = probes(data.tokenizer.encode_src, sources, targets, 6)
    kept = [line for kind in short.values() for line in kind]
    assert kept and max(len(ids) for ids in data.tokenizer.encode_src(kept)) <= 6
    few = probes(data.tokenizer.encode_src, ["我是学生。"], ["I am a student."], 512)
    assert {kind: len(lines) for kind, lines in few.items()} == {
        "word": 1, "capitals": 1, "digits": 8, "punctuation": 8, "empty": 2, "long": 1,
        "wrong language": 1,
    }  # fmt: skip


def test_shares_of_flaws_are_logged_at_validation(tmp_path: Path) -> None:
    log, data, model = TrainingLog(), FixedData([3], [3]), module(probes=True)
    run = trainer(tmp_path, log, max_epochs=1)
    run.fit(model, datamodule=data)
    kinds = probes(data.tokenizer.encode_src, *data.texts("val"), 60)
    translator = Translator(model.model, data.tokenizer, model.search_config)
    found = translator.checked([line for lines in kinds.values() for line in lines])
    rates = flaw_rates([line.verdict.flaw for line in found])
    assert sum(rates.values()) > 0.5  # nothing has been learned yet
    assert {key: model.scorer.scores[key] for key in rates} == rates
    assert {key: log.latest[f"val/{key}"] for key in rates} == rates
    assert {key: run.callback_metrics[f"val/{key}"].item() for key in rates} == pytest.approx(rates)


def test_without_probes_nothing_is_added(tmp_path: Path) -> None:
    model = module()
    trainer(tmp_path, TrainingLog(), max_epochs=1).fit(model, datamodule=FixedData([3], [3]))
    assert not [key for key in model.scorer.scores if key.endswith("_rate")]
