"""A person's whole way, in a browser: from the login to the answer about a radiograph."""

import re
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.journey.instance import PASSWORD, Instance

pytestmark = pytest.mark.slow
MINUTES = 60_000


@pytest.fixture
def page(browser: Any) -> Any:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(30_000)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    assert not problems, "the browser complained (scripts, or what the content security policy refused)"


def accessible(page: Any) -> None:
    """No violation of WCAG 2.2 A and AA that axe can find."""
    rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
    results = Axe().run(page, options={"runOnly": {"type": "tag", "values": rules}})
    assert results.violations_count == 0, f"{page.url}\n{results.generate_report()}"


def log_in(page: Any, instance: Instance, name: str) -> None:
    page.goto(f"{instance.url}/login/")
    page.get_by_label("Username").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"{instance.url}/")


def test_error_pages_without_debug_are_our_own(production: Instance, page: Any) -> None:
    production.add_user("bob", "clinician")
    production.start(worker=False, trainer=False)
    log_in(page, production, "bob")
    accessible(page)
    for path, words in (("/models/99/", "Not found"), ("/training/new/", "Not allowed"), ("/models/?q=%00", "address")):
        response = page.request.get(production.url + path)
        assert response.status in (400, 403, 404)
        assert words in response.text()
    assert page.request.get(f"{production.url}/api/docs/").ok
    page.goto(f"{production.url}/guide/")
    accessible(page)


def test_from_scan_to_prediction(instance: Instance, page: Any) -> None:
    instance.manage("make_samples", "--per-class", "16")
    instance.add_user("alice", "clinician", "data scientist", "model manager")
    instance.start()
    log_in(page, instance, "alice")
    accessible(page)

    page.get_by_role("link", name="Dataset Overview").first.click()
    page.get_by_role("button", name=re.compile("Scan")).first.click()
    dataset = page.get_by_role("link", name="CHEST/synthetic_chest_pneumonia")
    dataset.first.wait_for(timeout=1 * MINUTES)
    accessible(page)
    dataset.first.click()
    assert page.get_by_text("Synthetic", exact=False).first.is_visible()
    accessible(page)

    page.get_by_role("button", name=re.compile("Prepare")).first.click()
    page.get_by_text(re.compile(r"0 patients shared|0 shared patients", re.I)).first.wait_for(timeout=1 * MINUTES)
    accessible(page)

    page.get_by_role("link", name=re.compile("Train a model")).first.click()
    accessible(page)
    page.locator("summary").filter(has_text=re.compile("options", re.I)).first.click()
    page.get_by_role("spinbutton", name="Epochs").fill("2")
    page.get_by_role("spinbutton", name="Batch size").fill("8")
    page.get_by_role("button", name=re.compile("Train")).last.click()
    page.wait_for_url(re.compile(r"/training/runs/\d+/"))
    page.get_by_text("Finished", exact=True).first.wait_for(timeout=4 * MINUTES)
    accessible(page)

    page.get_by_role("link", name=re.compile(r"synthetic.* v1")).first.click()
    page.wait_for_url(re.compile(r"/models/\d+/"))
    accessible(page)
    page.get_by_role("button", name=re.compile("Activate|service")).first.click()
    page.get_by_text("is in service").first.wait_for()

    page.get_by_role("link", name="X-ray Analysis").first.click()
    page.get_by_label("Condition").select_option("chest-synthetic-pneumonia")
    image = next((instance.datasets / "CHEST/synthetic_chest_pneumonia/test/PNEUMONIA").iterdir())
    page.get_by_label("Radiograph").set_input_files(image)
    page.get_by_role("button", name=re.compile("Analyse")).click()
    page.get_by_text("Research use only").first.wait_for()
    assert page.get_by_text(re.compile(r"v1|version 1", re.I)).first.is_visible()
    assert page.locator("img[src^='data:image/png']").first.is_visible()
    accessible(page)
    page.wait_for_url(re.compile(r"/analysis/[0-9a-f-]{36}/"))
    page.reload()
    assert page.get_by_text("Research use only").first.is_visible()

    for path in ("/training/", "/models/", "/analysis/history/", "/system/", "/guide/", "/tokens/"):
        page.goto(instance.url + path)
        accessible(page)
    page.get_by_role("button", name="Log out").first.click()
    page.wait_for_url(re.compile("/login/"))
    assert not stored_images(instance)


def stored_images(instance: Instance) -> list[Path]:
    """Pictures below the models folder: there must be none, uploads are not kept."""
    return [path for path in instance.models.rglob("*") if path.suffix in {".png", ".jpg", ".jpeg", ".dcm"}]
