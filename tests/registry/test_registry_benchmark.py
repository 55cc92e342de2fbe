"""`manage.py benchmark registry` measures the list of versions on the page and over the API."""

import pytest

from registry.list_benchmark import CASES, list_versions
from registry.models import ModelVersion
from xrayplatform import benchmarks


@pytest.mark.django_db
def test_page_and_api_are_measured_with_their_queries():
    result = list_versions({"versions": 210, "repeats": 2})
    assert ModelVersion.objects.count() == 210
    for cases in (result["page"], result["api"]):
        assert set(cases) == {*CASES, "last page", "last page, sorted by metric"}
        assert all(0 < case["p50_ms"] <= case["p95_ms"] for case in cases.values())
        assert all(0 < case["queries"] < 15 for case in cases.values())
    assert result["slowest_p95_ms"] == max(case["p95_ms"] for name in ("page", "api") for case in result[name].values())
    assert result["within_aim"] == (result["slowest_p95_ms"] < result["aim_ms"])


def test_it_is_known_to_the_command():
    assert "registry" in benchmarks.known()
