"""Which clips to generate: the paper's strategies (§4.1.1) as requests.

The clip x_τ of a prompt's own words at 50 steps serves strategies 1.1, 1.2, 2 and 3 at once; it is planned once, with
all of them listed, so nothing is generated twice.
"""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from milonga.core.config import Strategy
from milonga.core.errors import DataError
from milonga.core.ids import derive_seed
from milonga.core.protocols import Perturber
from milonga.core.records import Prompt, Refusal, Request
from milonga.preference.select import temporal

Planned = tuple[list[Request], list[Refusal]]


def plan(
    prompts: Sequence[Prompt],
    strategies: Sequence[Strategy],
    perturber: Perturber,
    run_seed: int,
    advance: Callable[[int], None] = lambda count: None,
) -> Planned:
    """The requests of all prompts under all strategies, each clip once, and the prompts that gave too few.

    Order: prompt by prompt, strategy by strategy, also where the perturber works on several prompts at once.
    `advance(1)` is called after each prompt. Raises DataError when two strategies share a name.
    """
    names = [strategy.name for strategy in strategies]
    if len(set(names)) < len(names):
        raise DataError(f"two strategies have the same name (names: {', '.join(names)}); rename one")
    temporal_ids = {prompt.id for prompt in temporal(prompts)}

    def plan_prompt(prompt: Prompt) -> Planned:
        requests: list[Request] = []
        refusals: list[Refusal] = []
        for strategy in strategies:
            if prompt.id in temporal_ids if strategy.negatives == "temporal" else prompt.diverse:
                new, reason = _requests(prompt, strategy, perturber, run_seed)
                requests += new
                if reason:
                    refusals.append(Refusal(stage="plan", id=prompt.id, reason=f"{strategy.name}: {reason}"))
        return requests, refusals

    merged: dict[str, Request] = {}
    refusals: list[Refusal] = []
    with closing(_in_order(plan_prompt, prompts, perturber)) as plans:
        for requests, refused in plans:
            refusals += refused
            for request in requests:
                known = merged.setdefault(request.id, request)
                if request.strategies[0] not in known.strategies:  # the same clip serves another strategy too
                    strategies_of_both = known.strategies + request.strategies
                    merged[request.id] = known.model_copy(update={"strategies": strategies_of_both})
            advance(1)
    return list(merged.values()), refusals


def _in_order(
    work: Callable[[Prompt], Planned], prompts: Sequence[Prompt], perturber: Perturber
) -> Generator[Planned, None, None]:
    """`work` for each prompt, in the order of the prompts, by as many threads as the perturber allows.

    After an error or Ctrl-C no new prompt is started, and calls under way are stopped.
    """
    shared: Any = perturber  # `concurrency` and `stop` are optional in the protocol
    if not hasattr(shared, "concurrency"):
        yield from map(work, prompts)
        return
    pool = ThreadPoolExecutor(shared.concurrency, thread_name_prefix="perturb")
    try:
        for future in [pool.submit(work, prompt) for prompt in prompts]:
            yield future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)  # first, or the stopped threads would take up waiting prompts
        shared.stop()
        raise
    finally:
        pool.shutdown()


def _requests(prompt: Prompt, strategy: Strategy, perturber: Perturber, run_seed: int) -> tuple[list[Request], str]:
    """One prompt's requests under one strategy, and why there are fewer than the strategy asks for ("").

    Clips of the same words and steps are numbered 0, 1, 2, …; x_τ has number 0.
    """

    def request(words: str, steps: int, number: int) -> Request:
        return Request.of(run_seed, prompt, words, steps, strategy.guidance, number, (strategy.name,))

    steps = strategy.steps
    if strategy.negatives == "none":
        return [request(prompt.text, count, steps[:place].count(count)) for place, count in enumerate(steps)], ""
    wrong, reason = _wrong_captions(prompt, strategy, perturber, run_seed)
    # Without a wrong caption x_τ would have nothing to win against.
    return [request(text, steps[0], 0) for text in ([prompt.text, *wrong] if wrong else [])], reason


def _wrong_captions(prompt: Prompt, strategy: Strategy, perturber: Perturber, run_seed: int) -> tuple[list[str], str]:
    """At most `num_negatives` captions, none the caption itself or another one again, and why there are fewer ("")."""
    seed = derive_seed(run_seed, "perturb", strategy.negatives, prompt.id)
    try:
        texts = perturber.perturb(prompt, strategy.num_negatives, temporal=strategy.negatives == "temporal", seed=seed)
    except DataError as refusal:  # of this caption alone: it is refused with its reason, and the next one is planned
        return [], str(refusal)
    distinct: dict[str, str] = {}
    for text in texts:
        distinct.setdefault(_normal(text), text.strip())
    own = _normal(prompt.text)
    wrong = [text for normal, text in distinct.items() if normal and normal != own][: strategy.num_negatives]
    if len(wrong) < strategy.num_negatives:
        return wrong, f"perturber {perturber.name!r} gave {len(wrong)} of {strategy.num_negatives} wrong captions"
    return wrong, ""


def _normal(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(" .")
