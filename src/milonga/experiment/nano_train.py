"""`milonga nano train`: makes all of nano's weights from nothing, lesson by lesson, and can be stopped at any moment.

Every lesson keeps its checkpoints in the work folder; what is finished there is not done again. The last step writes
the folders that ship: the pipeline, three CLAPs and the tagger, float16 safetensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import ClapModel, PreTrainedTokenizerFast, SpeechT5HifiGan

from milonga.core.config import Phase, Settings
from milonga.core.progress import steps_shown, tracked
from milonga.data.examples import CaptionedClips
from milonga.maths.mel import log_mel
from milonga.models.denoiser import Conditioning, Posterior, Process
from milonga.models.tango import TangoPipeline
from milonga.models.tango_denoiser import TangoDenoiser
from milonga.nano.build import clap as train_clap
from milonga.nano.build import corpus
from milonga.nano.build import tagger as train_tagger
from milonga.nano.build import text as train_text
from milonga.nano.build import unet as train_unet
from milonga.nano.build import vae as train_vae
from milonga.nano.build import vocoder as train_vocoder
from milonga.nano.build.task import Lesson, Loss, learn, save_aside
from milonga.nano.world import CLASSES, SECONDS
from milonga.scorers.clap import audio_features, save_clap, text_features
from milonga.scorers.tagger import FrameTagger, save_tagger
from milonga.training.trainer import train

SEED = 1
CLIPS = 36000
CODED = 8  # every eighth clip is also heard as VAE and vocoder leave it
STEPS, GUIDANCE = 8, 3.0  # what the pipeline is sampled with when nobody says
CHANNELS_LAST = torch.channels_last  # up to twice as fast for narrow convolutions on a CPU
THRESHOLD = 0.5  # the tagger's, on a clip's highest frame posterior


@dataclass
class School:
    """The work folder of one training, its seed, and the corpus once it is rendered."""

    work: Path
    clips: corpus.Corpus

    def learnt(self, lesson: Lesson, network: torch.nn.Module, loss: Loss) -> None:
        """Runs a lesson to its end with its progress shown; the network is left in eval mode."""
        with steps_shown(f"learn {lesson.name}") as on_step:
            learn(lesson, network, loss, self.work, on_step)
        network.eval()


def make(work: Path, out: Path) -> Path:
    """Makes everything, from the corpus to the folders under `out`; gives `out`."""
    with tracked("render", CLIPS, 0) as advance:
        corpus.build(work / "corpus", SEED, CLIPS, advance)
    school = School(work, corpus.load(work / "corpus", SEED, CLIPS))
    tokenizer, reader = _reader(school)
    vae = _vae(school)
    vocoder = _vocoder(school, vae)
    unet = _unet(school, vae, tokenizer, reader)
    coded = _coded(school, vae, vocoder)
    pipeline = assembled(tokenizer, reader, unet, vae, vocoder)
    pipeline.to(torch.float16).save_pretrained(out / "tango")
    _tagger(school, coded, out / "tagger")
    for listener in train_clap.CLAPS:
        _clap(school, listener, coded, out / listener.name)
    return out


def assembled(
    tokenizer: PreTrainedTokenizerFast,
    reader: train_text.Reader,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    vocoder: SpeechT5HifiGan,
) -> TangoPipeline:
    """The five networks and nano's schedule as one pipeline."""
    schedule = DDIMScheduler(**train_unet.SCHEDULE)
    return TangoPipeline(tokenizer, reader.encoder, unet, vae, vocoder, schedule, SECONDS, STEPS, GUIDANCE)


def _reader(school: School) -> tuple[PreTrainedTokenizerFast, train_text.Reader]:
    torch.manual_seed(SEED)
    tokenizer = train_text.fit_tokenizer(train_text.sentences(SEED, 20000), "<pad>", "<unk>", "", "</s>")
    reader = train_text.Reader()

    def embed(texts: list[str]) -> torch.Tensor:
        return train_text.pooled(reader.encoder, tokenizer, texts)

    school.learnt(train_text.LESSON, reader, train_text.text_loss(train_text.LESSON, embed, reader.head, SEED))
    return tokenizer, reader


def _vae(school: School) -> AutoencoderKL:
    torch.manual_seed(SEED)
    vae = train_vae.new_vae().to(memory_format=CHANNELS_LAST)  # pyright: ignore[reportCallIssue]
    school.learnt(train_vae.LESSON, vae, train_vae.vae_loss(vae, school.clips.part(0, train_vae.CLIPS), SEED))
    vae.register_to_config(scaling_factor=train_vae.scaling_factor(vae, school.clips))
    return vae


@torch.no_grad()
def _vocoder(school: School, vae: AutoencoderKL) -> SpeechT5HifiGan:
    torch.manual_seed(SEED)
    path, clips = school.work / "vocoder-data.pt", school.clips.part(0, train_vocoder.CLIPS)
    if not path.exists():
        seeds = [corpus.clip_seed(SEED, place) for place in range(len(clips))]
        rebuilt = [vae(part.float().unsqueeze(1)).sample.squeeze(1).half() for part in clips.mels.split(20)]
        save_aside(path, (train_vocoder.waveforms(clips, seeds), torch.cat(rebuilt)))
    waves, rebuilt = torch.load(path, weights_only=True)
    vocoder = train_vocoder.new_vocoder()
    loss = train_vocoder.vocoder_loss(vocoder, clips.mels, rebuilt, waves, SEED)
    with torch.enable_grad():
        school.learnt(train_vocoder.LESSON, vocoder, loss)
    return vocoder


