"""The site in a browser: readable in both colour schemes, and no page wider than a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.markdown import ROOT
from tests.docs.test_site import build

playwright = pytest.importorskip("playwright.sync_api", reason="needs the browser extra")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on PATH"),
]
PHONE = {"width": 375, "height": 812}
PAGES = sorted(path.stem for path in (ROOT / "docs").glob("*.md") if path.stem != "README")
# Elements that stand out of the window without a parent that scrolls.
WIDER = """() => [...document.querySelectorAll("body *")].filter(element => {
  const box = element.getBoundingClientRect();
  if (!box.width || box.right <= innerWidth + 1) return false;
  for (let at = element; at !== document.body; at = at.parentElement) {
    const style = getComputedStyle(at);
    if (style.overflowX !== "visible" || style.position === "fixed") return false;
  }
  return true;
}).map(element => element.outerHTML.slice(0, 80))"""
# Contrast of text and its background (WCAG 2.1) below 4.5, of the page's own text.
FAINT = """() => {
  const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const over = (top, below) => {
    const a = top.length > 3 ? top[3] : 1;
    return [0, 1, 2].map(i => a * top[i] + (1 - a) * below[i]);
  };
  const behind = element => {
    const layers = [];
    for (let at = element; at; at = at.parentElement)
      layers.push(rgb(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const found = new Set();
  const walker = document.createTreeWalker(
    document.querySelector("article"), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim()) continue;
    if (element.closest(".headerlink, nav, button")) continue;
    const below = behind(element), text = over(rgb(getComputedStyle(element).color), below);
    const [a, b] = [luminance(text), luminance(below)].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) found.add(`${contrast.toFixed(2)} ${element.outerHTML.slice(0, 60)}`);
  }
  return [...found];
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def opened(browser: Any, scheme: str) -> Any:
    return browser.new_context(viewport=PHONE, color_scheme=scheme).new_page()


def test_no_page_is_wider_than_a_phone_or_faint(site: Path, browser: Any) -> None:
    for scheme in ("light", "dark"):
        page = opened(browser, scheme)
        for name in ["", *PAGES]:
            page.goto((site / name / "index.html").as_uri())
            assert page.evaluate(WIDER) == [], name
            assert page.evaluate(FAINT) == [], (scheme, name)


def test_what_is_wider_or_faint_would_be_found(site: Path, browser: Any) -> None:
    page = opened(browser, "light")
    page.goto((site / "citing" / "index.html").as_uri())
    page.evaluate(
        """document.querySelector("article").innerHTML +=
        '<p style="width: 900px; color: #aaa">too wide and too faint</p>'"""
    )
    assert len(page.evaluate(WIDER)) == 1 and len(page.evaluate(FAINT)) == 1
