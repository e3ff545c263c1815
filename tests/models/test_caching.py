"""Deep features kept: how often they are computed, and that nothing stays behind."""

from typing import Any

import numpy as np
import pytest
import small_networks

from milonga.models.caching import deep_features_kept

USUAL: dict[str, Any] = {"prompt": "a dog barks", "seeds": [1], "num_inference_steps": 5}


def test_deep_blocks_run_in_every_nth_step_and_the_outer_ones_in_all() -> None:
    pipeline, deep, outer = small_networks.pipeline(), [], []
    before = pipeline(**USUAL).audios
    pipeline.unet.mid_block.resnets[0].register_forward_hook(lambda *_: deep.append(1))
    pipeline.unet.up_blocks[-1].resnets[0].register_forward_hook(lambda *_: outer.append(1))
    with deep_features_kept(pipeline.unet, every=2):
        kept = pipeline(**USUAL).audios
    assert (len(deep), len(outer)) == (3, 5)
    assert np.abs(kept - before).max() > 1e-4
    assert np.array_equal(pipeline(**USUAL).audios, before)
    assert len(deep) == 8


def test_every_step_is_the_plain_loop_and_a_new_batch_computes_anew() -> None:
    pipeline = small_networks.pipeline()
    before = pipeline(**USUAL).audios
    with deep_features_kept(pipeline.unet, every=1):
        assert np.array_equal(pipeline(**USUAL).audios, before)
    with deep_features_kept(pipeline.unet, every=3):
        assert pipeline(**USUAL, guidance_interval=(0.0, 0.5)).audios.shape == before.shape
    with pytest.raises(ValueError, match="at least 1"), deep_features_kept(pipeline.unet, every=0):
        pass


def test_a_generation_does_not_begin_with_what_another_left() -> None:
    pipeline = small_networks.pipeline()
    with deep_features_kept(pipeline.unet, every=2):
        alone = pipeline(**USUAL).audios  # five steps: the next call would be one of those that compute nothing
    with deep_features_kept(pipeline.unet, every=2):
        pipeline(**USUAL | {"prompt": "a bell rings", "seeds": [2]})
        after = pipeline(**USUAL).audios
    assert np.array_equal(after, alone)
