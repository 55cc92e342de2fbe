"""`python -m tests.journey.screenshots FOLDER [--every]`: the README's pictures, on synthetic samples.

With --every: each page whole, in light and dark, 1280 and 390 pixels wide.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from tests.journey.conftest import CHROMIUM
from tests.journey.instance import PASSWORD, Instance

DATASET = "CHEST/synthetic_chest_pneumonia"
CONDITION = "chest-synthetic-pneumonia"
README = {
    "datasets": "/datasets/",
    "quality": "/datasets/2/quality/",
    "train": "/training/new/",
    "run": "/training/runs/1/",
    "search": "/training/searches/1/",
    "version": "/models/1/",
    "report": "/models/evaluations/2/",
    "comparison": "/models/compare/?version=2&version=3&version=4",
    "inside": "/analysis/evaluated/2/images/",
}
EVERY = README | {
    "login": "/login/",
    "dashboard": "/",
    "dataset": "/datasets/2/",
    "choices": "/datasets/2/choices/",
    "images": "/datasets/2/images/",
    "image": "/datasets/images/1/",
    "compare": "/datasets/2/compare/",
    "upload": "/datasets/2/upload/",
    "new-dataset": "/datasets/upload/",
    "storage": "/datasets/storage/",
    "preparation": "/datasets/preparations/1/",
    "runs": "/training/",
    "queue": "/training/queue/",
    "searches": "/training/searches/",
    "new-search": "/training/searches/new/",
    "presets": "/training/presets/",
    "new-preset": "/training/presets/new/",
    "pretrained": "/training/pretrained/",
    "versions": "/models/",
    "operating-point": "/models/1/operating-point/",
    "card": "/models/1/card/",
    "evaluate": "/analysis/evaluations/new/?version=1",
    "history": "/analysis/history/",
    "system": "/system/",
    "audit": "/audit/",
    "notifications": "/notifications/",
    "tokens": "/tokens/",
    "guide": "/guide/",
    "missing": "/models/999/",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="xray-screenshots-") as folder:
        instance = Instance(Path(folder))
        try:
            do_the_main_job(instance)
            instance.start()
            search(instance)
            take(instance, options.folder, every=options.every)
        finally:
            instance.stop()


def do_the_main_job(instance: Instance) -> None:
    instance.set_up()
    instance.add_user("alice", "clinician", "data scientist", "model manager", "auditor")
    instance.manage("make_samples")
    instance.manage("scan_dataset", "--user", "alice")
    instance.manage("prepare_dataset", DATASET, "--user", "alice")
    instance.manage("train", DATASET, "--user", "alice", "--wait")
    instance.manage("activate", CONDITION, 1, "--user", "alice", "--reason", "First version for the demonstration")


def search(instance: Instance) -> None:
    """Three trainings that are compared, by the workers."""
    options = ["--architecture", "Custom_CNN", "--configuration", "quick", "--vary", "learning_rate=0.004,0.001,2e-4"]
    instance.manage("search", "create", DATASET, "--name", "Which learning rate?", *options, "--user", "alice")
    while "queued" in (shown := instance.manage("search", "show", 1, "--json").stdout) or "running" in shown:
        time.sleep(2)


def take(instance: Instance, folder: Path, *, every: bool) -> None:
    pages = EVERY if every else README
    widths, schemes = ((1280, 390), ("light", "dark")) if every else ((1280,), ("light",))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"]
        )
        for width, scheme in itertools.product(widths, schemes):
            page = browser.new_page(viewport={"width": width, "height": 860}, color_scheme=scheme)
            log_in(page, instance)
            for name, path in pages.items():
                page.goto(instance.url + path)
                picture(page, folder / f"{name}-{scheme}-{width}.png", whole=every)
            analyse(page, instance)
            picture(page, folder / f"analysis-{scheme}-{width}.png", whole=every)
            page.close()
        browser.close()


def log_in(page: Page, instance: Instance) -> None:
    page.goto(f"{instance.url}/login/")
    page.get_by_label("Username").fill("alice")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"{instance.url}/")


def analyse(page: Page, instance: Instance) -> None:
    page.goto(f"{instance.url}/analysis/")
    page.get_by_label("Condition").select_option(CONDITION)
    image = sorted((instance.datasets / DATASET / "test/PNEUMONIA").iterdir())[0]
    page.get_by_label("Radiograph").set_input_files(image)
    page.get_by_role("button", name="Analyse").click()
    page.locator("#viewer image").first.wait_for()


def picture(page: Any, path: Path, *, whole: bool) -> None:
    # Charts are drawn with an animation after their data has come.
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(700)
    page.screenshot(path=path, full_page=whole)


if __name__ == "__main__":
    main()
