"""An upload above the limit is refused by its announced length, before anything of it is read."""

import pytest
from django.test import RequestFactory
from django.urls import reverse

from xrayplatform.http import RequestLimitMiddleware


class Unreadable:
    def read(self, *args):
        pytest.fail("the body was read")


def send(path, length, settings):
    settings.MAX_UPLOAD_MB = 1
    request = RequestFactory().post(path)
    request.META["CONTENT_LENGTH"] = str(length)
    request._stream = Unreadable()
    return RequestLimitMiddleware(lambda request: "passed on")(request)


def test_a_page_says_what_the_limit_is(settings):
    response = send(reverse("inference:prediction-create"), 1024**2 + 1, settings)
    assert response.status_code == 413
    assert "larger than the limit of 1 MB" in response.content.decode()
    assert "<html" in response.content.decode()


def test_the_api_answers_with_problem_details(settings):
    response = send(reverse("api:prediction-list"), 10 * 1024**3, settings)
    assert response.status_code == 413
    assert response["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("length", [0, 1024**2, "", "not a number"])
def test_what_is_within_the_limit_is_passed_on(settings, length):
    assert send("/analysis/", length, settings) == "passed on"


def test_the_limit_holds_for_visitors_and_before_the_database_is_asked(client, settings, django_assert_num_queries, db):
    settings.MAX_UPLOAD_MB = 0
    with django_assert_num_queries(0):
        assert client.post(reverse("inference:prediction-create"), {"a": "b"}).status_code == 413
        assert client.post(reverse("api:prediction-list"), {"a": "b"}).status_code == 413


@pytest.mark.parametrize("name", ["datasets:upload-new", "api:upload-list"])
def test_addresses_that_take_archives_have_a_limit_of_their_own(settings, name):
    settings.MAX_ARCHIVE_MB = 3
    assert send(reverse(name), 3 * 1024**2, settings) == "passed on"
    response = send(reverse(name), 3 * 1024**2 + 1, settings)
    assert response.status_code == 413
    assert "limit of 3 MB" in response.content.decode() and "MAX_ARCHIVE_MB" in response.content.decode()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("datasets:upload-detail", [1]),
        ("datasets:upload-cancel", [1]),
        ("api:upload-cancel", [1]),
        ("datasets:scan-start", []),
        ("api:prediction-list", []),
    ],
)
def test_other_addresses_do_not_have_it(settings, name, arguments):
    settings.MAX_ARCHIVE_MB = 3
    response = send(reverse(name, args=arguments), 2 * 1024**2, settings)
    assert response.status_code == 413
    assert "limit of 1 MB" in response.content.decode()


def test_an_address_that_is_none_has_the_small_limit(settings):
    assert send("/nowhere/", 2 * 1024**2, settings).status_code == 413
