"""`milonga nano train`: trains nano's weights from scratch, task by task, and can be stopped at any moment.

Every task has its checkpoints in the work folder; finished tasks are not done again. The last step writes the folders
that ship: the pipeline, three CLAPs and two taggers, float16 safetensors. A training of scorers alone takes the VAE and
the vocoder that their clips pass through from the pipeline that is there, made by an earlier training or shipped.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from milonga.core.config import Phase, Settings
from milonga.core.deferred import deferred_imports
from milonga.core.errors import RecipeError
from milonga.core.progress import steps_shown, tracked
from milonga.core.store import write_bytes
from milonga.data.examples import CaptionedClips
from milonga.maths.mel import log_mel
from milonga.models.denoiser import Conditioning, Posterior, Process
from milonga.models.load import pipeline as load_pipeline
from milonga.models.tango import TangoPipeline
from milonga.models.tango_denoiser import TangoDenoiser
from milonga.nano.build import codec as train_codec
from milonga.nano.build import corpus
from milonga.nano.build import scorers as train_scorers
from milonga.nano.build import text as train_text
from milonga.nano.build import unet as train_unet
from milonga.nano.world import CLASSES, SECONDS
from milonga.scorers.clap import ReadingHead, audio_features, save_clap, text_features
from milonga.scorers.tagger import FrameTagger, save_tagger
from milonga.training.fit import fit
from milonga.training.trainer import train

with deferred_imports():
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import ClapModel, PreTrainedTokenizerFast, SpeechT5HifiGan

SEED = 1
CLIPS = 54000
CODED = 8  # every eighth clip is also used as it comes out of VAE and vocoder
STEPS, GUIDANCE = 8, 3.0  # the pipeline's default sampling
CHANNELS_LAST = torch.channels_last  # up to twice as fast for narrow convolutions on a CPU
FIELDS = ("mean", "logvar")  # of the VAE's posteriors
THRESHOLD = 0.5  # the tagger's, on a clip's highest frame posterior
NETWORKS = ("tango", *(spec.name for spec in (*train_scorers.TAGGERS, *train_scorers.CLAPS)))


@dataclass
class BuildContext:
    """The work folder of one training, with its corpus, of which only what is asked for is rendered."""

    work: Path

    def clips(self, first: int, last: int) -> corpus.Corpus:
        """The clips from number `first` up to `last`."""
        numbers = range(first, last)
        with tracked("render", len(numbers), 0) as advance:
            corpus.build(self.work / "corpus", SEED, numbers, advance)
        return corpus.load(self.work / "corpus", SEED, numbers)

    def fit(self, task: corpus.TrainTask, network: torch.nn.Module, loss: corpus.Loss) -> None:
        """Runs a task to its end and shows its progress; the network is left in eval mode."""
        with steps_shown(f"train {task.name}") as on_step:
            fit(
                network, loss, self.work / task.name, steps=task.steps, learning_rate=task.learning_rate,
                weight_decay=task.weight_decay, ema=task.ema, checkpoint_every=task.checkpoint_every, on_step=on_step,
            )  # fmt: skip
        network.eval()

    def stored(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors that are computed once and stored in the work folder as `name`."""
        path = self.work / name
        if not path.exists():
            write_bytes(path, save({key: value.contiguous() for key, value in compute().items()}))
        return load_file(path)

    @torch.no_grad()
    def coded(self, codec: TangoPipeline, first: int, last: int) -> corpus.Corpus:
        """Every `CODED`th clip from `first` up to `last` as it comes out of VAE and vocoder.

        It is computed once, in parts of 250 whose places do not depend on `first` and `last`.
        """

        def round_trip(mels: Tensor) -> dict[str, Tensor]:
            pictures = []
            for mel in mels.float().split(1):
                posterior: Any = codec.vae.encode(mel.unsqueeze(1), return_dict=False)[0]
                rebuilt = codec.vae.decode(posterior.mean, return_dict=False)[0].squeeze(1)
                pictures.append(log_mel(codec.vocoder(rebuilt).reshape(1, -1), corpus.MEL))
            return {"mels": torch.cat(pictures).half()}

        parts, size = [], 250 * CODED
        start = first - first % size
        with tracked("through the codec", len(range(start, last, CODED)), 0) as advance:
            for begin in range(start, last, size):
                clips = self.clips(begin, min(begin + size, CLIPS)).part(0, size, CODED)
                mels = self.stored(f"codec/{begin}.safetensors", partial(round_trip, clips.mels))["mels"]
                parts.append(replace(clips, mels=mels))
                advance(len(clips))
        joined = reduce(corpus.Corpus.and_, parts)
        return joined.part((first - start) // CODED, len(range(start, last, CODED)))


def make(work: Path, out: Path, only: Sequence[str] = NETWORKS) -> Path:
    """Trains the networks named in `only` into folders under `out`; returns `out`.

    Raises RecipeError for a name that is none of `NETWORKS`.
    """
    unknown = sorted(set(only) - set(NETWORKS))
    if unknown:
        raise RecipeError(f"{unknown[0]!r} is none of nano's networks: there are {', '.join(NETWORKS)}")
    context = BuildContext(work)
    if "tango" in only:
        tokenizer, reader = _reader(context)
        vae = _vae(context)
        vocoder = _vocoder(context, vae)
        unet = _unet(context, vae, tokenizer, reader)
        codec = assembled(tokenizer, reader, unet, vae, vocoder)
        copy.deepcopy(codec).to(torch.float16).save_pretrained(out / "tango")
    else:
        codec = load_pipeline(str(out / "tango") if (out / "tango").is_dir() else "nano")
    for tagger in train_scorers.TAGGERS:
        if tagger.name in only:
            _tagger(context, tagger, context.coded(codec, tagger.first, tagger.last), out / tagger.name)
    for clap in train_scorers.CLAPS:
        if clap.name in only:
            _clap(context, clap, codec, out / clap.name)
    return out


def assembled(
    tokenizer: PreTrainedTokenizerFast,
    reader: train_text.EncoderWithHead,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    vocoder: SpeechT5HifiGan,
) -> TangoPipeline:
    """The five networks and nano's schedule as one pipeline."""
    schedule = DDIMScheduler(**train_unet.SCHEDULE)
    return TangoPipeline(_as_fitted(tokenizer), reader.encoder, unet, vae, vocoder, schedule, SECONDS, STEPS, GUIDANCE)


def _as_fitted(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer without the padding and the truncation of its last call, which its file would hold."""
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    return tokenizer


def _reader(context: BuildContext) -> tuple[PreTrainedTokenizerFast, train_text.EncoderWithHead]:
    torch.manual_seed(SEED)
    tokenizer = train_text.fit_tokenizer(train_text.sentences(SEED, 20000), "<pad>", "<unk>", "", "</s>")
    reader = train_text.EncoderWithHead()

    def embed(texts: list[str]) -> torch.Tensor:
        return train_text.pooled(reader.encoder, tokenizer, texts)

    context.fit(train_text.TASK, reader, train_text.text_loss(train_text.TASK, embed, reader.head, SEED))
    return tokenizer, reader


def _vae(context: BuildContext) -> AutoencoderKL:
    torch.manual_seed(SEED)
    vae = train_codec.new_vae().to(memory_format=CHANNELS_LAST)  # pyright: ignore[reportCallIssue]
    clips = context.clips(0, train_codec.VAE_CLIPS)
    context.fit(train_codec.VAE_TASK, vae, train_codec.vae_loss(vae, clips, SEED))
    vae.register_to_config(scaling_factor=train_codec.scaling_factor(vae, clips))
    return vae


@torch.no_grad()
def _vocoder(context: BuildContext, vae: AutoencoderKL) -> SpeechT5HifiGan:
    torch.manual_seed(SEED)
    clips = context.clips(0, train_codec.VOCODER_CLIPS)

    def examples() -> dict[str, Tensor]:
        seeds = [corpus.clip_seed(SEED, place) for place in range(len(clips))]
        rebuilt = [vae(part.float().unsqueeze(1)).sample.squeeze(1).half() for part in clips.mels.split(20)]
        return {"waves": train_codec.waveforms(clips, seeds), "rebuilt": torch.cat(rebuilt)}

    data = context.stored("vocoder-data.safetensors", examples)
    vocoder = train_codec.new_vocoder()
    loss = train_codec.vocoder_loss(vocoder, clips.mels, data["rebuilt"], data["waves"], SEED)
    with torch.enable_grad():
        context.fit(train_codec.VOCODER_TASK, vocoder, loss)
    return vocoder


def _unet(
    context: BuildContext, vae: AutoencoderKL, tokenizer: PreTrainedTokenizerFast, reader: train_text.EncoderWithHead
) -> UNet2DConditionModel:
    torch.manual_seed(SEED)
    clips = context.clips(0, train_unet.CLIPS)

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Conditioning:
        tokens = tokenizer(list(texts), padding=True, return_tensors="pt")
        states = reader.encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return Conditioning(states=states, mask=tokens.attention_mask.bool())

    def caption(index: int, epoch: int) -> str:
        return train_unet.noisy_caption(clips, SEED, index, epoch)

    unet, schedule = UNet2DConditionModel(**train_unet.UNET), DDIMScheduler(**train_unet.SCHEDULE)
    model = TangoDenoiser(unet, Process.of(schedule), encode([""]))
    examples = CaptionedClips(_moments(context, vae, clips), caption, encode, SEED)
    phases, settings = [Phase(loss="ldm", epochs=train_unet.EPOCHS)], Settings(**train_unet.SETTINGS)
    with steps_shown("train unet") as on_step:
        folder = train(model, examples, phases, settings, SEED, context.work / "unet", on_step)
    unet = UNet2DConditionModel.from_pretrained(folder).eval()
    unet.register_to_config(_name_or_path="")  # without the path of this machine
    return unet


@torch.no_grad()
def _moments(context: BuildContext, vae: AutoencoderKL, clips: corpus.Corpus) -> Posterior:
    """The VAE's posteriors of the U-Net's clips, encoded once and stored in parts of a thousand."""

    def encode(mels: Tensor) -> dict[str, Tensor]:
        posteriors = [vae.encode(part.float().unsqueeze(1), return_dict=False)[0] for part in mels.split(25)]
        return {name: torch.cat([getattr(one, name) for one in posteriors]).half() for name in FIELDS}

    parts = [
        context.stored(f"moments/{first}.safetensors", partial(encode, clips.mels[first : first + 1000]))
        for first in range(0, train_unet.CLIPS, 1000)
    ]
    # In the format in which the VAE gives them: it decides how the U-Net's first convolution rounds.
    mean, logvar = (torch.cat([part[name] for part in parts]).to(memory_format=CHANNELS_LAST) for name in FIELDS)
    return Posterior(mean, logvar, vae.config["scaling_factor"])


def _tagger(context: BuildContext, spec: train_scorers.TaggerSpec, coded: corpus.Corpus, out: Path) -> None:
    torch.manual_seed(spec.seed)
    shape = {"channels": spec.channels, "pools": train_scorers.TAGGER_POOLS}
    arguments = {"classes": len(CLASSES), "bands": corpus.MEL.bands, **shape}
    network = FrameTagger(**arguments).to(memory_format=CHANNELS_LAST)  # pyright: ignore[reportCallIssue]
    loss = train_scorers.tagger_loss(network, context.clips(spec.first, spec.last), coded, spec)
    context.fit(train_scorers.tagger_task(spec), network, loss)
    config = {"network": arguments, "classes": CLASSES, "mel": corpus.MEL.as_dict(), "threshold": THRESHOLD}
    save_tagger(out, network, config)


def _clap(context: BuildContext, spec: train_scorers.ClapSpec, codec: TangoPipeline, out: Path) -> None:
    torch.manual_seed(spec.seed)
    texts = train_text.sentences(SEED, 20000)
    tokenizer = train_text.fit_tokenizer(texts, "<pad>", "<unk>", "<s>", "</s>")
    pad = tokenizer.convert_tokens_to_ids("<pad>")
    assert isinstance(pad, int)
    clap: ClapModel = train_scorers.new_clap(spec, len(tokenizer), pad)
    network = train_scorers.ClapWithHead(clap)
    clips, coded = context.clips(spec.first, spec.last), context.coded(codec, spec.first, spec.last)
    data = train_scorers.ClapData(spec, clips, coded, tokenizer, audio_features, text_features)
    context.fit(train_scorers.audio_task(spec), network, train_scorers.audio_loss(network, data))
    context.fit(train_scorers.text_task(spec), network, train_scorers.words_loss(network, data))
    task = train_scorers.joint_task(spec)
    context.fit(task, network, train_scorers.joint_loss(network, data, task))
    if spec.ranks:
        context.fit(train_scorers.misses_task(spec), network, train_scorers.misses_loss(network, data))
    head = None
    if spec.ranks:
        matrix, bias = ((train_text.SHARPNESS * part).detach().numpy() for part in network.head.parameters())
        head = ReadingHead(matrix, bias, train_scorers.AGREEMENT)
    save_clap(out, clap, _as_fitted(tokenizer), corpus.MEL, corpus.FRAMES, head)
