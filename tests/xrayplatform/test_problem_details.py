"""Every error of the API is a problem detail (RFC 9457): one shape, one content type, words for people."""

import pytest
from django.urls import reverse

from tests.factories import ScanFactory
from xrayplatform.audit import AuditEntry
from xrayplatform.http import NewestFirstPagination


def check(response, status, title):
    assert response.status_code == status
    assert response["Content-Type"] == "application/problem+json"
    body = response.json()
    assert (body["type"], body["title"], body["status"]) == ("about:blank", title, status)
    assert body["detail"]
    return body


def test_wrong_values_are_400_and_named(logged_in, world):
    response = logged_in.post(reverse("api:dataset-prepare", args=[world.dataset.pk]), {"seed": -1, "fit": "round"})
    body = check(response, 400, "Bad Request")
    assert set(body["errors"]) == {"seed", "fit"}


@pytest.mark.parametrize("value", ["1e999", "NaN", "ten"])
def test_values_of_the_wrong_type_are_400(logged_in, world, value):
    wanted = {"dataset": world.dataset.pk, "architecture": "Custom_CNN", "learning_rate": value}
    body = check(logged_in.post(reverse("api:run-list"), wanted), 400, "Bad Request")
    assert list(body["errors"]) == ["learning_rate"]


def test_half_a_character_is_a_wrong_value_and_is_repeated_as_a_question_mark(logged_in, world):
    url = reverse("api:version-operating-points", args=[world.version.pk])
    answer = logged_in.post(url, '{"criterion": "\\ud800", "reason": "x"}', content_type="application/json")
    assert check(answer, 400, "Bad Request")["errors"]["criterion"] == ['"?" is not a valid choice.']


def test_broken_json_is_400(logged_in):
    response = logged_in.post(reverse("api:run-list"), "{", content_type="application/json")
    check(response, 400, "Bad Request")


def test_a_visitor_gets_401_and_is_told_how_to_authenticate(client, db):
    response = client.get(reverse("api:dataset-list"))
    check(response, 401, "Unauthorized")
    assert response["WWW-Authenticate"] == "Token"


def test_a_missing_right_is_403_in_words(client, bob):
    client.force_login(bob)
    body = check(client.post(reverse("api:dataset-scan")), 403, "Forbidden")
    assert "Your role does not allow this" in body["detail"]


@pytest.mark.parametrize("name", ["dataset", "run", "version", "prediction", "preparation", "scan", "condition"])
def test_an_object_that_is_not_there_is_404(logged_in, name):
    body = check(logged_in.get(f"/api/v1/{name}s/999999999/"), 404, "Not Found")
    assert body["detail"] == "There is no such object, or it belongs to another team."


def test_an_address_that_is_not_there_is_404(logged_in):
    check(logged_in.get("/api/v1/nothing/"), 404, "Not Found")


def test_another_method_is_405(logged_in, world):
    response = logged_in.delete(reverse("api:dataset-detail", args=[world.dataset.pk]))
    check(response, 405, "Method Not Allowed")
    assert not AuditEntry.objects.filter(action="access.refused").exists()


def test_what_the_state_does_not_allow_is_409(logged_in, settings):
    running = ScanFactory(root=str(settings.DATASET_ROOT))
    body = check(logged_in.post(reverse("api:dataset-scan")), 409, "Conflict")
    assert f"{running} is already under way" in body["detail"]


def test_a_body_that_is_too_large_is_413(logged_in, settings):
    settings.MAX_UPLOAD_MB = 0
    body = check(logged_in.post(reverse("api:dataset-scan"), {"a": "b"}), 413, "Request Entity Too Large")
    assert "0 MB" in body["detail"]


def test_another_content_type_is_415(logged_in):
    response = logged_in.post(reverse("api:run-list"), "<a/>", content_type="text/xml")
    check(response, 415, "Unsupported Media Type")


def test_a_mistake_of_the_platform_is_500_and_tells_nothing_of_the_inside(logged_in, monkeypatch):
    def fail(*args):
        raise RuntimeError("secret detail")

    monkeypatch.setattr("datasets.api.DatasetViewSet.get_queryset", fail)
    logged_in.raise_request_exception = False
    response = logged_in.get(reverse("api:dataset-list"))
    check(response, 500, "Internal Server Error")
    assert "secret" not in response.content.decode()


def test_a_page_size_is_capped(logged_in, monkeypatch):
    monkeypatch.setattr(NewestFirstPagination, "max_page_size", 2)
    for _ in range(3):
        ScanFactory(state="succeeded")
    assert len(logged_in.get(reverse("api:scan-list"), {"page_size": 10**9}).json()["results"]) == 2


def test_lists_are_paged_newest_first(logged_in):
    made = [ScanFactory(state="succeeded").pk for _ in range(3)]
    first = logged_in.get(reverse("api:scan-list"), {"page_size": 2}).json()
    second = logged_in.get(first["next"]).json()
    assert [row["id"] for row in first["results"] + second["results"]] == made[::-1]
