"""The page of `recbole_multdpo.demo` on real runs, driven in a browser."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recbole_multdpo import Recommender
from recbole_multdpo.demo import launch
from recbole_multdpo.errors import MultDPOError
from recbole_multdpo.quick_start import run
from tests.conftest import BrowserPage
from tests.integration.test_conversations import DATA, write_conversations
from tests.integration.toy import classical_arguments, toy_arguments, write_toy

pytest.importorskip("gradio", reason="needs: pip install 'recbole-multdpo[demo]'")
pytestmark = pytest.mark.integration


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def served(recommenders: list[Recommender]) -> Iterator[str]:
    page, address = launch(recommenders, free_port(), blocking=False)
    try:
        yield address
    finally:
        page.close()


@pytest.fixture(scope="module")
def asked_hosts() -> Iterator[list[str]]:
    """Names that this process looks up or connects to while the page is served."""
    hosts: list[str] = []
    look_up, connect = socket.getaddrinfo, socket.socket.connect

    def noting_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        hosts.append(str(host))
        return look_up(host, *args, **kwargs)

    def noting_connect(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple):
            hosts.append(str(address[0]))
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", noting_look_up)
        patch.setattr(socket.socket, "connect", noting_connect)
        yield hosts


@pytest.fixture(scope="module")
def address(
    browser: Any, asked_hosts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Address of a page of three runs; asks for the browser first, without which nothing is run."""
    data = write_toy(tmp_path_factory.mktemp("data"))
    (data / "toy" / "toy.yaml").write_text("item_text_fields: [movie_title]\n", encoding="utf-8")
    folder = tmp_path_factory.mktemp("runs")
    run(toy_arguments(data, folder / "sft", "--loss=sft"))
    run(toy_arguments(data, folder / "mult"))
    run(classical_arguments("EASE", data, folder / "EASE"))
    runs = [Recommender.load(folder / name) for name in ("sft", "mult", "EASE")]
    with served(runs) as url:
        yield url


def ask(page: Any, field: str, text: str) -> None:
    page.locator(f"#{field} textarea, #{field} input").first.fill(text)
    page.locator(f"#ask_{field}").click()


def ask_titles(page: Any, *titles: str) -> None:
    field = page.locator("#titles input").first
    for title in titles:
        field.fill(title)
        field.press("Enter")
    field.blur()  # closes the list of suggestions
    page.locator("#ask_titles").click()


def test_titles_of_three_runs(
    address: str, browser_page: BrowserPage, asked_hosts: list[str]
) -> None:
    page = browser_page.page
    page.goto(address)
    page.wait_for_selector("#ask_titles")
    assert "Each column is one finished run" in page.locator("body").inner_text()
    field = page.locator("#titles input").first
    field.fill("Night")  # completed from the catalogue
    offered = page.locator("[role=option]")
    offered.first.wait_for()
    assert all("Night" in text for text in offered.all_inner_texts()) and offered.count() >= 4
    field.fill("")
    ask_titles(page, "red night 0", "Blue River 0")
    page.wait_for_selector(".run li")
    assert page.locator(".run h3").all_inner_texts() == ["LLMRec sft", "LLMRec mult_dpo", "EASE"]
    assert page.locator(".run li").count() == 30
    assert "knows: Red Night 0; Blue River 0" in page.locator(".run").first.inner_text()
    assert page.get_by_role("tab").all_inner_texts() == ["Liked titles", "User of the data set"]
    assert browser_page.complaints == []
    assert all(url.startswith((address, "data:", "blob:")) for url in browser_page.requests)
    assert set(asked_hosts) <= {"127.0.0.1", "localhost"}


def test_mistyped_title_is_answered_in_the_page(address: str, browser_page: BrowserPage) -> None:
    page = browser_page.page
    page.goto(address)
    ask_titles(page, "Red Nigth 0")
    page.wait_for_selector(".problem")
    assert "did you mean 'Red Night 0'" in page.locator(".problem").first.inner_text()
    assert page.locator(".run li").count() == 0
    ask_titles(page, "<img src=x onerror=alert(1)>", "Blue River 0")  # after what was asked before
    page.wait_for_selector(".problem:has-text('onerror')")
    assert page.locator(".run img").count() == 0
    assert page.locator(".run li").count() == 30  # by the title that is known


