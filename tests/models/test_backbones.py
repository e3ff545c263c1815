"""Backbones × jobs: Tango and every model of `BACKBONES`, of tiny untrained components of its real classes.

A backbone is generated from, encoded for, fine-tuned, tuned by LoRA, aligned by every loss, trained online, exported,
converted and evaluated by the same code; each cell of the table is a test. docs/your-own-model.md shows the table.
"""

import inspect
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_backbones
import torch
from safetensors.torch import load_file
from tiny_parts import parts_folder

import milonga
from milonga.core.audio import clip_table, read_audio, write_audio
from milonga.core.config import Phase, Settings
from milonga.core.errors import CheckpointError, RecipeError
from milonga.core.records import Clip, Prompt, Request
from milonga.core.store import Run
from milonga.core.weights import TANGOFLUX
from milonga.data.encode import encode_clips, encode_pairs, pair_examples
from milonga.data.examples import CaptionExamples, Examples, GroupExamples, PairExamples
from milonga.experiment import run as pipeline
from milonga.experiment.export import export_system
from milonga.experiment.recipe import parse_recipe
from milonga.experiment.rehearsal.cost import pass_flops
from milonga.maths.losses import LOSSES
from milonga.models import load as models
from milonga.models.adapter import name_base
from milonga.models.denoiser import SECONDS, Denoiser, module_hash
from milonga.models.editing import SPLICE, edit, samples_per_row
from milonga.models.load import convert
from milonga.models.networks import BACKBONES
from milonga.training.align import AlignConfig, AlignTrainer
from milonga.training.trainer import train

pytestmark = pytest.mark.filterwarnings("ignore:Should have t:UserWarning:torchsde")  # rounding of its own times
torch.set_num_threads(1)
# Each backbone's own steps and guidance, the rate of its sound, its channels, and the samples of its trained length.
KNOWN = {
    "StableAudioPipeline": ((100, 7.0), 4410, 2, 512),
    "TangoFluxPipeline": ((25, 4.5), 4410, 2, 512),
    "AudioLDMPipeline": ((200, 2.5), 16000, 1, 2048),
    "AudioLDM2Pipeline": ((200, 3.5), 16000, 1, 2048),
    "TangoPipeline": ((3, 3.0), 16000, 1, 8192),
}
WORDS = ("a dog barks", "a bell rings twice then rain", "rain")
LENGTHS = {  # the argument of diffusers' own pipelines for a clip's length
    "StableAudioPipeline": "audio_end_in_s",
    "AudioLDMPipeline": "audio_length_in_s",
    "AudioLDM2Pipeline": "audio_length_in_s",
}
RECIPE = """
name = "rounds"
seed = 5
[models]
model = "{model}"
scorers = ["{parts}/one", "{parts}/two"]
judge = "{parts}/judge"
tagger = "{parts}/tagger"
[plan]
shard_size = 4
[online]
iterations = 1
sources = ["world:train:2:multi"]
clips = 2
steps = 2
prompts = ["world:tune:2"]
[train]
batch_size = 2
learning_rate = 1e-2
systems = [{{ name = "aligned", data = "online", phases = [{{ loss = "dpo", steps = 2, beta = 10.0 }}] }}]
[evaluate]
prompts = ["world:test:3"]
steps = 2
resamples = 20
"""


# All other tests use Tango, and the AudioLDMs have its kind of U-Net, autoencoder and vocoder: by default these two.
QUICK_KINDS = ("StableAudioPipeline", "TangoFluxPipeline")
KINDS = [pytest.param(one, marks=() if one in QUICK_KINDS else pytest.mark.slow) for one in KNOWN]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("backbones") / kind
    small_backbones.make(kind).save_pretrained(place)
    return place


@pytest.fixture
def denoiser(folder: Path) -> Denoiser:
    return models.load_denoiser(str(folder))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parts_folder(tmp_path_factory.mktemp("parts"))


def requests(guidance: float = 3.0, steps: int = 4) -> list[Request]:
    return [Request.of(1, Prompt.of(text, "test"), text, steps, guidance) for text in WORDS]


def sounds(folder: Path, rate: int = 8000) -> Path:
    """A table of captioned clips of 0.1 to 0.3 s, two of them stereo."""
    stream, lines = np.random.default_rng(0), ["file_name,caption"]
    for place, text in enumerate(WORDS * 2):
        shape = (round((0.1 + 0.04 * place) * rate), 1 + place % 2)
        clip = Clip.of((0.3 * stream.standard_normal(shape)).clip(-1, 1).astype(np.float32), rate)
        write_audio(folder / f"{place}.wav", clip)
        lines.append(f"{place}.wav,{text}")
    table = folder / "metadata.csv"
    table.write_text("\n".join(lines))
    return table


