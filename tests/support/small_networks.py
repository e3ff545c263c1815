"""Networks of the real classes, untrained and as small as they go, so that what is tested is the code around them."""

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import (
    ClapConfig,
    ClapModel,
    PreTrainedTokenizerFast,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    T5Config,
    T5EncoderModel,
)

from milonga.maths.mel import MelSettings
from milonga.models.tango import TangoPipeline
from milonga.nano.build.text import fit_tokenizer
from milonga.scorers.clap import ClapScorer
from milonga.scorers.tagger import EventTagger, FrameTagger

# So small a network is fastest on one thread.
torch.set_num_threads(1)

WORDS = ("a dog barks", "a bell rings then a cat meows", "rain falls while a man speaks", "twice three engine horn")
SECONDS = 0.512  # 32 mel frames of 256 samples: 8 rows of latents
MEL = MelSettings(hop=256)
CLASSES = ("Dog", "Bell", "Rain")
WIDTH = 16


def tokenizer(start: str = "") -> PreTrainedTokenizerFast:
    """A tokenizer of nano's kind, fitted to `WORDS`."""
    return fit_tokenizer(iter(WORDS), "<pad>", "<unk>", start, "</s>")


def pipeline(seed: int = 0) -> TangoPipeline:
    """A `TangoPipeline` at 16 kHz whose weights depend on `seed`, loud enough that clips differ by more than 1e-2."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = _text_encoder(), _unet(), _vae(), _vocoder()
    schedule = DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    words = tokenizer()
    words.model_max_length = 512  # trained on nothing, it has no length beyond which it warns
    made = TangoPipeline(words, *parts, schedule, SECONDS, steps=3, guidance=3.0)
    made.set_progress_bar_config(disable=True)
    return made


def _text_encoder() -> T5EncoderModel:
    config = T5Config(vocab_size=400, d_model=WIDTH, d_kv=8, num_heads=2, num_layers=1, d_ff=32, dropout_rate=0.0)
    return T5EncoderModel(config).eval()


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=(8, 16),
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 4),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        mid_block_add_attention=False,
        scaling_factor=0.7,
    ).eval()


def _vocoder() -> SpeechT5HifiGan:
    config = SpeechT5HifiGanConfig(
        model_in_dim=MEL.bands,
        sampling_rate=MEL.rate,
        upsample_initial_channel=16,
        upsample_rates=[4, 4, 4, 4],
        upsample_kernel_sizes=[8, 8, 8, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1]],
        normalize_before=False,
        initializer_range=0.2,
    )
    return SpeechT5HifiGan(config).eval()


def scorer(seed: int = 0, name: str = "tiny-clap") -> ClapScorer:
    """A `ClapScorer` around an untrained ClapModel with windows of 64 frames (1.024 s)."""
    words = tokenizer("<s>")
    text: dict[str, Any] = {
        "vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 34, "pad_token_id": words.pad_token_id,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.5,
    }  # fmt: skip
    audio: dict[str, Any] = {
        "spec_size": 64, "num_mel_bins": 64, "patch_size": 8, "patch_stride": [8, 8], "window_size": 4,
        "patch_embeds_hidden_size": 8, "hidden_size": 16, "depths": [1, 1], "num_attention_heads": [2, 2],
        "hidden_dropout_prob": 0.0, "drop_path_rate": 0.0, "num_classes": 1, "initializer_range": 0.5,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=16))
    return ClapScorer(name, model, words, MEL, frames=64)


def tagger_config(classes: tuple[str, ...] = CLASSES) -> dict[str, Any]:
    """What `save_tagger` keeps of the tiny tagger: frames of 1/4 of the mel's rate."""
    network = {"classes": len(classes), "bands": MEL.bands, "channels": [4, 6], "pools": [[2, 2], [2, 2]]}
    return {"network": network, "classes": list(classes), "mel": MEL.as_dict(), "threshold": 0.5}


def network(seed: int = 0, classes: tuple[str, ...] = CLASSES) -> FrameTagger:
    """An untrained `FrameTagger` whose batch norms have seen something, so that its buffers are worth saving."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = FrameTagger(**tagger_config(classes)["network"])
        made.train()(torch.randn(4, 64, MEL.bands))
    return made.eval()


def tagger(seed: int = 0, classes: tuple[str, ...] = CLASSES) -> EventTagger:
    """An `EventTagger` around `network`."""
    return EventTagger("tiny-tagger", network(seed, classes), classes, MEL, 0.5)
