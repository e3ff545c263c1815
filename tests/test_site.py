"""The documentation builds strictly: no dead link, no dead anchor, no page outside the navigation."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_site_builds_without_a_warning(tmp_path):
    build = pytest.importorskip("mkdocs.commands.build", reason="pip install -e '.[dev]' installs mkdocs")
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    build.build(config)  # raises mkdocs.exceptions.Abort on the first warning of a strict build
    assert (tmp_path / "benchmarks" / "alignment" / "index.html").exists()
    assert (tmp_path / "tutorials" / "generate" / "index.html").exists()


def test_pages_load_nothing_from_other_hosts(tmp_path):
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "highlightjs: false" in text