def pairs(denoiser: Denoiser, count: int = 4) -> PairExamples:
    stream = torch.Generator().manual_seed(0)
    winner, loser = torch.randn(2, count, *denoiser.latent_shape, generator=stream).unbind(0)
    captions = denoiser.encode_text([WORDS[place % len(WORDS)] for place in range(count)])
    return PairExamples(winner + 0.5, loser - 0.5, captions)


def config(folder: Path, **changes) -> AlignConfig:
    settings = {"batch_size": 2, "learning_rate": 1e-3, "phases": ["dpo:2"], "beta": 100, "caption_dropout": 0.5}
    return AlignConfig(output_dir=folder, **settings | changes)


@pytest.mark.slow
def test_generate_by_its_own_defaults_each_clip_from_its_seed(kind: str, folder: Path) -> None:
    sampling, rate, channels, samples = KNOWN[kind]
    model = models.load(str(folder))
    assert (models.sampling(str(folder)), model.rate) == (sampling, rate)
    clips = model.generate(requests())
    assert [clip.samples.shape for clip in clips] == [(samples, channels)] * 3
    alone = model.generate(requests()[1:2])[0]
    np.testing.assert_allclose(alone.samples, clips[1].samples, atol=1e-5)
    assert np.abs(clips[0].samples - clips[2].samples).max() > 1e-4
    unguided = model.generate(requests(guidance=1.0))[0]
    assert np.abs(unguided.samples - clips[0].samples).max() > 1e-4
    shorter = models.load(str(folder), seconds=200 / rate).generate(requests()[:1])[0]
    assert shorter.samples.shape == (200, channels)
    called = milonga.load(folder)(WORDS[0], seeds=[requests()[0].seed], num_inference_steps=4, guidance_scale=3.0)
    np.testing.assert_allclose(called.audios[0].reshape(samples, -1), clips[0].samples, atol=1e-5)


@pytest.mark.parametrize("negative", ["", "noise"], ids=["guided", "negative"])
def test_its_sampler_equals_stock_diffusers(kind: str, folder: Path, negative: str) -> None:
    if kind == "TangoPipeline":
        pytest.skip("diffusers has none; tests/parity/test_tango_parity.py compares it with the original code")
    length = 256 / KNOWN[kind][1]
    request, stock = requests()[1], small_backbones.make(kind)
    if kind in LENGTHS:
        stock.set_progress_bar_config(disable=True)
        theirs = stock(
            request.words, negative_prompt=negative or None, num_inference_steps=4, guidance_scale=3.0,
            generator=[torch.Generator().manual_seed(request.seed)], **{LENGTHS[kind]: length},
        ).audios[0]  # fmt: skip
    else:
        theirs = published_tangoflux(stock, request, negative, length)
    ours = models.load(str(folder), seconds=length).generate([request], negative=negative)[0]
    np.testing.assert_allclose(ours.samples.T, np.atleast_2d(np.asarray(theirs)), atol=1e-5)


@torch.no_grad()
def published_tangoflux(pipe, request: Request, negative: str, seconds: float) -> np.ndarray:
    """TangoFlux by the formulas of its published code: an Euler step along the guided flow from σ 1, 1 − 1/n, …"""
    network, tokens = pipe.transformer, pipe.tokenizer([request.words], return_tensors="pt")
    against = pipe.tokenizer(
        [negative], max_length=tokens.input_ids.shape[1], padding="max_length", truncation=True, return_tensors="pt"
    )
    states, pooled = [], []
    for row in (against, tokens):
        hidden = pipe.text_encoder(input_ids=row.input_ids, attention_mask=row.attention_mask)[0]
        pooled.append(hidden[row.attention_mask.bool()].mean(0, keepdim=True))
        states.append(torch.cat([hidden, network.duration_embedder(torch.tensor([seconds]))], 1))
    x = torch.randn(1, 64, 4, generator=torch.Generator().manual_seed(request.seed))
    for step in range(request.steps):
        sigma = 1 - step / request.steps
        flows = [
            network.transformer(
                x, encoder_hidden_states=state, pooled_projections=network.fc(own), timestep=torch.tensor([sigma]),
                txt_ids=torch.zeros(state.shape[1], 3), img_ids=torch.arange(64.0)[:, None].repeat(1, 3),
            ).sample
            for state, own in zip(states, pooled, strict=True)
        ]  # fmt: skip
        x = x - (flows[0] + request.guidance * (flows[1] - flows[0])) / request.steps
    return pipe.vae.decode(x.transpose(1, 2)).sample[0, :, : round(seconds * 4410)].numpy()