def _unet(
    school: School, vae: AutoencoderKL, tokenizer: PreTrainedTokenizerFast, reader: train_text.Reader
) -> UNet2DConditionModel:
    torch.manual_seed(SEED)

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Conditioning:
        tokens = tokenizer(list(texts), padding=True, return_tensors="pt")
        states = reader.encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return Conditioning(states=states, mask=tokens.attention_mask.bool())

    def say(index: int, epoch: int) -> str:
        return train_unet.remembered(school.clips, SEED, index, epoch)

    unet, schedule = UNet2DConditionModel(**train_unet.UNET), DDIMScheduler(**train_unet.SCHEDULE)
    model = TangoDenoiser(unet, Process.of(schedule), encode([""]))
    examples = CaptionedClips(_moments(school, vae), say, encode, SEED)
    phases, settings = [Phase(loss="ldm", epochs=train_unet.EPOCHS)], Settings(**train_unet.SETTINGS)
    with steps_shown("learn unet") as on_step:
        folder = train(model, examples, phases, settings, SEED, school.work / "unet", on_step)
    unet = UNet2DConditionModel.from_pretrained(folder).eval()
    unet.register_to_config(_name_or_path="")  # what ships does not say where it was made
    return unet


@torch.no_grad()
def _moments(school: School, vae: AutoencoderKL) -> Posterior:
    """The VAE's posteriors of the U-Net's clips, encoded once and kept in parts of a thousand."""
    folder = school.work / "moments"
    folder.mkdir(exist_ok=True)
    parts = []
    for first in range(0, train_unet.CLIPS, 1000):
        path = folder / f"{first}.pt"
        if not path.exists():
            mels = school.clips.mels[first : first + 1000].split(25)
            found = [vae.encode(part.float().unsqueeze(1), return_dict=False)[0] for part in mels]
            mean, logvar = (torch.cat([getattr(one, name) for one in found]).half() for name in ("mean", "logvar"))
            save_aside(path, (mean, logvar))
        parts.append(torch.load(path, weights_only=True))
    mean, logvar = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return Posterior(mean, logvar, vae.config["scaling_factor"])


@torch.no_grad()
def _coded(school: School, vae: AutoencoderKL, vocoder: SpeechT5HifiGan) -> corpus.Corpus:
    """Every `CODED`th clip of the corpus as it comes out of VAE and vocoder, made once and kept in parts of 250."""
    clips, parts = school.clips.part(0, CLIPS, CODED), []
    folder = school.work / "coded"
    folder.mkdir(exist_ok=True)
    with tracked("through the codec", len(clips), 0) as advance:
        for first in range(0, len(clips), 250):
            path = folder / f"{first}.pt"
            if not path.exists():
                save_aside(path, _through(vae, vocoder, clips.mels[first : first + 250]))
            parts.append(torch.load(path, weights_only=True))
            advance(len(parts[-1]))
    return replace(clips, mels=torch.cat(parts))


def _through(vae: AutoencoderKL, vocoder: SpeechT5HifiGan, mels: torch.Tensor) -> torch.Tensor:
    """Log-mel pictures (N, 256, 64) of what VAE and vocoder make of such pictures, float16."""
    found = []
    for mel in mels.float().split(1):
        posterior: Any = vae.encode(mel.unsqueeze(1), return_dict=False)[0]
        rebuilt = vae.decode(posterior.mean, return_dict=False)[0].squeeze(1)
        found.append(log_mel(vocoder(rebuilt).reshape(1, -1), corpus.MEL))
    return torch.cat(found).half()


def _tagger(school: School, coded: corpus.Corpus, out: Path) -> None:
    torch.manual_seed(SEED)
    arguments = {"classes": len(CLASSES), "bands": corpus.MEL.bands, **train_tagger.TAGGER}
    network = FrameTagger(**arguments).to(memory_format=CHANNELS_LAST)  # pyright: ignore[reportCallIssue]
    clips = school.clips.part(0, train_tagger.CLIPS)
    own = coded.part(0, train_tagger.CLIPS // CODED)
    school.learnt(train_tagger.LESSON, network, train_tagger.tagger_loss(network, clips, own, SEED))
    config = {"network": arguments, "classes": CLASSES, "mel": corpus.MEL.as_dict(), "threshold": THRESHOLD}
    save_tagger(out, network, config)


def _clap(school: School, listener: train_clap.Listener, coded: corpus.Corpus, out: Path) -> None:
    torch.manual_seed(listener.seed)
    texts = train_text.sentences(SEED, 20000)
    tokenizer = train_text.fit_tokenizer(texts, "<pad>", "<unk>", "<s>", "</s>")
    pad = tokenizer.convert_tokens_to_ids("<pad>")
    assert isinstance(pad, int)
    clap: ClapModel = train_clap.new_clap(listener, len(tokenizer), pad)
    learner = train_clap.Learner(clap)
    clips = school.clips.part(listener.first, listener.last)
    own = coded.part(listener.first // CODED, listener.last // CODED)
    material = train_clap.Material(listener, clips, own, tokenizer, audio_features, text_features)
    school.learnt(train_clap.sounds_lesson(listener), learner, train_clap.sounds_loss(learner, material))
    school.learnt(train_clap.words_lesson(listener), learner, train_clap.words_loss(learner, material))
    school.learnt(train_clap.lesson_of(listener), learner, train_clap.clap_loss(learner, material))
    save_clap(out, clap, tokenizer, corpus.MEL, corpus.FRAMES)
