"""The trainer's own errors, losses and gradients against those recorded from the original Tango and Tango 2."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import reference
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from milonga.data.examples import Batch
from milonga.maths.losses import Errors, dpo
from milonga.maths.noise import omega, signal_to_noise
from milonga.models.denoiser import Conditioning, Process
from milonga.models.tango_denoiser import TangoDenoiser
from milonga.training.noising import Draws, add_noise, add_reference_errors, split_errors

FOLDER = reference.TANGO

pytestmark = reference.needed(FOLDER)


@pytest.fixture(scope="module")
def world() -> SimpleNamespace:
    """The original's tiny networks, rebuilt from names, and what they were shown."""
    torch.set_num_threads(1)
    rule = reference.rule()
    facts = reference.manifest()
    shape = tuple(facts["training_latent_shape"])

    def fill(module: torch.nn.Module, prefix: str, salt: str) -> torch.nn.Module:
        values = {k: rule["init_from_key"](prefix + k, v.shape, salt) for k, v in module.state_dict().items()}
        module.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()})
        return module.eval()

    def unet(salt: str) -> torch.nn.Module:
        config = json.loads((FOLDER / "assets" / "unet_tiny.json").read_text())
        return fill(UNet2DConditionModel.from_config(config), "unet.", salt)

    def encode(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        folder = FOLDER / "assets" / "tiny-t5"
        text_encoder = fill(T5EncoderModel(T5Config.from_pretrained(folder)), "text_encoder.", facts["weights"]["A"])
        tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            return text_encoder(**tokens).last_hidden_state, tokens["attention_mask"].bool()

    def draw(name: str, wanted: tuple[int, ...] = shape) -> torch.Tensor:
        return torch.from_numpy(rule["draw"](f"{facts['prefix']}/{name}", wanted))

    def noise(salt: str, key: str, like: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(rule["init_from_key"](f"unet.{key}", like.shape, salt))

    states, mask = encode(facts["training_prompts"])
    return SimpleNamespace(
        facts=facts,
        a=facts["weights"]["A"],
        b=facts["weights"]["B"],
        unet=unet,
        draw=draw,
        noise=noise,
        states=states,
        mask=mask,
        shape=shape,
        steps=torch.tensor(facts["training_timesteps"]),
        alphas=load_file(FOLDER / "scheduler.safetensors")["alphas_cumprod"],
    )


def near(world: SimpleNamespace) -> torch.nn.Module:
    """Weights A, a hundredth of the way towards B wherever they are matrices."""
    unet = world.unet(world.a)
    with torch.no_grad():
        for name, value in unet.named_parameters():
            if value.dim() >= 2:
                value.add_(world.noise(world.b, name, value), alpha=0.01)
    return unet


def denoiser(world: SimpleNamespace, unet: torch.nn.Module) -> TangoDenoiser:
    empty = Conditioning(states=world.states[:1], mask=world.mask[:1])
    return TangoDenoiser(unet, Process(world.alphas, "v_prediction"), empty)  # type: ignore[arg-type]


def assert_gradients(unet: torch.nn.Module, recorded: dict[str, torch.Tensor], case: str, tolerance: float) -> None:
    """The norm of all gradients, and the root mean square of each recorded one's difference, relative."""
    found = {f"unet.{name}": value.grad for name, value in unet.named_parameters() if value.grad is not None}
    norm = float(sum(value.double().pow(2).sum() for value in found.values())) ** 0.5
    assert norm == pytest.approx(float(recorded[f"{case}.unet_grad_l2"]), rel=tolerance)
    kept = [name for name in recorded if name.startswith(f"{case}.grad.")]
    assert kept
    for name in kept:
        expected = recorded[name]
        gap = found[name.removeprefix(f"{case}.grad.")] - expected
        # Where policy and reference answer nearly alike, a gradient is the difference of two that nearly cancel.
        assert gap.norm() <= tolerance * expected.norm(), name


def cases(file: str, quick: str) -> list[Any]:
    """The recorded cases of a loss; by default only one of each kind runs."""
    found = [key.removesuffix(".loss") for key in reference.keys(FOLDER / file) if key.endswith(".loss")]
    return [pytest.param(one, marks=() if one.endswith(quick) else pytest.mark.slow) for one in found]


@pytest.mark.parametrize("case", cases("ldm_loss.safetensors", "plain"))
def test_ldm_errors_losses_and_gradients_are_the_recorded_ones(case: str, world: SimpleNamespace) -> None:
    recorded, unet = load_file(FOLDER / "ldm_loss.safetensors"), world.unet(world.a)
    gamma = 5.0 if f"{case}.weights" in recorded else None
    # The released validation has one timestep for all.
    steps = torch.full_like(world.steps, 500) if case == "validation" else world.steps
    batch = Batch(
        world.draw("ldm/latents"), None, Conditioning(states=without(world, world.states, case), mask=world.mask)
    )
    noise = world.draw("ldm/noise")
    draws = Draws(steps, noise, noise, torch.zeros(len(noise), dtype=torch.bool))
    weighting = "prediction" if gamma is None else "released"
    noisy = add_noise(denoiser(world, unet), batch, draws, losers=False, gamma=gamma, weighting=weighting)
    errors = replace(noisy, weights=None).errors(unet)
    torch.testing.assert_close(errors.detach(), recorded[f"{case}.per_sample_mse"], rtol=1e-5, atol=0)
    loss = (errors if noisy.weights is None else errors * noisy.weights).mean()
    assert loss.item() == pytest.approx(float(recorded[f"{case}.loss"]), rel=1e-5)
    loss.backward()
    assert_gradients(unet, recorded, case, 1e-4)


def test_released_min_snr_weights_are_the_recorded_ones(world: SimpleNamespace) -> None:
    recorded = load_file(FOLDER / "ldm_loss.safetensors")
    bars = world.alphas[world.steps]
    listed = [key.removesuffix(".weights") for key in recorded if key.endswith(".weights")]
    assert listed
    for case in listed:
        weights = omega("released", bars, "v_prediction", 5.0)
        torch.testing.assert_close(weights, recorded[f"{case}.weights"].flatten(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(signal_to_noise(bars), recorded[f"{case}.snr"].flatten(), rtol=1e-4, atol=1e-6)


def without(world: SimpleNamespace, states: torch.Tensor, case: str) -> torch.Tensor:
    """States of which the original's caption dropout zeroed some; our own puts the empty caption in their place."""
    kept = states.clone()
    if case.endswith("uncond"):
        kept[world.facts["uncond_items"]] = 0
    return kept


@pytest.mark.parametrize("case", cases("dpo_loss.safetensors", "near"))
def test_dpo_errors_loss_and_gradients_are_the_recorded_ones(case: str, world: SimpleNamespace) -> None:
    recorded = load_file(FOLDER / "dpo_loss.safetensors")
    beta, kind = float(case.split("_")[0].removeprefix("beta")), case.split("_")[1]
    policy = near(world) if kind == "near" else world.unet(world.a)
    frozen = world.unet(world.b if kind == "other" else world.a)
    count = world.shape[0]
    noise = world.draw("dpo/noise", (2 * count, *world.shape[1:]))[:count]
    captions = Conditioning(states=world.states, mask=world.mask)
    batch = Batch(world.draw("dpo/latent_w"), world.draw("dpo/latent_l"), captions)
    draws = Draws(world.steps, noise, noise, torch.zeros(count, dtype=torch.bool))
    noisy = add_noise(denoiser(world, policy), batch, draws, losers=True, gamma=None)
    # The original drops the winners' captions alone.
    shown = without(world, noisy.conditioning["states"], case)
    noisy = replace(
        noisy, conditioning=Conditioning(noisy.conditioning | {"states": shown})
    )  # the original drops the winners' alone
    with torch.no_grad():
        known = noisy.errors(frozen)
    errors = add_reference_errors(split_errors(noisy.errors(policy), losers=True), known)
    assert_recorded(errors, recorded, case)
    loss = dpo(errors, beta).mean()
    assert loss.item() == pytest.approx(float(recorded[f"{case}.loss"]), rel=1e-6 if kind == "identical" else 2e-3)
    loss.backward()
    assert_gradients(policy, recorded, case, 5e-3)


def assert_recorded(errors: Errors, recorded: dict[str, torch.Tensor], case: str) -> None:
    policy = torch.cat([errors.policy_winner, errors.policy_loser]).detach()
    frozen = torch.cat([errors.reference_winner, errors.reference_loser])
    torch.testing.assert_close(policy, recorded[f"{case}.policy_mse_w_then_l"], rtol=1e-5, atol=0)
    torch.testing.assert_close(frozen, recorded[f"{case}.ref_mse_w_then_l"], rtol=1e-5, atol=0)
