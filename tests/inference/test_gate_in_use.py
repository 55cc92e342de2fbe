"""Each check before the model on the way from a file to an answer, by page and API: warned of, or refused."""

import re

import numpy as np
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from inference import likeness
from inference.engine import Engine
from inference.gate import CHECKS
from inference.models import Prediction, ServingPolicy, Unanswered, prediction
from tests.datasets.files import dicom, encode
from tests.factories import ConditionFactory
from tests.inference.versions import make_version
from xrayplatform.audit import AuditEntry

pytestmark = pytest.mark.django_db
PAGE = "/analysis/"
API = "/api/v1/predictions/"
REFUSED = {PAGE: 400, API: 422}


def limb(side: int = 160, height: int | None = None) -> np.ndarray:
    """A soft, bright ellipse with a brighter bone on black; the gate finds nothing wrong with it."""
    height = height or side
    rows, columns = np.mgrid[:height, :side]
    across, along = (columns - side / 2) / (side / 4), (rows - height / 2) / (height / 2.5)
    soft = 110 * np.clip(1.2 - across**2 - along**2, 0, 1)
    bone = 120 * np.exp(-((across / 0.2) ** 2)) * (np.abs(along) < 0.9)
    grain = np.random.default_rng(1).normal(0, 3, (height, side))
    return np.clip(soft + bone + grain + 4, 0, 255).astype(np.uint8)


def photograph() -> np.ndarray:
    """Sky above a meadow."""
    rows, columns = np.mgrid[:160, :160] / 159
    sky = np.stack([80 + 60 * rows, 150 + 30 * columns, 250 - 20 * rows], axis=2)
    meadow = np.stack([60 + 40 * columns, 180 - 60 * rows, 30 + 10 * columns], axis=2)
    return np.where(rows[..., None] < 0.5, sky, meadow).astype(np.uint8)


def png(pixels) -> bytes:
    return encode(pixels, "PNG")


def from_device(**tags) -> bytes:
    window = {"WindowCenter": 128, "WindowWidth": 256}
    return dicom(limb().astype(np.uint16), **window, **tags)


def document() -> np.ndarray:
    """Black lines of writing on white paper."""
    paper = np.full((160, 160), 255, np.uint8)
    for row in range(12, 150, 9):
        paper[row : row + 3, 15 : 90 + (row * 7) % 50 : 2] = 0
    return paper


# By check: a file that fails it. The likeness needs a reference: see test_reference_work.
FAILING = {
    "size": png(limb(20)),
    "contrast": png(np.full((160, 160), 90, np.uint8)),
    "picture": png(document()),
    "colour": png(photograph()),
    "modality": from_device(Modality="MR", BodyPartExamined="ARM"),
    "body-part": from_device(Modality="DX", BodyPartExamined="CHEST"),
}


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch):
    monkeypatch.setattr(prediction, "ENGINE", Engine())
    likeness.forget()


@pytest.fixture
def arm(team, alice):
    condition = ConditionFactory(slug="arm", name="Forearm", body_part="ARM", team=team)
    make_version(condition).activate(by=alice, reason="agreed")
    return condition


@pytest.fixture
def policy(arm):
    """Sets every check to the same: what is found beside the one in question plays no part then."""

    def set_all(response, **others):
        fields = {f"on_{check.replace('-', '_')}": response for check in CHECKS}
        return ServingPolicy.objects.create(condition=arm, **fields | others)

    return set_all


@pytest.fixture
def send(client, bob):
    client.force_login(bob)

    def upload(url, content):
        data = {"condition": "arm", "image": SimpleUploadedFile("any name", content)}
        return client.post(url, data, follow=url == PAGE)

    return upload


def outcomes(stored):
    return {one["check"]: one["outcome"] for one in stored.gate}


@pytest.mark.parametrize("url", [PAGE, API])
@pytest.mark.parametrize("check", FAILING)
def test_a_check_that_warns_lets_the_answer_through_and_its_verdict_is_stored_and_shown(arm, policy, send, check, url):
    policy("warn")
    response = send(url, FAILING[check])
    assert response.status_code == (200 if url == PAGE else 201)
    stored = Prediction.objects.get()
    assert list(outcomes(stored)) == list(CHECKS) and outcomes(stored)[check] == "fail"
    verdict = next(one for one in stored.gate if one["check"] == check)
    if url == PAGE:
        assert f"<strong>{CHECKS[check]}: not fit.</strong>" in response.content.decode()
    assert len(verdict["text"]) > 60 and not Unanswered.objects.exists()


@pytest.mark.parametrize("url", [PAGE, API])
@pytest.mark.parametrize("check", FAILING)
def test_a_check_that_refuses_leaves_no_answer_but_a_reason_a_row_and_an_audit_entry(
    arm, policy, send, bob, settings, check, url
):
    policy("warn", **{f"on_{check.replace('-', '_')}": "refuse"})
    response = send(url, FAILING[check])
    assert response.status_code == REFUSED[url]
    assert not Prediction.objects.exists()
    row = Unanswered.objects.get()
    assert (row.kind, row.code, row.condition, row.created_by) == ("refused", check, arm, bob)
    assert row.channel == ("web" if url == PAGE else "api") and len(row.text) > 60
    entry = AuditEntry.objects.get(action="prediction.create")
    assert entry.outcome == "failed" and entry.after == {"condition": "arm", "kind": "refused", "code": check}
    told = response.content.decode() if url == PAGE else response.json()["detail"]
    if url == API:
        assert response.json()["code"] == check
        assert [one["check"] for one in response.json()["verdicts"]] == list(CHECKS)
    first = re.split(r"[&'\"<]", row.text)[0]
    assert first in told
    # What is refused is not kept.
    assert not [path for path in settings.MODEL_ROOT.glob("radiographs/**/*") if path.is_file()]


def test_a_good_radiograph_fails_no_check_and_is_answered_under_the_strictest_policy(arm, policy, send):
    policy("refuse")
    assert send(API, from_device(Modality="DX", BodyPartExamined="FOREARM")).status_code == 201
    found = outcomes(Prediction.objects.get())
    assert found.pop("unlike") == "unknown"
    assert set(found.values()) == {"pass"}


def test_without_a_policy_of_its_own_a_condition_has_the_defaults(arm, send):
    assert send(API, FAILING["contrast"]).status_code == REFUSED[API]
    assert send(API, FAILING["size"]).status_code == 201


def test_a_negative_is_warned_of_without_a_reference_and_so_never_refused(arm, policy, send):
    policy("refuse")
    assert send(API, png(255 - limb())).status_code == 201
    assert outcomes(Prediction.objects.get())["inverted"] == "warn"


def test_a_changed_policy_counts_from_the_next_radiograph_on(arm, policy, send):
    stored = policy("warn")
    assert send(API, FAILING["body-part"]).status_code == 201
    stored.on_body_part = "refuse"
    stored.save()
    assert send(API, FAILING["body-part"]).status_code == REFUSED[API]


def test_every_refusing_check_is_named_when_several_fail(arm, policy, send):
    policy("refuse")
    both = dicom(np.full((20, 20), 100, np.uint16), Modality="MR", BodyPartExamined="CHEST")
    told = send(API, both).json()["detail"]
    assert "empty" in told and "magnetic resonance" in told and "chest" in told
