"""A person's whole way, in a browser: from the login to the answer about a radiograph."""

import re
import shutil
from pathlib import Path
from typing import Any
from zipfile import ZipFile

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
    page.locator("summary", has_text="Optimisation").click()
    page.get_by_role("spinbutton", name="Epochs", exact=True).fill("2")
    page.get_by_role("spinbutton", name="Batch size").fill("8")
    page.get_by_role("button", name=re.compile("Train")).last.click()
    page.wait_for_url(re.compile(r"/training/runs/\d+/"))
    page.get_by_text("Finished", exact=True).first.wait_for(timeout=4 * MINUTES)
    accessible(page)

    page.get_by_role("link", name=re.compile(r"synthetic.* v1")).first.click()
    page.wait_for_url(re.compile(r"/models/\d+/"))
    accessible(page)
    page.locator("#id_reason").fill("First of its kind")
    page.get_by_role("button", name=re.compile("Activate|service")).first.click()
    page.get_by_text("is in service").first.wait_for()

    page.get_by_role("link", name="X-ray Analysis").first.click()
    page.get_by_label("Condition").select_option("chest-synthetic-pneumonia")
    image = next((instance.datasets / "CHEST/synthetic_chest_pneumonia/test/PNEUMONIA").iterdir())
    page.get_by_label("Radiograph").set_input_files(image)
    page.get_by_role("button", name=re.compile("Analyse")).click()
    page.get_by_text("Research use only").first.wait_for()
    assert page.get_by_text(re.compile(r"v1|version 1", re.I)).first.is_visible()
    page.wait_for_url(re.compile(r"/analysis/[0-9a-f-]{36}/"))
    assert page.locator("#viewer image").first.is_visible()
    accessible(page)
    page.reload()
    assert page.get_by_text("Research use only").first.is_visible()

    for path in ("/training/", "/models/", "/analysis/history/", "/system/", "/guide/", "/tokens/"):
        page.goto(instance.url + path)
        accessible(page)
    page.get_by_role("button", name="Log out").first.click()
    page.wait_for_url(re.compile("/login/"))
    assert not stored_images(instance)


def test_a_dataset_is_curated_before_it_is_prepared(instance: Instance, page: Any) -> None:
    """A question is answered, classes are renamed, an image is left out, a zip is added, and the versions compared."""
    instance.manage("make_samples", "--per-class", "16")
    mixed = make_ambiguous(instance.datasets)
    instance.add_user("alice", "clinician", "data scientist")
    instance.start(trainer=False)
    log_in(page, instance, "alice")
    page.goto(f"{instance.url}/datasets/")
    page.get_by_role("button", name=re.compile("Scan")).first.click()
    page.get_by_role("link", name="CHEST/mixed").first.click(timeout=1 * MINUTES)
    page.get_by_text("This folder can be read in more than one way").wait_for()
    assert page.get_by_role("button", name="Prepare for Training").is_disabled()
    accessible(page)

    page.get_by_role("link", name="Classes and patients").click()
    accessible(page)
    page.get_by_role("radio").last.check()
    page.get_by_role("button", name="Answer and scan again").click()
    page.get_by_text("Saved. The next preparation honours it.").wait_for()
    choices = page.url
    page.get_by_role("link", name="Overview", exact=True).click()
    for _ in range(60):  # until the scan that the answer started has been there
        if page.get_by_text("31 readable").count():
            break
        page.wait_for_timeout(1000)
        page.reload()
    page.goto(choices)
    page.get_by_role("textbox", name=re.compile("PNEUMONIA")).fill("Inflamed")
    page.get_by_role("button", name="Save the classes").click()
    page.get_by_text("Saved. The next preparation honours it.").wait_for()
    page.get_by_label("Regular expression").fill("(")
    page.locator("#pattern-preview .field-error").wait_for()
    page.get_by_label("Regular expression").fill(r"(\d+)$")
    page.get_by_text("file names name a patient").wait_for()

    page.get_by_role("link", name="Quality", exact=True).click()
    accessible(page)
    page.get_by_role("link", name="Images", exact=True).click()
    accessible(page)
    page.locator(".gallery a").first.click()
    page.get_by_text("How one becomes the other").wait_for()
    accessible(page)
    page.locator("form.decide", has=page.locator("[name=code][value=by-hand]")).get_by_label("Reason").fill("Tilted")
    page.get_by_role("button", name="Leave out").last.click()
    page.get_by_text("Left out").first.wait_for()

    page.get_by_role("link", name="Overview", exact=True).click()
    page.get_by_role("button", name="Prepare for Training").click()
    page.get_by_text("0 patients shared").wait_for(timeout=1 * MINUTES)
    assert page.get_by_text("1 left out by hand").is_visible()
    assert page.get_by_role("columnheader", name="Inflamed").is_visible()
    page.locator(".variants img").first.wait_for()
    accessible(page)

    page.get_by_role("link", name="CHEST/mixed").first.click()
    page.get_by_role("link", name="Upload", exact=True).click()
    accessible(page)
    page.locator("input[type=file]").set_input_files(mixed.parent / "more.zip")
    page.get_by_role("button", name="Upload").last.click()
    page.get_by_text("Finished", exact=True).first.wait_for(timeout=1 * MINUTES)
    accessible(page)
    page.goto(f"{instance.url}/datasets/")
    page.get_by_role("link", name="CHEST/mixed").first.click()
    page.get_by_role("link", name="Versions", exact=True).click()
    page.get_by_role("heading", name="Added").wait_for()
    accessible(page)
    for path in ("/datasets/storage/", "/datasets/upload/"):
        page.goto(instance.url + path)
        accessible(page)


def make_ambiguous(root: Path) -> Path:
    """Class folders beside train and test folders, and beside all of it a zip with one more image."""
    source, target = root / "CHEST/synthetic_chest_pneumonia", root / "CHEST/mixed"
    shutil.move(source, target)
    for label in ("NORMAL", "PNEUMONIA"):
        (target / label).mkdir()
        for path in sorted((target / "train" / label).iterdir())[:4]:
            path.rename(target / label / path.name)
    extra = sorted((target / "test/NORMAL").iterdir())[0]
    with ZipFile(root / "CHEST/more.zip", "w") as archive:
        archive.write(extra, "NORMAL/an_extra_one.png")
    extra.unlink()
    return target


def stored_images(instance: Instance) -> list[Path]:
    """Pictures below the models folder: there must be none, uploads are not kept."""
    return [path for path in instance.models.rglob("*") if path.suffix in {".png", ".jpg", ".jpeg", ".dcm"}]
