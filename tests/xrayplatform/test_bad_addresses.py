"""Addresses nobody types: they get an answer, never a server error."""

import base64

import pytest
from rest_framework.test import APIClient

from tests.factories import UserFactory
from xrayplatform.audit import AuditEntry

LISTS = ["conditions", "datasets", "scans", "preparations", "runs", "versions", "predictions", "audit"]


@pytest.fixture
def anyone(roles):
    api = APIClient()
    api.force_authenticate(UserFactory(is_superuser=True))
    return api


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("position", ["p=abc", "p=99999999999999999999999", "o=x", "p=%00", "nonsense"])
def test_a_cursor_that_was_made_up_is_not_found(anyone, name, position):
    cursor = base64.b64encode(position.encode()).decode()
    answer = anyone.get(f"/api/v1/{name}/", {"cursor": cursor})
    assert answer.status_code in (200, 404)
    if position == "p=abc":
        assert answer.status_code == 404
        assert answer.json()["detail"]


@pytest.mark.parametrize(
    "address",
    [
        "/api/v1/datasets/%00/",
        "/api/v1/conditions/%00/",
        "/audit/?action=%00",
        "/tokens/%00/revoke/",
        "/models/?q=a%00",
    ],
)
def test_nul_in_an_address_is_refused(anyone, client, address):
    answer = (anyone if address.startswith("/api") else client).get(address)
    assert answer.status_code == 400
    assert "NUL" in answer.content.decode()


def test_nul_in_a_user_name_is_a_failed_login_like_any_other(client, db):
    answer = client.post("/login/", {"username": "ali\0ce", "password": "x"})
    assert answer.status_code == 200
    assert AuditEntry.objects.get(action="user.login").actor_name == "ali\ufffdce"


@pytest.mark.parametrize("page", ["abc", "-1", "99999999999999999999", ""])
def test_a_page_number_that_is_none_shows_a_page(anyone, admin_client, page):
    for address in ("/training/", "/models/", "/analysis/history/", "/audit/"):
        assert admin_client.get(address, {"page": page}).status_code == 200


@pytest.mark.parametrize("name", ["runs", "predictions", "batches", "datasets/scan"])
def test_an_address_with_an_ending_is_none(anyone, name):
    assert anyone.post(f"/api/v1/{name}.json", {}).status_code == 404
