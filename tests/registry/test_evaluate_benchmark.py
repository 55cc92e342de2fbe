"""`manage.py benchmark evaluate` measures the report and the comparison, first and again."""

import pytest

from registry.benchmarks import CLASSES, REPEATS, evaluate
from xrayplatform import benchmarks


@pytest.mark.django_db
def test_report_and_comparison_are_measured_first_and_again():
    result = evaluate({"images": 60, "versions": 2})
    assert set(result["classes"]) == {str(classes) for classes in CLASSES}
    for figures in result["classes"].values():
        assert len(figures["report_seconds"]["all"]) == REPEATS
        pages = figures["comparison_page_seconds"]
        assert set(pages) == {"cold", "answers_known", "warm"}
        assert all(0 < page["best"] <= page["median"] for page in pages.values())


def test_it_is_known_to_the_command():
    assert "evaluate" in benchmarks.known()
