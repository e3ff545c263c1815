"""Writes recorded numbers like those of `shared/reference`, with other seeds, names, shapes, prompts and step counts.

`python tests/another_reference.py FOLDER [--large]`: tests/parity on `MILONGA_REFERENCE=FOLDER` shows that the
tests assume nothing of the first folder. Expected arrays come from stock diffusers and transformers networks and from
plain formulas, never from Milonga. Layouts, the tiny tokenizer and audio that needs the original's resampler are taken
over from the recorded folder. `--large` adds what full-size networks answer (6 GB).
"""

import argparse
import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import another_audio
import another_evaluation
import another_networks
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, T5Config, T5EncoderModel

SOURCE = Path(__file__).parents[3] / "shared" / "reference"
FACTS: dict[str, Any] = {
    "prefix": "held",
    "weights": {"A": "held3", "B": "held4"},
    "prompts": ["two cats meows loud", "wind", "a train passing then a bell ringing and a crowd cheering"],
    "samples_per_prompt": 1,
    "steps": 7,
    "training_prompts": ["thunder followed by quiet rain", "a piano"],
    "training_latent_shape": [2, 8, 24, 16],
    "training_timesteps": [999, 260],
    "uncond_items": [0],
    "vae_names": ["short", "one"],
    "full_unet_latent_shape": [1, 8, 32, 16],
    "full_unet_text_shape": [1, 5, 1024],
    "mix_ratios": [0.3, 0.5],
}
GRADIENTS = ("conv_in.weight", "conv_out.bias", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_v.weight")
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
BARS = torch.cumprod(1 - BETAS, 0)


class Maker:
    """The rule by which weights and inputs come from names, and the tiny networks by it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rule = folder, runpy.run_path(str(folder / "init_rule.py"))

    def draw(self, name: str, shape: Any) -> Tensor:
        return torch.from_numpy(self.rule["draw"](f"{FACTS['prefix']}/{name}", tuple(shape)))

    def value(self, key: str, shape: Any, salt: str) -> Tensor:
        return torch.from_numpy(self.rule["init_from_key"](key, tuple(shape), salt))

    def filled(self, network: Any, prefix: str, which: str = "A") -> Any:
        salt = FACTS["weights"][which]
        with torch.no_grad():
            for key, held in network.state_dict().items():
                held.copy_(self.value(prefix + key, held.shape, salt))
        return network.eval()

    def unet(self, which: str = "A") -> Any:
        config = json.loads((self.folder / "assets" / "unet_tiny.json").read_text())
        return self.filled(UNet2DConditionModel.from_config(config), "unet.", which)

    def encoded(self, texts: list[str], **padding: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, hidden states and boolean mask of texts."""
        assets = self.folder / "assets" / "tiny-t5"
        encoder = self.filled(T5EncoderModel(T5Config.from_pretrained(assets)), "text_encoder.")
        told = AutoTokenizer.from_pretrained(assets)(texts, return_tensors="pt", **(padding or {"padding": True}))
        with torch.no_grad():
            hidden = encoder(**told).last_hidden_state
        return told.input_ids, hidden, told.attention_mask.bool()


def leading(count: int) -> list[int]:
    """The original's timesteps: multiples of 1000 // N from the last to 0, each one later."""
    return [place * (1000 // count) + 1 for place in reversed(range(count))]


def stepped(v: Tensor, x: Tensor, noise: Tensor, step: int, count: int) -> tuple[Tensor, Tensor]:
    """One step of ancestral sampling (Ho et al. 2020, Eqs. 6 and 7) from a velocity: the next sample, and x0."""
    bars, before = BARS.double(), step - 1000 // count
    bar, last = bars[step], bars[before] if before >= 0 else torch.ones((), dtype=torch.float64)
    alpha = bar / last
    clean = bar.sqrt() * x.double() - (1 - bar).sqrt() * v.double()
    mean = last.sqrt() * (1 - alpha) / (1 - bar) * clean + alpha.sqrt() * (1 - last) / (1 - bar) * x.double()
    spread = ((1 - last) / (1 - bar) * (1 - alpha)).clamp(min=1e-20).sqrt()
    return (mean + spread * noise.double()).float(), clean.float()


def noisy(x: Tensor, noise: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Noised latents and their velocities."""
    bars = BARS[steps].reshape(-1, 1, 1, 1)
    return bars.sqrt() * x + (1 - bars).sqrt() * noise, bars.sqrt() * noise - (1 - bars).sqrt() * x


def schedule(make: Maker) -> dict[str, Tensor]:
    made = {"betas": BETAS, "alphas_cumprod": BARS}
    made |= {f"timesteps.{count}": torch.tensor(leading(count)) for count in (4, 8, 40, 125, 999)}
    shape = (2, 8, 8, 16)
    for count, place in ((4, 0), (40, 17), (125, 124)):
        v, x, noise = (make.draw(f"sched/{name}", shape) for name in ("v", "x", "n"))
        made[f"step.{count}.{place}.prev"], made[f"step.{count}.{place}.x0"] = stepped(
            v, x, noise, leading(count)[place], count
        )
    steps = torch.tensor([0, 400, 999, 77])
    x, noise = make.draw("sched/x0", (4, 8, 8, 16)), make.draw("sched/eps", (4, 8, 8, 16))
    made["add_noise.timesteps"], (made["add_noise"], made["velocity"]) = steps, noisy(x, noise, steps)
    return made


@torch.no_grad()
def sampling(make: Maker) -> dict[str, Tensor]:
    ids, hidden, mask = make.encoded(FACTS["prompts"])
    made = {"encode_text.input_ids": ids, "encode_text.hidden": hidden, "encode_text.mask": mask}
    count, length = len(FACTS["prompts"]), mask.shape[1]
    _, empty, own = make.encoded([""] * count, padding="max_length", max_length=length)
    times = FACTS["samples_per_prompt"]
    states = torch.cat([empty.repeat_interleave(times, 0), hidden.repeat_interleave(times, 0)])
    seen = torch.cat([own.repeat_interleave(times, 0), mask.repeat_interleave(times, 0)])
    made |= {"encode_cfg.hidden": states, "encode_cfg.mask": seen} | answers(make)
    for guidance in (1, 4.5):
        made |= loop(make, states, seen, guidance)
    return made


def answers(make: Maker) -> dict[str, Tensor]:
    unet, x, states = make.unet(), make.draw("tiny/x", (2, 8, 40, 16)), make.draw("tiny/ctx", (2, 6, 64))
    mask = torch.arange(6)[None] < torch.tensor([[2], [6]])
    made = {"unet.ctx_mask": mask}
    steps = torch.tensor(FACTS["training_timesteps"][:2])
    for name, step, given in (("t77", 77, mask), ("nomask_t77", 77, None), ("t_per_sample", steps, mask)):
        answer = unet(x, step, encoder_hidden_states=states, encoder_attention_mask=given)
        made[f"unet.out_{name}"] = answer.sample
    return made


def loop(make: Maker, states: Tensor, mask: Tensor, guidance: float) -> dict[str, Tensor]:
    rows, unet = len(states) // 2, make.unet()
    shape, name = (rows, 8, 64, 16), f"loop.g{guidance}"
    x, made = make.draw("loop/init", shape), {f"{name}.timesteps": torch.tensor(leading(FACTS["steps"]))}
    for place, step in enumerate(leading(FACTS["steps"])):
        against, towards = unet(
            torch.cat([x, x]), step, encoder_hidden_states=states, encoder_attention_mask=mask
        ).sample.chunk(2)  # fmt: skip
        v = against + guidance * (towards - against)
        x = stepped(v, x, make.draw(f"loop/noise{place}", shape), step, FACTS["steps"])[0]
        made.setdefault(f"{name}.after_step0", x)
    return made | {f"{name}.final": x}


def told(loss: Tensor, unet: Any, name: str) -> dict[str, Tensor]:
    """A loss, the norm of its gradient, and some of the gradient."""
    loss.backward()
    found = {key: value.grad for key, value in unet.named_parameters() if value.grad is not None}
    norm = sum(float(value.double().pow(2).sum()) for value in found.values()) ** 0.5
    made = {f"{name}.grad.unet.{key}": found[key] for key in GRADIENTS}
    return made | {f"{name}.loss": loss.detach().reshape(1), f"{name}.unet_grad_l2": torch.tensor([norm]).double()}


def errors(unet: Any, x: Tensor, noise: Tensor, steps: Tensor, states: Tensor, mask: Tensor) -> Tensor:
    inputs, wanted = noisy(x, noise, steps)
    answer = unet(inputs, steps, encoder_hidden_states=states, encoder_attention_mask=mask).sample
    return (answer - wanted).pow(2).mean((1, 2, 3))


def ldm(make: Maker) -> dict[str, Tensor]:
    shape, steps = FACTS["training_latent_shape"], torch.tensor(FACTS["training_timesteps"])
    _, states, mask = make.encoded(FACTS["training_prompts"])
    x, noise, ratio = make.draw("ldm/latents", shape), make.draw("ldm/noise", shape), BARS / (1 - BARS)
    table = torch.tensor([0, 3, 50, 600, 999])
    made = {"table.timesteps": table, "table.snr": ratio[table]}
    made["table.weight_gamma5"] = ratio[table].clamp(max=5) / ratio[table]
    dropped = states.clone()
    dropped[FACTS["uncond_items"]] = 0
    cases = {
        "snr5": (steps, states, 5), "plain": (steps, states, None), "snr5_uncond": (steps, dropped, 5),
        "validation": (torch.full_like(steps, 500), states, 5), "sft_plain": (steps, states, None),
    }  # fmt: skip
    for name, (at, shown, gamma) in cases.items():
        unet = make.unet()
        found = errors(unet, x, noise, at, shown, mask)
        weights = 1 if gamma is None else ratio[at].clamp(max=gamma) / ratio[at]
        made |= told((found * weights).mean(), unet, name) | {f"{name}.per_sample_mse": found.detach()}
        if gamma:
            listed = ratio[steps]
            made |= {f"{name}.snr": listed, f"{name}.weights": listed.clamp(max=gamma) / listed}
    return made


def preference(make: Maker) -> dict[str, Tensor]:
    shape, steps = FACTS["training_latent_shape"], torch.tensor(FACTS["training_timesteps"]).repeat(2)
    count = shape[0]
    noise = make.draw("dpo/noise", (2 * count, *shape[1:]))[:count].repeat(2, 1, 1, 1)
    x = torch.cat([make.draw("dpo/latent_w", shape), make.draw("dpo/latent_l", shape)])
    _, states, mask = make.encoded(FACTS["training_prompts"])
    made = {}
    for case in ("beta700_near", "beta3000_other", "beta50_identical", "beta1200_near_uncond"):
        shown, policy = states.repeat(2, 1, 1), make.unet()
        if case.endswith("uncond"):
            shown[FACTS["uncond_items"]] = 0
        if "near" in case:
            with torch.no_grad():
                for key, value in policy.named_parameters():
                    if value.dim() >= 2:
                        value.add_(make.value("unet." + key, value.shape, FACTS["weights"]["B"]), alpha=0.01)
        ours = errors(policy, x, noise, steps, shown, mask.repeat(2, 1))
        with torch.no_grad():
            frozen = make.unet("B" if "other" in case else "A")
            theirs = errors(frozen, x, noise, steps, shown, mask.repeat(2, 1))
        beta = float(case.split("_")[0].removeprefix("beta"))
        gaps = [found[:count] - found[count:] for found in (ours, theirs)]
        logits = -0.5 * beta * (gaps[0] - gaps[1])
        made |= told(-torch.nn.functional.logsigmoid(logits).mean(), policy, case)
        made |= {f"{case}.policy_mse_w_then_l": ours.detach(), f"{case}.ref_mse_w_then_l": theirs}
        made[f"{case}.logsigmoid_arg"] = logits.detach()
    return made


def write(folder: Path, large: bool = False) -> Path:
    """Another folder of recorded numbers, `tango` and `evaluation`."""
    torch.set_num_threads(1)
    tango = folder / "tango"
    tango.mkdir(parents=True)
    for name in ("assets", "layouts"):
        shutil.copytree(SOURCE / "tango" / name, tango / name)
    shutil.copy(SOURCE / "tango" / "init_rule.py", tango)
    make, held = Maker(tango), {}
    held["scheduler"], held["tiny_unet_sampling"] = schedule(make), sampling(make)
    held["ldm_loss"], held["dpo_loss"] = ldm(make), preference(make)
    audio, words, wavs = another_audio.made(SOURCE / "tango", tango, FACTS["mix_ratios"])
    if large:
        held["vae_vocoder"], held["e2e_decode"] = another_networks.sound(
            make, FACTS, held["tiny_unet_sampling"]["loop.g4.5.final"]
        )
        held["full_size_nets"] = another_networks.full(make, FACTS)
    for name, tensors in held.items():
        save_file({key: value.contiguous().clone() for key, value in tensors.items()}, tango / f"{name}.safetensors")
    save_file(audio, tango / "audio.safetensors", words)
    (tango / "manifest.json").write_text(json.dumps(FACTS | {"wavs": wavs}))
    another_evaluation.write(SOURCE / "evaluation", folder / "evaluation", large)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--large", action="store_true")
    asked = parser.parse_args()
    write(asked.folder, asked.large)
