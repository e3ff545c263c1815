"""Which clips to make: the paper's strategies (§4.1.1) as requests.

The clip x_τ of a prompt's own words at 50 steps serves strategies 1.1, 1.2, 2 and 3 at once; it is planned once, with
all of them listed, so nothing is generated twice.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
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
    """The requests of all prompts under all strategies, each clip once, and the prompts that gave fewer than asked.

    Order: prompt by prompt, strategy by strategy, also where the perturber works on several prompts at once. `advance`
    is told of each prompt done. Raises DataError when two strategies share a name.
    """
    names = [strategy.name for strategy in strategies]
    if len(set(names)) < len(names):
        raise DataError(f"two strategies have the same name (names: {', '.join(names)}); rename one")
    in_time = {prompt.id for prompt in temporal(prompts)}

    def one(prompt: Prompt) -> Planned:
        def fits(strategy: Strategy) -> bool:
            return prompt.id in in_time if strategy.words == "temporal" else prompt.diverse

        fitting = [strategy for strategy in strategies if fits(strategy)]
        return _planned(prompt, fitting, perturber, run_seed)

    requests: dict[str, Request] = {}
    refusals: list[Refusal] = []
    with closing(_in_order(one, prompts, perturber)) as done:
        for made, refused in done:
            refusals += refused
            _merge(requests, made)
            advance(1)
    return list(requests.values()), refusals


def _in_order(
    work: Callable[[Prompt], Planned], prompts: Sequence[Prompt], perturber: Perturber
) -> Generator[Planned, None, None]:
    """`work` done for each prompt, in the order of the prompts, by as many threads as the perturber can take.

    After an error or Ctrl-C nothing more is begun, and what is under way is told to stop.
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
        pool.shutdown(wait=False, cancel_futures=True)  # first, or those that stop would begin what waits
        shared.stop()
        raise
    finally:
        pool.shutdown()


def _planned(prompt: Prompt, strategies: Iterable[Strategy], perturber: Perturber, run_seed: int) -> Planned:
    """One prompt's requests, strategy by strategy, and its refusals."""
    requests: list[Request] = []
    refusals: list[Refusal] = []
    for strategy in strategies:
        words, refused = _words(prompt, strategy, perturber, run_seed)
        refusals += refused
        requests += _requests(prompt, strategy, words, run_seed)
    return requests, refusals


def _words(
    prompt: Prompt, strategy: Strategy, perturber: Perturber, run_seed: int
) -> tuple[list[tuple[str, int, int]], list[Refusal]]:
    """(words, steps, number) of each clip: equal steps are numbered 0, 1, 2, ...; x_τ has number 0."""
    if strategy.words == "caption":
        steps = strategy.steps
        return [(prompt.text, count, steps[:place].count(count)) for place, count in enumerate(steps)], []
    wrong, reason = _perturbed(prompt, strategy, perturber, run_seed)
    refused = [Refusal(stage="plan", id=prompt.id, reason=f"{strategy.name}: {reason}")] if reason else []
    # Without a wrong caption x_τ would have nothing to win against.
    texts = [prompt.text, *wrong] if wrong else []
    return [(text, strategy.steps[0], 0) for text in texts], refused


def _perturbed(prompt: Prompt, strategy: Strategy, perturber: Perturber, run_seed: int) -> tuple[list[str], str]:
    """At most `count` wrong captions, none the caption itself or another one again, and why there are fewer ("")."""
    seed = derive_seed(run_seed, "perturb", strategy.words, prompt.id)
    try:
        made = perturber.perturb(prompt, strategy.count, temporal=strategy.words == "temporal", seed=seed)
    except DataError as refusal:  # of this caption alone: kept with its reason, and the next one gets its turn
        return [], str(refusal)
    distinct: dict[str, str] = {}
    for text in made:
        distinct.setdefault(_plain(text), text.strip())
    wrong = [text for plain, text in distinct.items() if plain and plain != _plain(prompt.text)][: strategy.count]
    few = len(wrong) < strategy.count
    return wrong, f"perturber {perturber.name!r} gave {len(wrong)} of {strategy.count} wrong captions" if few else ""


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(" .")


def _requests(
    prompt: Prompt, strategy: Strategy, words: Iterable[tuple[str, int, int]], run_seed: int
) -> Iterable[Request]:
    for text, steps, number in words:
        yield Request.of(run_seed, prompt, text, steps, strategy.guidance, number, (strategy.name,))


def _merge(requests: dict[str, Request], new: Iterable[Request]) -> None:
    """Adds requests to those there are; the same clip twice becomes one that serves both strategies."""
    for request in new:
        known = requests.get(request.id)
        if known is None:
            requests[request.id] = request
        elif request.strategies[0] not in known.strategies:
            strategies = known.strategies + request.strategies
            requests[request.id] = known.model_copy(update={"strategies": strategies})
