"""Arguments of a pipeline that make no sense are refused in one line; a text that is too long is not cut in silence."""

import warnings
from typing import Any

import pytest
import small_networks

from milonga.core.errors import MilongaError, MilongaWarning, RecipeError
from milonga.models.generator import DenoiserModel
from milonga.models.tango import MAX_TOKENS, TangoPipeline
from milonga.models.tango_denoiser import TangoDenoiser


@pytest.fixture(scope="module")
def pipe() -> TangoPipeline:
    return small_networks.pipeline()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": None}, "the prompt is empty"),
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": ["a dog", None]}, "the prompt is empty"),
        ({"prompt": "a dog \udcff"}, "a prompt holds half a character"),
        ({"seeds": [2**70]}, "a seed is a whole number of at most 64 bits, not 1180591620717411303424"),
        ({"seeds": "7"}, "a seed is a whole number of at most 64 bits, not '7'"),
        ({"seeds": [1.5]}, "a seed is a whole number"),
        ({"num_inference_steps": "5"}, "steps must be a whole number, not '5'"),
        ({"num_inference_steps": 2.5}, r"steps must be a whole number, not 2\.5"),
        ({"audio_length_in_s": 0.00001}, "a clip must have a sample and be longer than 0 s, not 1e-05 s"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused(
    pipe: TangoPipeline, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(MilongaError, match=message) as error:
        pipe(**({"prompt": "a dog", "num_inference_steps": 1, "guidance_scale": 1.0} | arguments))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seconds", [-0.5, 0.0, float("nan"), float("inf")])
def test_a_length_that_makes_no_sense_is_refused_by_any_denoiser(pipe: TangoPipeline, seconds: float) -> None:
    model = DenoiserModel("tiny", TangoDenoiser.of(pipe), device="cpu")
    usual: dict[str, Any] = {"seeds": 0, "num_inference_steps": 1, "guidance_scale": 1.0}
    with pytest.raises(RecipeError, match=f"a clip's length is a positive number of seconds, not {seconds}"):
        model("a dog", audio_length_in_s=seconds, **usual)
    assert model("a dog", audio_length_in_s=0.1, **usual).audios[0].shape == (1600,)


def test_a_text_beyond_the_limit_says_how_much_has_no_effect(pipe: TangoPipeline) -> None:
    word = small_networks.WORDS[0].split()[0]
    length = len(pipe.tokenizer(word).input_ids) - 1
    with pytest.warns(MilongaWarning, match=r"has \d+ tokens: the last \d+ have no effect") as caught:
        _, mask = pipe.encode_prompt([" ".join([word] * (600 // length + 1))])
    assert mask.shape[1] == MAX_TOKENS
    assert len(caught) == 1


def test_a_text_beyond_what_the_model_knows_says_so(pipe: TangoPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe.tokenizer, "model_max_length", 3)
    with pytest.warns(MilongaWarning, match="tokens: this model was trained on 3 at most"):
        pipe.encode_prompt([small_networks.WORDS[0]])


def test_usual_texts_are_encoded_without_a_word(pipe: TangoPipeline) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.encode_prompt(small_networks.WORDS)
