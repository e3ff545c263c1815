"""Training of nano's base model: latent diffusion on the world's clips (Eq. 4) with captions that are sometimes wrong.

Order is learnt because of a schedule with zero terminal SNR, timesteps biased to high noise, and a frozen text encoder
that knows order. As in real corpora some captions are wrong, which leaves alignment something to improve: they have
another order, omit a sound, or name another. Those shares are the one knob of the base's difficulty; `docs/nano.md`
says how they were chosen. Captions are dropped for guidance, which the released Tango did not do.
"""

from typing import Any

from milonga.core.ids import derive_seed
from milonga.nano.build.corpus import Corpus, step_rng
from milonga.nano.build.text import replaced, swapped, without_one
from milonga.nano.captions import caption_in

UNET: dict[str, Any] = {
    "sample_size": [32, 8],
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": [64, 96, 128],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "cross_attention_dim": 128,
    "attention_head_dim": [2, 4, 4],
    "norm_num_groups": 16,
    "use_linear_projection": True,
}
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
}
CLIPS = 22000
EPOCHS = 4
SETTINGS: dict[str, Any] = {
    "batch_size": 16,
    "learning_rate": 7e-4,
    "warmup_steps": 100,
    "timesteps": "biased",
    "ema": 0.995,
    "caption_dropout": 0.1,
    "checkpoint_every": 250,
}
# The shares of wrong captions: another order (of sequences), a sound left out (of two or more), another sound.
WRONG_ORDER, LEFT_OUT, WRONG_SOUND = 0.2, 0.06, 0.03


def noisy_caption(corpus: Corpus, seed: int, index: int, epoch: int) -> str:
    """A clip's caption for one epoch, as by an annotator who sometimes errs."""
    rng = step_rng(seed, "remembered", derive_seed(index, epoch))
    scene, counts, chance = corpus.scenes[index], corpus.counts[index], rng.random()
    sounds = sum(len(group) for group in scene)
    if len(scene) > 1 and chance < WRONG_ORDER:
        scene = swapped(scene) or scene
    elif sounds > 1 and WRONG_ORDER <= chance < WRONG_ORDER + LEFT_OUT:
        scene = without_one(scene, int(rng.integers(sounds)))
    elif chance > 1 - WRONG_SOUND:
        scene, counts = replaced(scene, rng), {}
    return caption_in("train", scene, counts, rng)
