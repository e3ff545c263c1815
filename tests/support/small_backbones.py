"""Tango, AudioLDM, AudioLDM 2, Stable Audio and TangoFlux of the real classes, untrained and as small as they go."""

from typing import Any

import small_networks
import torch
from diffusers import (
    AudioLDM2Pipeline,
    AudioLDM2ProjectionModel,
    AudioLDM2UNet2DConditionModel,
    AudioLDMPipeline,
    AutoencoderKL,
    AutoencoderOobleck,
    CosineDPMSolverMultistepScheduler,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
    UNet2DConditionModel,
)
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    ClapTextModelWithProjection,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaTokenizer,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from milonga.models.tangoflux import TangoFluxNetwork, TangoFluxPipeline

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEXT: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 80, "projection_dim": 8, "initializer_range": 0.5,
}  # fmt: skip
U_NET: dict[str, Any] = {
    "block_out_channels": (8, 16), "layers_per_block": 1, "sample_size": 32, "in_channels": 4, "out_channels": 4,
    "norm_num_groups": 4, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 2,
}  # fmt: skip


def _roberta() -> RobertaTokenizer:
    vocabulary = {word: place for place, word in enumerate(("<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *LETTERS))}
    return RobertaTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _t5() -> tuple[T5Tokenizer, T5EncoderModel]:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in LETTERS)]
    config = T5Config(vocab_size=32, d_model=32, d_kv=8, num_heads=2, num_layers=1, d_ff=32, dropout_rate=0.0)
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=64), T5EncoderModel(config)


def _sound() -> dict[str, Any]:
    vae = AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4,
    )  # fmt: skip
    config = SpeechT5HifiGanConfig(
        model_in_dim=8, sampling_rate=16000, upsample_initial_channel=16, upsample_rates=[2, 2],
        upsample_kernel_sizes=[5, 4], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]], normalize_before=False,
        initializer_range=0.3,
    )  # fmt: skip
    schedule = DDIMScheduler(
        beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
    )
    return {"vae": vae, "vocoder": SpeechT5HifiGan(config), "scheduler": schedule}


def audioldm() -> AudioLDMPipeline:
    unet = UNet2DConditionModel(
        **U_NET, cross_attention_dim=(8, 16), class_embed_type="simple_projection", class_embeddings_concat=True,
        projection_class_embeddings_input_dim=8,
    )  # fmt: skip
    text = ClapTextModelWithProjection(ClapTextConfig(**TEXT))
    return AudioLDMPipeline(text_encoder=text, tokenizer=_roberta(), unet=unet, **_sound())


def audioldm2() -> AudioLDM2Pipeline:
    audio: dict[str, Any] = {
        "patch_size": 8, "patch_stride": [8, 8], "patch_embeds_hidden_size": 8, "hidden_size": 16, "depths": [1, 1],
        "num_hidden_layers": 2, "num_attention_heads": [2, 2], "projection_dim": 8,
    }  # fmt: skip
    clap = ClapModel(ClapConfig(text_config=TEXT, audio_config=audio, projection_dim=8))
    words, t5 = _t5()
    language = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=128, vocab_size=40))
    language.config.max_new_tokens = 8
    unet = AudioLDM2UNet2DConditionModel(**U_NET, cross_attention_dim=((None, 16, 32), (None, 16, 32)))
    return AudioLDM2Pipeline(
        text_encoder=clap, tokenizer=_roberta(), text_encoder_2=t5, tokenizer_2=words, language_model=language,
        projection_model=AudioLDM2ProjectionModel(8, 32, 16), feature_extractor=ClapFeatureExtractor(), unet=unet,
        **_sound(),
    )  # fmt: skip


def _oobleck() -> AutoencoderOobleck:
    return AutoencoderOobleck(
        encoder_hidden_size=8, downsampling_ratios=[2, 4], channel_multiples=[1, 2], decoder_channels=4,
        decoder_input_channels=4, audio_channels=2, sampling_rate=4410,
    )  # fmt: skip


def stable_audio() -> StableAudioPipeline:
    words, t5 = _t5()
    transformer = StableAudioDiTModel(
        sample_size=64, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        num_key_value_attention_heads=2, out_channels=4, cross_attention_dim=8, time_proj_dim=8,
        global_states_input_dim=16, cross_attention_input_dim=8,
    )  # fmt: skip
    return StableAudioPipeline(
        vae=_oobleck(), text_encoder=t5, projection_model=StableAudioProjectionModel(32, 8, 0, 32), tokenizer=words,
        transformer=transformer, scheduler=CosineDPMSolverMultistepScheduler(),
    )  # fmt: skip


def tangoflux() -> TangoFluxPipeline:
    words, t5 = _t5()
    network = TangoFluxNetwork(
        num_layers=1, num_single_layers=1, in_channels=4, attention_head_dim=8, joint_attention_dim=32,
        num_attention_heads=2, audio_seq_len=64, max_duration=0.2, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    return TangoFluxPipeline(words, t5, network, _oobleck(), FlowMatchEulerDiscreteScheduler())


MAKERS = {
    "AudioLDMPipeline": audioldm,
    "AudioLDM2Pipeline": audioldm2,
    "StableAudioPipeline": stable_audio,
    "TangoFluxPipeline": tangoflux,
    "TangoPipeline": small_networks.pipeline,
}


def make(kind: str) -> Any:
    """A pipeline of that class whose weights are always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = MAKERS[kind]()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipe
