"""write_report: what the page says of a whole run, of half a run, and of a hostile one."""

import re
from pathlib import Path

import pytest
from synthetic_run import FACTS, HOSTILE, RECIPE, make_run

from milonga.core.errors import StoreError
from milonga.core.store import write_json
from milonga.reports.html import controls, facts, subject_of, toml_tables, write_report


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report") / "run", prompts=12)


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_the_claim_names_what_got_better_worse_or_neither(page: str) -> None:
    headline = re.search(r"<h1>(.*?)</h1>", page, re.S)
    assert headline is not None
    assert headline[1].startswith("On 400 captions, aligned is better than base: exact match +9.9 points")
    assert headline[1].endswith("worse: FD +0.30 [+0.06, +0.54].")
    assert re.search(r'<section class="finding neither">(?:(?!</section>).)*<li>KL', page, re.S)


@pytest.mark.parametrize(
    "text", ["Table 2", "Table 3", "Table 4", "Table 5", "Figure 2", "multi-concept · 290 captions"]
)
def test_every_table_and_figure_is_there(page: str, text: str) -> None:
    assert text in page


def test_the_page_refers_to_nothing_outside_itself(page: str) -> None:
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*""", page)
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_hostile_words_are_text(page: str) -> None:
    assert HOSTILE not in page
    assert page.count("<script>") == 1
    assert "<img src=x" not in page
    assert "&lt;script&gt;document.title" in page


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes(run: Path, page: str) -> None:
    assert write_report(run).read_text(encoding="utf-8") == page


def test_a_run_until_pair_has_its_pairs_and_says_what_is_missing(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "half", until="pair")).read_text(encoding="utf-8")
    assert "No result yet" in page
    assert "Table 2" in page
    assert "ranker-a: winner score" in page
    assert page.count("Not there yet.") == 5
    assert "--until train" in page
    assert "--until evaluate" in page


def test_a_run_until_train_shows_its_curves(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "trained", until="train")).read_text(encoding="utf-8")
    assert "Error over reference" in page
    assert page.index(">sft</span></h3>") < page.index(">aligned</span></h3>")
    assert page.count("Not there yet.") == 4


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path: Path) -> None:
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert page.count("Not there yet.") == 6
    assert "holds no recipe" in page


def test_no_run_folder_is_an_error_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is no run folder") as caught:
        write_report(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)


def test_an_interval_over_zero_is_never_claimed(tmp_path: Path) -> None:
    row = {"split": "overall", "metric": "clap", "a": "aligned", "b": "base", "difference": 0.02, "low": -0.01}
    row |= {"high": 0.05, "p": 0.2, "n": 60, "better": "aligned"}
    write_json(tmp_path / "metrics" / "comparisons.json", [row])
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "aligned fits its captions neither significantly better nor worse than base" in page
    assert 'class="word better"' not in page


def test_the_manifest_is_shown_whole() -> None:
    shown = {f"{title}.{key}": value for title, rows in facts(FACTS) for key, value in rows}
    assert shown["run.seed"] == "7"
    assert shown["timings.train.aligned"] == "141.2 s"
    assert len(shown) == 11


@pytest.mark.parametrize(
    ("systems", "subject"),
    [(["base", "sft", "aligned", "ipo"], "aligned"), (["base", "sft", "ipo", "reference"], "ipo"), (["base"], "base")],
)
def test_the_subject_is_aligned_or_the_last_trained(systems: list[str], subject: str) -> None:
    assert subject_of(systems) == subject


def test_only_what_is_fine_tuned_alone_is_a_control(page: str) -> None:
    assert "aligned against sft, the control" in page
    assert controls(toml_tables(RECIPE)) == {"sft"}
    assert controls(toml_tables("")) == controls(toml_tables("no = toml = at all")) == set()
    for loss, expected in {"ldm": {"sft"}, "ipo": set()}.items():
        other = RECIPE.replace('loss = "sft", epochs = 2', f'loss = "{loss}", epochs = 2')
        assert controls(toml_tables(other)) == expected


def test_a_note_of_a_model_stands_beside_the_comparison(tmp_path: Path, page: str) -> None:
    row = {"split": "overall", "metric": "clap", "a": "shipped", "b": "base", "difference": 0.02, "low": 0.01}
    write_json(
        tmp_path / "metrics" / "comparisons.json", [row | {"high": 0.05, "p": 0.01, "n": 60, "better": "shipped"}]
    )
    model = '[[evaluate.models]]\nname = "shipped"\nmodel = "nano-2"\nnote = "<b>what made it</b>, in 23 minutes"\n'
    (tmp_path / "recipe.toml").write_text(model)
    shown = write_report(tmp_path).read_text(encoding="utf-8")
    assert "shipped</span>: &lt;b&gt;what made it&lt;/b&gt;, in 23 minutes</p>" in shown
    assert "</span>: " not in page  # no model, no note


@pytest.mark.slow
def test_other_systems_are_compared_with_out_of_the_way(tmp_path: Path) -> None:
    path = make_run(tmp_path)
    text = (path / "recipe.toml").read_text().replace('loss = "sft", epochs = 2', 'loss = "ipo", epochs = 2')
    (path / "recipe.toml").write_text(text)
    shown = write_report(path).read_text(encoding="utf-8")
    assert "<summary>aligned against the other systems</summary>" in shown
    assert "<b>aligned against sft.</b>" in shown
    assert "the control" not in shown
