"""API tokens: made on the page or over the API, shown once, and worth nothing once expired or revoked."""

from datetime import timedelta

import pytest
from django.urls import reverse
from django.utils import timezone
from knox.models import AuthToken

from xrayplatform.audit import AuditEntry

SYSTEM = "/api/v1/system/"


def use(api, secret):
    return api.get(SYSTEM, headers={"Authorization": f"Token {secret}"})


@pytest.fixture
def secret(api, alice, password):
    answer = api.post(reverse("api:token-list"), {"username": "alice", "password": password})
    assert answer.status_code == 201
    return answer.json()["token"]


def test_a_password_is_exchanged_for_a_token_that_opens_the_api(api, secret):
    assert use(api, secret).status_code == 200


def test_a_token_of_a_user_has_the_rights_of_that_user(api, bob, password):
    secret = api.post(reverse("api:token-list"), {"username": "bob", "password": password}).json()["token"]
    assert use(api, secret).status_code == 403
    assert AuditEntry.objects.get(action="access.refused").actor == bob


def test_the_expiry_is_told_and_kept(api, alice, password, secret):
    token = AuthToken.objects.get()
    assert timedelta(days=29) < token.expiry - timezone.now() <= timedelta(days=30)
    AuthToken.objects.update(expiry=timezone.now() - timedelta(seconds=1))
    assert use(api, secret).status_code == 401


def test_a_revoked_token_is_refused_at_once(api, client, alice, secret):
    client.force_login(alice)
    client.post(reverse("xrayplatform:token-revoke", args=[AuthToken.objects.get().token_key]))
    assert use(api, secret).status_code == 401
    assert AuditEntry.objects.filter(action="token.revoke", actor=alice).count() == 1


def test_the_token_of_a_user_who_left_is_refused(api, alice, secret):
    alice.is_active = False
    alice.save()
    assert use(api, secret).status_code == 401


@pytest.mark.parametrize("secret", ["", "wrong", "0" * 64, "two words"])
def test_an_invented_token_is_refused(api, db, secret):
    assert use(api, secret).status_code == 401


def test_a_token_is_shown_once_and_stored_as_a_digest(client, alice):
    client.force_login(alice)
    page = client.post(reverse("xrayplatform:token-list"))
    shown = page.context["created"]
    assert shown in page.content.decode()
    again = client.get(reverse("xrayplatform:token-list")).content.decode()
    assert shown not in again
    assert AuthToken.objects.get().token_key in again
    assert shown not in str(AuthToken.objects.values())


def test_the_audit_log_names_a_new_token_and_never_tells_it(api, alice, secret):
    entry = AuditEntry.objects.get(action="token.create")
    assert (entry.actor, entry.after) == (alice, {"token": AuthToken.objects.get().token_key})
    assert secret not in str(AuditEntry.objects.values())


def test_a_user_sees_the_own_tokens_only(client, alice, bob):
    token, _ = AuthToken.objects.create(bob)
    client.force_login(alice)
    assert token.token_key not in client.get(reverse("xrayplatform:token-list")).content.decode()


@pytest.mark.parametrize("name", ["alice", "nobody"])
def test_a_wrong_password_is_refused_and_recorded_without_telling_whether_the_user_exists(api, alice, name):
    answer = api.post(reverse("api:token-list"), {"username": name, "password": "not it"})
    assert answer.status_code == 401
    assert answer.json()["detail"] == "The user name or the password is wrong."
    entry = AuditEntry.objects.get(action="token.create")
    assert (entry.actor, entry.actor_name, entry.outcome) == (None, name, "refused")
    assert not AuthToken.objects.exists()


def test_a_user_who_is_not_active_gets_no_token(api, alice, password):
    alice.is_active = False
    alice.save()
    assert api.post(reverse("api:token-list"), {"username": "alice", "password": password}).status_code == 401


def test_what_is_missing_is_named(api, db):
    assert api.post(reverse("api:token-list"), {"username": "alice"}).json()["errors"] == {
        "password": ["This field is required."]
    }