# ratio of the contrast of visible texts that is too low, by WCAG 2 (large text has 3)
TOO_FAINT = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    if (!text || ["STYLE", "SCRIPT", "NOSCRIPT"].includes(element.tagName)) continue;
    if (!element.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
    const style = getComputedStyle(element);
    const [one, two] = [light(parse(style.color)), light(behind(element))].sort((a, b) => b - a);
    const large = parseFloat(style.fontSize) >= 24;
    const ratio = (one + 0.05) / (two + 0.05);
    if (ratio < (large ? 3 : 4.5)) faint.push(`${text.slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return faint;
}"""


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_texts_can_be_read_in_both_modes_on_a_phone(
    address: str, browser_page: BrowserPage, mode: str
) -> None:
    page = browser_page.page
    page.set_viewport_size({"width": 375, "height": 800})
    page.goto(f"{address}?__theme={mode}")
    page.wait_for_selector("#ask_titles")
    assert page.locator(".dark").count() == (mode == "dark")
    ask_titles(page, "Nowhere", "Blue River 0")
    page.wait_for_selector(".run li")
    assert page.locator(".run .score").count() == 20
    page.mouse.move(0, 0)
    page.wait_for_timeout(500)  # colours fade
    assert page.evaluate(TOO_FAINT) == []
    scroll_width, client_width = page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert scroll_width <= client_width
    page.evaluate("document.querySelector('.run h3').style.color = '#808080'")
    page.evaluate("document.querySelector('.run').style.background = '#707070'")
    assert any("LLMRec sft" in text for text in page.evaluate(TOO_FAINT))  # a control


def test_disliked_titles_have_a_field_where_a_run_reads_them(
    browser_page: BrowserPage, address: str, tmp_path: Path
) -> None:
    page = browser_page.page
    page.goto(address)
    page.wait_for_selector("#ask_titles")
    assert page.locator("#disliked").count() == 0
    data = write_toy(tmp_path / "data")
    (data / "toy" / "toy.yaml").write_text("item_text_fields: [movie_title]\n", encoding="utf-8")
    reading = ("--disliked_in_prompt=4", "--val_interval={'rating': '[5,inf)'}")
    run(toy_arguments(data, tmp_path / "low", *reading))
    run(classical_arguments("EASE", data, tmp_path / "EASE"))
    runs = [Recommender.load(tmp_path / name) for name in ("low", "EASE")]
    with served(runs) as url:
        page.goto(url)
        page.wait_for_selector("#ask_titles")
        field = page.locator("#disliked input").first
        field.fill("Blue River 0")
        field.press("Enter")
        ask_titles(page, "Red Night 0")
        page.wait_for_selector(".run li")
        reading_run, other = page.locator(".run").all_inner_texts()
        assert "disliked: Blue River 0" in reading_run
        assert "disliked: Blue" not in other and "does not know what is disliked" in other


def test_examples_fill_the_field(address: str, browser_page: BrowserPage) -> None:
    page = browser_page.page
    page.goto(address)
    page.locator(".gallery-item").first.click()
    page.wait_for_selector("#titles .token")
    page.locator("#ask_titles").click()
    page.wait_for_selector(".run li")
    assert page.locator("#titles .token").count() == 3 and page.locator(".problem").count() == 0


def test_user_of_the_data_set_and_a_narrow_screen(address: str, browser_page: BrowserPage) -> None:
    page = browser_page.page
    page.set_viewport_size({"width": 400, "height": 800})
    page.goto(address)
    page.get_by_role("tab", name="User of the data set").click()
    ask(page, "user", "u3")
    page.wait_for_selector(".run li")
    assert "✓: liked in the test part" in page.locator(".legend").inner_text()
    sizes = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    scroll_width, client_width = page.evaluate(sizes)
    assert scroll_width <= client_width


def test_conversation(browser: Any, browser_page: BrowserPage, tmp_path: Path) -> None:
    data = write_conversations(tmp_path / "data")
    (data / "toy" / "toy.yaml").write_text("item_text_fields: [movie_title]\n", encoding="utf-8")
    run(toy_arguments(data, tmp_path / "talk", *DATA))
    run(classical_arguments("EASE", data, tmp_path / "EASE", *DATA))
    runs = [Recommender.load(tmp_path / name) for name in ("talk", "EASE")]
    page = browser_page.page
    with served(runs) as url:
        page.goto(url)
        ask(page, "talk", "user: I loved Red Night 0\nassistant: Why?\nit was fun")
        page.wait_for_selector(".run li")
        assert page.locator(".run li").count() == 20
        assert page.locator(".problem").count() == 0
        ask(page, "talk", "anything?")
        page.wait_for_selector(".problem")  # EASE sees mentioned titles only
        assert page.locator(".run li").count() == 10


def test_a_port_that_is_taken_is_an_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(MultDPOError, match="choose another --port"):
            launch([], taken.getsockname()[1], blocking=False)
