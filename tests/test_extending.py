"""The additions of docs/extending.md, from outside the package: the page's code runs, and its results are used.

The backbone has a test of its own: tests/training/test_foreign_denoiser.py.
"""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import small_networks

import milonga
from milonga.core.audio import write_audio
from milonga.core.errors import RecipeError
from milonga.core.records import Clip
from milonga.maths.losses import LOSSES

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)


@pytest.fixture
def page(monkeypatch):
    """The names that the page's code defines; what it registers is removed afterwards."""
    from milonga.evaluation import metrics

    monkeypatch.setattr(metrics, "_REGISTRY", dict(metrics._REGISTRY))
    losses = dict(LOSSES)
    scope = {"__name__": "extending"}
    for block in BLOCKS:
        exec(compile(block, "docs/extending.md", "exec"), scope)
    yield scope
    LOSSES.clear()
    LOSSES.update(losses)


def test_a_loss_trains(page, tmp_path):
    pairs = milonga.build_pairs(
        ["a dog barks", "a bell rings"],
        model=small_networks.pipeline(),
        scorers=[page["Loudness"]()],
        strategies=[milonga.Strategy.perturbed(1, steps=2)],
        thresholds=[],
        out=tmp_path / "pairs",
    )
    config = milonga.AlignConfig(output_dir=tmp_path / "tuned", phases=["squared-hinge:1"], beta=100, batch_size=2)
    rows = []

    class Rows(milonga.TrainerCallback):
        def on_step(self, row):
            rows.append(row)

    milonga.AlignTrainer(small_networks.pipeline(), train_dataset=pairs, config=config, callbacks=[Rows()]).train()
    assert rows
    assert rows[0]["loss"] == pytest.approx(1.0, abs=1e-3)  # policy and reference agree before the first step


def test_a_metric_is_evaluated_by_name(page, tmp_path):
    rate, time = 16000, np.arange(16000) / 16000
    for name, level in [("a", 0.1), ("b", 0.5)]:
        write_audio(
            tmp_path / "clips" / f"{name}.wav", Clip((level * np.sin(440 * 2 * np.pi * time)).astype("f4"), rate)
        )
    result = milonga.evaluate(str(tmp_path / "clips"), metrics=["crest"])
    (summary,) = result.summaries
    assert summary.metric == "crest"
    assert summary.value == pytest.approx(20 * np.log10(np.sqrt(2)), abs=0.05)
    assert "Crest factor" in str(result)


def test_a_scorer_is_named_by_module_and_class(page, tmp_path, monkeypatch):
    code = next(block for block in BLOCKS if "class Loudness" in block)
    (tmp_path / "my_scorers.py").write_text(f"import numpy as np\n\n\n{code}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_scorers", raising=False)
    pairs = milonga.build_pairs(
        ["a dog barks"],
        model=small_networks.pipeline(),
        scorers=["my_scorers:Loudness"],
        strategies=[milonga.Strategy.same_prompt(steps=[2, 3])],
        thresholds=[milonga.Threshold("my_scorers:Loudness", min_margin=0.0)],
        rank_by="my_scorers:Loudness",
        out=tmp_path / "pairs",
    )
    (pair,) = pairs.pairs
    assert pair.chosen_scores["my_scorers:Loudness"] > pair.rejected_scores["my_scorers:Loudness"]


def test_two_scorers_of_one_name_are_refused(page, tmp_path):
    with pytest.raises(RecipeError, match="two scorers have one name"):
        milonga.build_pairs(
            ["a dog barks"],
            model=small_networks.pipeline(),
            scorers=[page["Loudness"](), page["Loudness"]()],
            strategies=[milonga.Strategy.same_prompt(steps=[2, 3])],
            thresholds=[],
            out=tmp_path / "pairs",
        )


def test_a_strategy_is_a_value(page, tmp_path):
    pairs = milonga.build_pairs(
        ["a dog barks"],
        model=small_networks.pipeline(),
        scorers=[page["Loudness"]()],
        strategies=[page["strong_guidance"]],
        thresholds=[],
        out=tmp_path / "pairs",
    )
    assert [pair.strategy for pair in pairs.pairs] == ["strong-guidance"]