@pytest.mark.slow
def test_encode_clips_and_pairs_with_their_channels_and_lengths(denoiser: Denoiser, kind: str, tmp_path: Path) -> None:
    table = sounds(tmp_path / "sounds")
    examples = encode_clips(denoiser, f"clips:{table}", tmp_path / "work", mix_ratio=0.5)
    batch = examples.batch(range(len(examples)), 0)
    assert batch.winner.shape == (9, *denoiser.latent_shape)
    assert torch.isfinite(batch.winner).all()
    if SECONDS in denoiser.empty:
        torch.testing.assert_close(batch.conditioning[SECONDS][:3], torch.tensor([0.1, 0.14, 0.18]))
        assert batch.conditioning[SECONDS][6:].min() > 0.1  # of a mix: that of the longer clip
    if KNOWN[kind][2] == 2:
        stereo = read_audio(table.parent / "1.wav", mono="all")
        swapped = Clip.of(stereo.samples[:, ::-1].copy(), stereo.rate)
        first, other = (denoiser.encode_audio([denoiser.prepare_waveform(c)]).mean for c in (stereo, swapped))
        assert (first - other).abs().max() > 1e-4
    rows = [
        {"prompt": text, "chosen": f"{place}.wav", "rejected": f"{place + 3}.wav"} for place, text in enumerate(WORDS)
    ]
    data = tmp_path / "pairs.parquet"
    cells = {"prompt": [row["prompt"] for row in rows], "strategy": ["1"] * 3}
    for side in ("chosen", "rejected"):
        cells[side] = [{"bytes": (table.parent / row[side]).read_bytes(), "path": row[side]} for row in rows]
    pq.write_table(pa.table(cells), data)
    read, encoded = encode_pairs(denoiser, data, tmp_path / "encoded")
    run, ids = Run(tmp_path / "run"), [pair.chosen_id for pair in read] + [pair.rejected_id for pair in read]
    clips = [read_audio(table.parent / f"{place}.wav", mono="all") for place in range(6)]
    run.stage("generate").write_table("a", clip_table(ids, clips, [None] * 6))
    own = pair_examples(denoiser, run, read, tmp_path / "encoded")
    assert len(read) == len(encoded) == len(own) == 3
    for some in (encoded, own):
        if SECONDS in denoiser.empty:
            torch.testing.assert_close(some.batch([0, 1], 0).conditioning[SECONDS], torch.tensor([0.1, 0.14]))


def test_fine_tune_on_a_folder_of_clips(denoiser: Denoiser, folder: Path, tmp_path: Path) -> None:
    before = module_hash(denoiser.module)
    data = f"clips:{sounds(tmp_path / 'sounds')}"
    out = AlignTrainer(str(folder), data, config(tmp_path / "out", phases=["sft:1"])).train()
    tuned = models.load_denoiser(str(out))
    assert module_hash(tuned.module) != before
    assert models.load(str(out)).generate(requests()[:1])[0].samples.shape[1] == KNOWN[type(denoiser.pipe).__name__][2]


