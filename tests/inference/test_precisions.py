"""A lower precision is used only where a stored check says that the version's answers stay the same."""

import pytest

from inference import precisions, reference_work
from inference.engine import Engine, supported_precisions
from inference.models import LowerPrecision, prediction
from tests.factories import ConditionFactory
from tests.inference.lungs import prepared, scanned, version_of
from xrayplatform.audit import AuditEntry

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.skipif("bf16" not in supported_precisions(), reason="this processor does not compute in bf16"),
]


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch):
    monkeypatch.setattr(prediction, "ENGINE", Engine())


@pytest.fixture
def version(team, alice):
    version = version_of(prepared(scanned(condition=ConditionFactory(slug="chest", team=team))))
    version.activate(by=alice, reason="agreed")
    return version


def test_by_default_everything_is_float32_and_nothing_is_checked(version):
    assert precisions.check(version) is None
    assert prediction.model_of(version).precision == "f32" and not precisions.unchecked().exists()


def test_a_version_is_used_at_float32_until_a_check_says_that_its_answers_stay(version, settings, monkeypatch):
    settings.ENGINE_PRECISION = "bf16"
    monkeypatch.setattr(precisions, "TOLERANCE", 0.05)
    assert prediction.model_of(version).precision == "f32"
    reference_work.compute(reference_work.claim(version))
    row = LowerPrecision.objects.get()
    assert row.images_count and row.keeps_the_answers and 0 <= row.largest_difference <= 0.05
    assert AuditEntry.objects.get(action="lowerprecision.check").after["keeps_the_answers"]
    monkeypatch.setattr(prediction, "ENGINE", Engine())
    assert prediction.model_of(version).precision == "bf16"


def test_a_version_whose_answers_would_change_stays_at_float32(version, settings, monkeypatch):
    settings.ENGINE_PRECISION = "bf16"
    monkeypatch.setattr(precisions, "TOLERANCE", -1.0)
    row = precisions.check(version)
    assert row.images_count and not row.keeps_the_answers
    assert prediction.model_of(version).precision == "f32"


def test_where_it_cannot_be_compared_the_reason_is_kept_and_float32_is_used(version, settings):
    settings.ENGINE_PRECISION = "f4"
    row = precisions.check(version)
    assert not row.keeps_the_answers and "does not compute in f4" in row.problem
    assert prediction.model_of(version).precision == "f32"


def test_a_processor_that_cannot_do_what_another_one_could_answers_at_float32(version, settings):
    settings.ENGINE_PRECISION = "f4"
    LowerPrecision.objects.create(version=version, precision="f4", tolerance=0.01, keeps_the_answers=True)
    assert prediction.model_of(version).precision == "f32"


def test_when_a_lower_precision_is_switched_on_what_is_in_service_is_read_again(version, settings):
    reference_work.compute(reference_work.claim(version))
    reference_work.ServingReference.objects.update(created_at="2020-01-01T00:00:00Z")
    assert not reference_work.wanted()
    settings.ENGINE_PRECISION = "bf16"
    assert list(reference_work.wanted()) == [version]
    precisions.check(version)
    assert not reference_work.wanted()
