"""Logging in and out, and what the audit log says about it."""

import pytest
from django.test import Client
from django.urls import reverse

from xrayplatform.audit import AuditEntry


def log_in(client: Client, username: str, password: str):
    return client.post(reverse("xrayplatform:login"), {"username": username, "password": password})


def test_a_user_logs_in_and_lands_on_the_dashboard(client, alice, password):
    response = log_in(client, "alice", password)
    assert response.url == reverse("xrayplatform:dashboard")
    entry = AuditEntry.objects.get(action="user.login")
    assert (entry.actor, entry.outcome, entry.channel) == (alice, "success", "web")
    assert entry.address == "127.0.0.1"


def test_a_wrong_password_is_refused_in_words_that_do_not_tell_whether_the_user_exists(client, alice, password):
    wrong = log_in(client, "alice", "not it")
    unknown = log_in(client, "nobody", "not it")
    assert wrong.status_code == unknown.status_code == 200
    assert "Please enter a correct username and password" in wrong.content.decode()
    assert "Please enter a correct username and password" in unknown.content.decode()
    refused = AuditEntry.objects.filter(action="user.login", outcome="refused").order_by("seq")
    assert [entry.actor_name for entry in refused] == ["alice", "nobody"]


def test_logging_out_ends_the_session_and_is_recorded(client, alice):
    client.force_login(alice)
    client.post(reverse("xrayplatform:logout"))
    assert AuditEntry.objects.filter(action="user.logout", actor=alice).exists()
    assert client.get(reverse("xrayplatform:dashboard")).status_code == 302


def test_the_admin_uses_the_same_login_page(client, db):
    assert client.get("/admin/login/?next=/admin/").url == reverse("xrayplatform:login") + "?next=/admin/"


def test_a_page_that_polls_does_not_keep_its_user_logged_in(client, alice, settings):
    client.force_login(alice)
    client.get(reverse("xrayplatform:guide"), headers={"X-Poll": "1"})
    assert "seen" not in client.session
    client.get(reverse("xrayplatform:guide"))
    assert "seen" in client.session


@pytest.mark.parametrize("name", ["xrayplatform:dashboard", "datasets:dataset-list", "xrayplatform:guide"])
def test_pages_send_visitors_to_the_login_page(client, db, name):
    response = client.get(reverse(name))
    assert response.status_code == 302
    assert response.url.startswith(reverse("xrayplatform:login"))
