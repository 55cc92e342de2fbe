"""The page of a prediction in a browser: the map over the picture, window and zoom, keys, verdicts, a dropped file."""

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from inference.engine import Engine
from inference.models import Prediction, Verdict, prediction
from tests.datasets.files import encode
from tests.factories import ConditionFactory
from tests.inference.answered import analysed, film, in_service
from tests.journey.test_browser import accessible

pytestmark = pytest.mark.slow
DROP = """([element, content, names]) => {
  const files = new DataTransfer();
  for (const name of names) files.items.add(new File([Uint8Array.from(content)], name, { type: "image/png" }));
  for (const type of ["dragover", "drop"])
    element.dispatchEvent(new DragEvent(type, { dataTransfer: files, bubbles: true, cancelable: true }));
}"""


@pytest.fixture(autouse=True)
def database_beside_the_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    """The browser's own loop runs in this thread, in which the tests use the database."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    monkeypatch.setattr(prediction, "ENGINE", Engine())


@pytest.fixture
def answer(transactional_db: None, team: Any, alice: Any) -> Prediction:
    """About a wide picture whose bright spot is in its upper right corner."""
    condition = ConditionFactory(slug="chest", name="Chest", team=team)
    in_service(condition, alice, threshold=0.01)
    return analysed(condition, alice, film(120, 300, spot=(18, 270)))


@pytest.fixture
def page(browser: Any, live_server: Any, answer: Prediction, bob: Any, client: Client) -> Any:
    client.force_login(bob)
    context = browser.new_context(base_url=live_server.url, viewport={"width": 1280, "height": 1000})
    context.add_cookies([{"name": "sessionid", "value": client.cookies["sessionid"].value, "url": live_server.url}])
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    assert not problems, "the browser complained (scripts, or what the content security policy refused)"


@pytest.fixture
def state(page: Any) -> Callable[[], str]:
    return lambda: str(page.locator("[data-state]").text_content())


def test_the_map_covers_the_picture_and_nothing_else(page: Any, answer: Prediction) -> None:
    page.goto(answer.get_absolute_url())
    page.wait_for_load_state("networkidle")
    accessible(page)
    picture = page.locator("[data-grey] image").bounding_box()
    assert page.locator("[data-heat]").bounding_box() == picture
    assert picture["width"] / picture["height"] == pytest.approx(300 / 120, rel=0.01)
    page.get_by_label("Opacity of the map").fill("20")
    assert page.locator("[data-heat]").get_attribute("opacity") == "0.2"
    page.get_by_label("Map for the class").select_option("")
    assert not page.locator("[data-heat]").is_visible()


def test_the_picture_is_read_by_keyboard_alone(page: Any, answer: Prediction, state: Callable[[], str]) -> None:
    page.goto(answer.get_absolute_url())
    page.keyboard.press("i")
    page.keyboard.press("+")
    assert "125 %" in state() and "inverted" in state()
    assert page.locator("[data-grey]").get_attribute("filter") == "url(#stage-window)"
    page.keyboard.press("w")
    page.locator("[data-stage]").focus()
    with page.expect_response(lambda response: "width=76" in response.url and response.ok):
        for _ in range(6):
            page.keyboard.press("ArrowLeft")
    assert "window 76.0" in state()
    page.keyboard.press("m")
    assert not page.locator("[data-heat]").is_visible()
    page.keyboard.press("0")
    assert state() == "100 % · level 50.0 · window 100.0"


def test_no_key_does_anything_while_somebody_writes_or_has_switched_them_off(
    page: Any, answer: Prediction, state: Callable[[], str]
) -> None:
    page.goto(answer.get_absolute_url())
    before = state()
    page.locator("#disagree-comment").fill("")
    page.locator("#disagree-comment").press_sequentially("aimd+?0")
    page.locator("#viewer-map").focus()
    page.keyboard.press("a")
    page.locator("#result-title").focus()
    page.keyboard.press("Control+i")
    assert state() == before and not page.get_by_role("dialog").is_visible()
    page.keyboard.press("?")
    accessible(page)
    page.keyboard.press("a")
    page.get_by_label("Single keys do something on this device").uncheck()
    page.get_by_role("button", name="Close").click()
    page.locator("#result-title").focus()
    for key in "aim":
        page.keyboard.press(key)
    assert state() == before and not Verdict.objects.exists()


def test_a_verdict_takes_one_key_and_another_takes_it_back(page: Any, answer: Prediction) -> None:
    page.goto(answer.get_absolute_url())
    page.keyboard.press("a")
    page.get_by_text("Your verdict is stored.").first.wait_for()
    page.keyboard.press("d")
    assert page.evaluate("document.activeElement.id") == "disagree-label"
    page.keyboard.press("Tab")
    page.keyboard.type("no infiltrate")
    page.keyboard.press("Enter")
    page.get_by_text("1 replaced by a newer one").wait_for()
    assert page.evaluate("document.activeElement.id") == "verdicts-title"
    accessible(page)
    assert [verdict.label for verdict in Verdict.objects.all()] == ["NORMAL", "PNEUMONIA"]


def test_a_dropped_file_is_analysed_and_its_page_takes_the_place_of_the_upload(page: Any, answer: Prediction) -> None:
    page.goto(answer.get_absolute_url())
    page.keyboard.press("n")
    page.wait_for_url("**/analysis/?condition=chest")
    accessible(page)
    zone = page.locator("[data-drop]").element_handle()
    content = list(encode(film(60, 80), "PNG"))
    page.evaluate(DROP, [zone, content, ["1.png", "2.png"]])
    assert page.get_by_text("One at a time here.").is_visible()
    page.evaluate(DROP, [zone, content, ["1.png"]])
    assert not page.get_by_text("One at a time here.").is_visible()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Chest: PNEUMONIA").wait_for()
    newest = Prediction.objects.first()
    assert newest != answer and page.url.endswith(newest.get_absolute_url())
    page.keyboard.press("+")
    assert "125 %" in page.locator("[data-state]").text_content()
    accessible(page)
    page.go_back()
    page.get_by_role("button", name="Analyse", exact=True).wait_for()
    assert page.url.endswith("/analysis/?condition=chest")


def test_on_a_phone_nothing_is_wider_than_the_screen(page: Any, answer: Prediction) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    for address in (answer.get_absolute_url(), reverse("inference:prediction-list")):
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        accessible(page)