@pytest.mark.parametrize("rank", [0, 2], ids=["all weights", "LoRA"])
def test_dpo_and_its_output_folder_is_a_whole_model(
    denoiser: Denoiser, folder: Path, rank: int, tmp_path: Path
) -> None:
    if rank:
        pytest.importorskip("peft")
    before = module_hash(denoiser.module)
    trainer = AlignTrainer(denoiser, pairs(denoiser), config(tmp_path / "out", lora_rank=rank))
    out = trainer.train()
    rows = [json.loads(line) for line in (out / "training" / "curves.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(np.log(2), rel=1e-3)  # policy and reference agree at first
    assert rows[-1]["loss"] < rows[0]["loss"]
    tuned = models.load_denoiser(str(out))
    assert module_hash(tuned.module) == module_hash(denoiser.module) != before
    assert (out / "adapter").is_dir() == bool(rank)
    if rank:  # the adapter is a model by itself
        name_base(out / "adapter", str(folder))
        merged = models.load_denoiser(str(out / "adapter")).module.state_dict()
        for name, weight in tuned.module.state_dict().items():
            torch.testing.assert_close(merged[name], weight)
    assert {path.name for path in out.iterdir()} >= {"model_index.json", denoiser.network}


class Loud:
    """A differentiable scorer: the level of a clip."""

    name = "loud"

    def wave_rewards(self, waves: torch.Tensor, rate: int, texts: Sequence[str]) -> torch.Tensor:
        return waves.pow(2).mean(1)


# One loss of each kind of training by default; what a loss does beyond its errors is tested in tests/training.
QUICK = ("sft", "dpo", "dgpo", "draft", "distil-guidance", "distil")


@pytest.mark.parametrize("loss", [pytest.param(one, marks=() if one in QUICK else pytest.mark.slow) for one in LOSSES])
def test_every_loss_sends_a_finite_gradient_into_the_network(denoiser: Denoiser, loss: str, tmp_path: Path) -> None:
    spec, some = LOSSES[loss], pairs(denoiser)
    examples: Examples = some
    if spec.groups:
        latents = torch.stack([some.winners, some.losers], 1)  # type: ignore[list-item]
        examples = GroupExamples(latents, torch.tensor([[1.0, 0.0]] * 4), some.conditioning)
    elif spec.labels:
        liked = torch.tensor([True, False] * 2)
        examples = PairExamples(some.winners, None, some.conditioning, desirable=liked)
    elif spec.needs_weights:
        examples = PairExamples(some.winners, None, some.conditioning, weights=torch.tensor([0.5, 1.0] * 2))
    elif spec.samples:
        examples = CaptionExamples(WORDS, denoiser.encode_text(WORDS), denoiser.latent_shape, 0)
    settings = Settings(batch_size=2, draft_steps=2, distil_guidance=(3.0, 3.0), train_guidance=2.0)
    before, rows = module_hash(denoiser.module), []
    phases = [Phase(loss=loss, steps=1, beta=100.0)]
    train(denoiser, examples, phases, settings, 0, tmp_path, rows.append, scorers=[Loud()])
    assert np.isfinite(rows[0]["loss"])
    assert 0 < rows[0]["grad_norm"] < np.inf
    assert module_hash(denoiser.module) != before


@pytest.mark.slow
def test_gradient_checkpointing_computes_again_and_changes_no_number(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    checkpoint = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(
        torch.utils.checkpoint, "checkpoint", lambda *args, **more: (calls.append(1), checkpoint(*args, **more))[1]
    )
    numbers = []
    for checkpointed in (False, True):
        denoiser, settings = models.load_denoiser(str(folder)), Settings(gradient_checkpointing=checkpointed)
        phases, rows = [Phase(loss="sft", steps=2)], list[dict]()
        train(denoiser, pairs(denoiser), phases, settings, 0, tmp_path / f"{checkpointed}", rows.append)
        numbers.append([(row["loss"], row["grad_norm"]) for row in rows])
    assert calls
    np.testing.assert_allclose(numbers[1], numbers[0], rtol=1e-5)


@pytest.mark.slow  # a whole run: its captions, clips, scores, pairs, training, evaluation and report
def test_rounds_evaluation_and_export(kind: str, folder: Path, parts: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(RECIPE.format(model=folder, parts=parts), "rounds.toml", ())
    run = pipeline.run(recipe, tmp_path / "run")
    systems = {row["system"] for row in json.loads((run.path / "metrics" / "summary.json").read_text())}
    assert systems >= {"base", "aligned"}
    assert (run.path / "report.html").exists()
    exported = export_system(run.path, tmp_path / "exported", "aligned")
    card = (exported / "README.md").read_text()
    assert "(vae)" in card
    assert ("custom_pipeline" in card) == (kind in ("TangoPipeline", "TangoFluxPipeline"))  # of Milonga's own class
    ours = models.load(str(exported)).generate(requests()[:1])[0]
    theirs = models.load(f"{run.path}/aligned").generate(requests()[:1])[0]
    assert np.array_equal(ours.samples, theirs.samples)
    base = models.load(str(folder)).generate(requests()[:1])[0]
    assert np.abs(ours.samples - base.samples).max() > 1e-6


def test_edit_repaints_a_region(denoiser: Denoiser) -> None:
    rate, start = denoiser.sampling_rate, 0.05
    end = start + max(0.03, 1.1 * samples_per_row(denoiser) / rate)
    samples = 0.3 * np.random.default_rng(0).standard_normal((rate // 5, 2)).clip(-3, 3)
    edited = edit(denoiser, samples, rate, "rain", region=(start, end), steps=4, guidance=3.0, seeds=[1])
    places = np.flatnonzero((edited != samples).any(axis=(0, 2)))
    assert start - SPLICE - 1 / rate <= places[0] / rate <= places[-1] / rate <= end + SPLICE
    assert np.isfinite(edited).all()


def test_the_cost_of_a_pass_is_counted_on_shapes(denoiser: Denoiser) -> None:
    assert pass_flops(denoiser) > 1e4
    assert all(value.is_meta for value in denoiser.module.parameters())


@pytest.mark.slow
def test_broken_folders_and_foreign_schedulers_are_refused(folder: Path, kind: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    part = models.load_denoiser(str(folder)).network
    (broken / part / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=str(part)):
        models.load_denoiser(str(broken))
    with pytest.raises(RecipeError, match="scheduler"):
        models.load(str(folder), "ddim" if kind == "TangoFluxPipeline" else "euler")


def test_audioldm_2_as_published_names_gpt_2_without_its_head(folder: Path, kind: str, tmp_path: Path) -> None:
    if kind != "AudioLDM2Pipeline":
        pytest.skip("it has no language model")
    published = tmp_path / "published"
    shutil.copytree(folder, published)
    shutil.rmtree(published / "language_model")
    models.load_denoiser(str(folder)).pipe.language_model.transformer.save_pretrained(published / "language_model")
    index = json.loads((published / "model_index.json").read_text())
    index["language_model"] = ["transformers", "GPT2Model"]
    (published / "model_index.json").write_text(json.dumps(index))
    config = json.loads((folder / "language_model" / "config.json").read_text())
    (published / "language_model" / "config.json").write_text(json.dumps(config | {"architectures": ["GPT2Model"]}))
    ours, theirs = (models.load(str(path)).generate(requests()[:1])[0] for path in (published, folder))
    assert np.array_equal(ours.samples, theirs.samples)


@pytest.mark.slow
def test_convert_to_its_published_layout_and_back(folder: Path, kind: str, source: Path, tmp_path: Path) -> None:
    if kind == "TangoPipeline":  # its published layout is read, not written
        request = requests()[0]
        direct, ours = (
            models.load(str(path)).generate([request])[0] for path in (source, convert(source, tmp_path / "converted"))
        )
        assert np.array_equal(direct.samples, ours.samples)
    if kind != "TangoFluxPipeline":  # those are published in diffusers' layout
        with pytest.raises(CheckpointError, match="is a diffusers pipeline already"):
            convert(folder, tmp_path / "converted")
        return
    published = convert(folder, tmp_path / "published")
    assert {path.name for path in published.iterdir()} == {*TANGOFLUX, "tokenizer"}
    names = load_file(published / "tangoflux.safetensors").keys()
    assert {"fc.0.weight", "duration_emebdder.time_positional_embedding.1.bias", "text_encoder.shared.weight"} <= names
    back = convert(published, tmp_path / "back")
    direct, ours, again = (models.load(str(path)).generate(requests()[:1])[0] for path in (published, folder, back))
    assert np.array_equal(direct.samples, ours.samples)
    assert np.array_equal(again.samples, ours.samples)
    (published / "vae.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"vae\.safetensors is missing"):
        models.load_denoiser(str(published))


# The table of docs/your-own-model.md: each job's test, which has a case for each backbone.
JOBS = {
    "generate": test_generate_by_its_own_defaults_each_clip_from_its_seed,
    "encode clips and pairs": test_encode_clips_and_pairs_with_their_channels_and_lengths,
    "fine-tune": test_fine_tune_on_a_folder_of_clips,
    "DPO, all weights; LoRA": test_dpo_and_its_output_folder_is_a_whole_model,
    "every loss": test_every_loss_sends_a_finite_gradient_into_the_network,
    "gradient checkpointing": test_gradient_checkpointing_computes_again_and_changes_no_number,
    "rounds, evaluate, export": test_rounds_evaluation_and_export,
    "convert": test_convert_to_its_published_layout_and_back,
    "edit": test_edit_repaints_a_region,
}
NAMES = {
    "TangoPipeline": "Tango, Tango 2",
    "StableAudioPipeline": "Stable Audio Open",
    "TangoFluxPipeline": "TangoFlux",
    "AudioLDMPipeline": "AudioLDM",
    "AudioLDM2Pipeline": "AudioLDM 2",
}


def test_the_page_has_the_table_of_these_tests() -> None:
    assert set(NAMES) == set(KNOWN) == {*BACKBONES, "TangoPipeline"}
    for job in JOBS.values():  # each has a case for each backbone
        assert {"kind", "folder", "denoiser"} & set(inspect.signature(job).parameters)
    lines = [f"| job | {' | '.join(NAMES.values())} | test |", f"|---|{':-:|' * len(NAMES)}---|"]
    lines += [f"| {job} | {'yes | ' * len(NAMES)}`{test.__name__}` |" for job, test in JOBS.items()]
    page = Path(__file__).parents[2] / "docs" / "your-own-model.md"
    assert "\n".join(lines) in page.read_text()
