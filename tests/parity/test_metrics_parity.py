"""Fréchet distance, KL and inception score against numbers recorded from the original AudioLDM toolkit."""

import json
import math
from typing import Any

import numpy as np
import pytest
import reference

from milonga.core.errors import DataError
from milonga.maths.metrics import frechet_distance, inception_score, kl_softmax

FOLDER = reference.EVALUATION
NUMBERS = FOLDER / "functions.json"

pytestmark = reference.needed(NUMBERS)


@pytest.fixture(scope="module")
def numbers() -> dict[str, Any]:
    return json.loads(NUMBERS.read_text())


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "functions.npz") as file:
        return dict(file)


def cases(numbers: dict[str, Any], kind: str) -> list[str]:
    found = sorted(name for name in numbers if name.startswith(f"{kind}/"))
    assert found
    return found


@pytest.mark.parametrize("key", ["fd", "fad", "exact_float64"])
def test_frechet_distances_are_the_recorded_ones(
    key: str, numbers: dict[str, Any], arrays: dict[str, np.ndarray]
) -> None:
    for case in cases(numbers, "fd"):
        distance = frechet_distance(arrays[f"{case}/gen"], arrays[f"{case}/ref"])
        assert distance == pytest.approx(numbers[case][key], rel=1e-6, abs=1e-6), case


def test_kl_divergences_are_the_recorded_ones(numbers: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    for case in cases(numbers, "logits"):
        # The reference rows are stored in another order than the generated ones: pair them by clip.
        reference = np.empty_like(arrays[f"{case}/ref"])
        reference[arrays[f"{case}/ref_names_idx"]] = arrays[f"{case}/ref"]
        divergence = kl_softmax(reference, arrays[f"{case}/gen"]).mean()
        recorded = numbers[case]["kullback_leibler_divergence_softmax"]
        assert divergence == pytest.approx(recorded, rel=1e-6), case


def test_inception_scores_are_the_recorded_ones(numbers: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    for case in cases(numbers, "logits"):
        logits = arrays[f"{case}/gen"]
        recorded = numbers[case]
        assert inception_score(logits, splits=1)[0] == pytest.approx(recorded["is_splits1_mean"], rel=1e-9), case
        if math.isnan(recorded["inception_score_mean"]):  # fewer clips than splits: ours says so
            with pytest.raises(DataError, match="splits"):
                inception_score(logits)
            continue
        mean, deviation = inception_score(logits)
        assert mean == pytest.approx(recorded["inception_score_mean"], rel=1e-9), case
        assert deviation == pytest.approx(recorded["inception_score_std"], rel=1e-7), case
