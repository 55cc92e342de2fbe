"""The report and the operating point in a browser: drawn, usable by keyboard, accessible, and as the server says."""

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from registry.models import ModelVersion
from tests.factories import ConditionFactory, ModelVersionFactory
from tests.journey.test_browser import accessible
from tests.registry.evaluations import make_evaluation

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def database_beside_the_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    """The browser's own loop runs in this thread, in which the tests use the database."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")


@pytest.fixture
def version(transactional_db: None, team: Any) -> ModelVersion:
    version = ModelVersionFactory(condition=ConditionFactory(slug="chest", team=team), number=1, temperature=1.5)
    make_evaluation(version, kind="validation", seed=1)
    return version


@pytest.fixture
def page(browser: Any, live_server: Any, version: ModelVersion, alice: Any, client: Client) -> Any:
    client.force_login(alice)
    context = browser.new_context(base_url=live_server.url)
    context.add_cookies([{"name": "sessionid", "value": client.cookies["sessionid"].value, "url": live_server.url}])
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    assert not problems, "the browser complained (scripts, or what the content security policy refused)"


def test_the_slider_says_what_the_server_says(page: Any, version: ModelVersion) -> None:
    make_evaluation(version, seed=2)
    page.goto(reverse("registry:threshold-edit", args=[version.pk]))
    accessible(page)
    table = page.get_by_role("table").first
    before = table.inner_text()
    page.locator("#slider").focus()
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    page.locator("#id_prevalence").fill("10")
    moved = table.inner_text()
    assert moved != before
    assert page.locator("#save-form [name=criterion]").input_value() == "by hand"
    page.get_by_role("button", name="Show").click()
    assert page.get_by_role("table").first.inner_text() == moved


def test_saving_from_the_slider_keeps_the_threshold_that_was_shown(page: Any, version: ModelVersion) -> None:
    page.goto(f"{reverse('registry:threshold-edit', args=[version.pk])}?criterion=sensitivity&target=90")
    page.locator("#slider").focus()
    page.keyboard.press("ArrowLeft")
    shown = float(page.locator("#id_threshold").input_value())
    page.get_by_label("Reason").fill("One step lower")
    page.get_by_role("button", name="Save ").click()
    page.get_by_text("Threshold set 1 of chest v1 is saved").wait_for()
    point = version.threshold_sets.get()
    assert (point.threshold, point.criterion, point.target) == (shown, "by hand", None)


def test_another_prevalence_keeps_the_threshold_that_was_shown(page: Any, version: ModelVersion) -> None:
    page.goto(f"{reverse('registry:threshold-edit', args=[version.pk])}?criterion=cost&target=5&prevalence=50")
    shown = float(page.locator("#id_threshold").input_value())
    page.locator("#id_prevalence").fill("0.03")
    assert page.locator("#shown-prevalence").inner_text() == "0.03\u00a0%"
    page.get_by_label("Reason").fill("As shown")
    page.get_by_role("button", name="Save ").click()
    page.get_by_text("Threshold set 1 of chest v1 is saved").wait_for()
    point = version.threshold_sets.get()
    assert (point.threshold, point.criterion, point.target) == (shown, "by hand", None)
    assert point.prevalence == pytest.approx(0.0003)


def test_the_report_is_drawn_on_the_screen_and_for_paper(page: Any, version: ModelVersion) -> None:
    evaluation = make_evaluation(version, seed=2)
    drawn = "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean)"
    for name in ("registry:evaluation-detail", "registry:evaluation-print"):
        page.goto(reverse(name, args=[evaluation.pk]))
        charts = page.locator("canvas[data-report-chart]")
        assert charts.count() == 3
        for index in range(3):
            assert charts.nth(index).evaluate(drawn)
        accessible(page)
    page.evaluate("window.print = () => { document.body.dataset.printed = 'yes'; }")
    page.get_by_role("button", name="Print or save as PDF").click()
    assert page.locator("body[data-printed=yes]").count() == 1
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
