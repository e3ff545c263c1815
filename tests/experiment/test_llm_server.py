"""The language-model perturber against a server of others: `transformers serve`, with a tiny model of random weights.

What such a model says is noise, so every caption must be refused with its reason, and the run go on without.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_parts import RECIPE, FakeParts

from milonga.core.records import Pair, Refusal, Request
from milonga.core.store import Run, read_json
from milonga.experiment import run as pipeline
from milonga.experiment.recipe import parse_recipe
from milonga.experiment.registry import DEFAULT as registry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SERVE = "import sys; from transformers.cli.transformers import main; sys.exit(main())"


class Parts(FakeParts):
    """The fakes, with the registry's own perturbers."""

    perturber = staticmethod(registry.perturber)


def tiny_model(folder: Path) -> Path:
    """A Llama of one layer with random weights, and a tokenizer of single bytes with a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    names = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE(vocab={name: place for place, name in enumerate(names)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(names), max_position_embeddings=4096, **sizes, **ends))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """The perturber's name for the model that the server serves."""
    pytest.importorskip("fastapi", reason="transformers serve needs fastapi and uvicorn")
    folder = tiny_model(tmp_path_factory.mktemp("model"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, *words], env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=log, stderr=log
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield f"llm:{folder}@http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 600  # a busy machine takes minutes to import
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())


def go(out: Path, perturber: str) -> Run:
    settings = (f'plan.perturber="{perturber}"', "plan.llm.attempts=2", "plan.llm.concurrency=2")
    return pipeline.run(parse_recipe(RECIPE, "fake.toml", settings), out, parts=Parts(), until="pair")


def test_a_real_servers_garbage_is_refused_caption_by_caption_and_the_run_goes_on(tmp_path, monkeypatch, server):
    monkeypatch.setenv("MILONGA_CACHE", str(tmp_path / "cache"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    run = go(tmp_path / "run", server)
    refused = run.stage("refused/plan").read_records(Refusal)
    assert len(refused) == 10
    assert all("refused after 2 attempts: " in one.reason and one.reason.isprintable() for one in refused)
    assert {request.strategies for request in run.stage("plan").read_records(Request)} == {("1",)}
    pairs = [*run.stage("pair").read_records(Pair), *run.stage("refused").read_records(Pair)]
    assert {one.strategy for one in pairs} == {"1"}
    spent = read_json(run.path / "metrics" / "perturber.json")
    assert (spent["requests"], spent["cached"]) == (20, 0)
    assert spent["tokens_in"] > 20 * 100
    assert spent["tokens_out"] >= 20  # how many is the server's affair
    assert not (tmp_path / "cache").exists()
