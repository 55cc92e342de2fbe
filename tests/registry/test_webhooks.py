"""Calls to other systems: signed, only to listed addresses, never redirected, tried again, and logged."""

import contextlib
import hashlib
import hmac
import ipaddress
import json
import socket
import threading
import time
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import StringIO

import pytest
from django.contrib.auth.models import Permission
from django.core.checks import run_checks
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.core.management.base import SystemCheckError
from django.urls import reverse
from django.utils import timezone
from django_q.models import OrmQ

from registry import outgoing, tasks
from registry.models import Event, Webhook, WebhookDelivery
from tests.factories import ConditionFactory
from tests.inference.versions import make_version
from xrayplatform.audit import AuditEntry
from xrayplatform.tries import PAUSES

SECRET = "a long enough secret"
LOCAL = [ipaddress.ip_network("127.0.0.0/8")]


class Receiver(HTTPServer):
    """Another system of the hospital: keeps what it is sent, and answers `status`."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.location, self.calls = 204, "", []
        self.url = f"http://127.0.0.1:{self.server_port}/hook?from=xray"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.calls.append((self.path, dict(self.headers), body))
        self.send_response(self.server.status)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def receiver():
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def webhook(receiver, settings, db):
    settings.WEBHOOK_PRIVATE_NETWORKS = ["127.0.0.0/8"]
    return Webhook.objects.create(name="PACS", url=receiver.url, secret=SECRET, events=Event.values)


def deliver_all():
    for delivery in WebhookDelivery.objects.order_by("pk"):
        tasks.deliver(delivery.pk)


def body_of(call):
    return json.loads(call[2])


# -- What is called, and with what


def test_each_event_is_a_signed_call(chest, webhook, receiver, alice):
    first, second = make_version(chest), make_version(chest)
    first.activate(by=alice, reason="first")
    second.activate(by=alice, reason="newer")
    second.roll_back(by=alice, reason="false alarms")
    (second.folder / "weights.safetensors").unlink()
    second.verify()
    deliver_all()
    assert [body_of(call)["event"] for call in receiver.calls] == [
        "version.new",
        "version.new",
        "version.activated",
        "version.activated",
        "version.rolled_back",
        "version.damaged",
    ]
    path, headers, body = receiver.calls[3]
    assert path == "/hook?from=xray"
    content = json.loads(body)
    assert (content["condition"], content["version"], content["instead_of"]) == ("chest", 2, 1)
    parts = dict(part.split("=", 1) for part in headers["X-Xray-Signature"].split(","))
    expected = hmac.new(SECRET.encode(), f"{parts['t']}.".encode() + body, hashlib.sha256).hexdigest()
    assert parts["v1"] == expected
    assert headers["X-Xray-Delivery"] == content["id"]
    assert set(WebhookDelivery.objects.values_list("state", flat=True)) == {"sent"}


def test_only_who_wants_an_event_and_is_active_is_called(chest, webhook, receiver):
    Webhook.objects.create(name="off", url=receiver.url, secret=SECRET, events=Event.values, active=False)
    webhook.events = [Event.DAMAGED]
    webhook.save()
    make_version(chest)
    assert not WebhookDelivery.objects.exists()


def test_a_call_waits_in_the_queue_with_what_it_tells_of(chest, webhook):
    make_version(chest)
    delivery = WebhookDelivery.objects.get()
    assert [message.task["args"] for message in OrmQ.objects.all()] == [(delivery.pk,)]


def test_a_call_that_was_made_is_not_made_again(chest, webhook, receiver):
    make_version(chest)
    deliver_all()
    deliver_all()
    assert len(receiver.calls) == 1


# -- When it fails


def test_a_failed_call_is_tried_again_with_longer_and_longer_pauses_and_then_given_up(chest, webhook, receiver):
    receiver.status = 500
    make_version(chest)
    for pause in PAUSES:
        deliver_all()
        delivery = WebhookDelivery.objects.get()
        assert delivery.state == "waiting"
        assert delivery.next_at - timezone.now() == pytest.approx(pause, abs=timedelta(seconds=30))
        WebhookDelivery.objects.update(next_at=timezone.now())
    deliver_all()
    delivery = WebhookDelivery.objects.get()
    assert (delivery.state, delivery.tries) == ("failed", len(PAUSES) + 1)
    assert [line["result"] for line in delivery.log] == ["127.0.0.1 answered 500."] * 5
    assert len({headers["X-Xray-Delivery"] for _, headers, _ in receiver.calls}) == 1


def test_before_its_time_a_failed_call_is_not_tried_again(chest, webhook, receiver):
    receiver.status = 500
    make_version(chest)
    deliver_all()
    deliver_all()
    assert len(receiver.calls) == 1


def test_the_minute_task_sends_a_message_for_each_try_that_is_due(chest, webhook, receiver):
    receiver.status = 500
    make_version(chest)
    deliver_all()
    OrmQ.objects.all().delete()
    tasks.every_minute()
    assert not OrmQ.objects.exists()
    WebhookDelivery.objects.update(next_at=timezone.now())
    tasks.every_minute()
    assert OrmQ.objects.count() == 1


def test_a_receiver_that_is_not_there_does_not_keep_a_version_from_service(chest, webhook, receiver, alice):
    webhook.url = "http://127.0.0.1:9/"
    webhook.save()
    make_version(chest).activate(by=alice, reason="first")
    deliver_all()
    assert "did not answer" in WebhookDelivery.objects.first().log[0]["result"]
    assert chest.deployment.active.number == 1


def test_an_address_that_was_switched_off_meanwhile_is_not_called(chest, webhook, receiver):
    make_version(chest)
    Webhook.objects.update(active=False)
    deliver_all()
    assert (WebhookDelivery.objects.get().state, receiver.calls) == ("failed", [])


def test_a_redirect_is_not_followed(chest, webhook, receiver):
    other = Receiver()
    receiver.status, receiver.location = 307, other.url
    make_version(chest)
    deliver_all()
    assert "redirects are not followed" in WebhookDelivery.objects.get().log[0]["result"]
    assert len(receiver.calls) == 1
    other.server_close()


# -- Where to


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "0.1.2.3", "100.64.0.1", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "2002:7f00:1::",
        "64:ff9b::a00:1", "2001:0:1::1", "ff02::1",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public_is_refused_unless_its_network_is_listed(address):
    ip = ipaddress.ip_address(address)
    assert not outgoing.is_allowed(ip, [])
    mapped = getattr(ip, "ipv4_mapped", None) or ip
    assert outgoing.is_allowed(ip, [ipaddress.ip_network(mapped)])


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_a_public_address_is_allowed(address):
    assert outgoing.is_allowed(ipaddress.ip_address(address), [])


def test_nothing_private_is_called_without_being_listed(chest, webhook, receiver, settings):
    settings.WEBHOOK_PRIVATE_NETWORKS = []
    make_version(chest)
    deliver_all()
    assert "is no public address" in WebhookDelivery.objects.get().log[0]["result"]
    assert receiver.calls == []


def answers(*rounds):
    """A name server that gives each question another answer."""
    questions = iter(rounds)

    def getaddrinfo(host, port, *args, **kwargs):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in next(questions)]

    return getaddrinfo


def test_a_name_with_one_private_address_among_public_ones_is_refused(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", answers(["8.8.8.8", "10.0.0.1"]))
    with pytest.raises(outgoing.OutgoingError, match=r"evil\.example is 10\.0\.0\.1"):
        outgoing.resolve("http://evil.example/", [])


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch):
    """A name server that turns to a private address after the check (DNS rebinding) is not asked again."""
    monkeypatch.setattr(socket, "getaddrinfo", answers(["8.8.8.8"], ["127.0.0.1"]))
    connected = []

    def create_connection(address, *args, **kwargs):
        connected.append(address)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "create_connection", create_connection)
    with pytest.raises(outgoing.OutgoingError, match="no network here"):
        outgoing.send("https://evil.example/hook", b"{}", {}, [])
    assert connected == [("8.8.8.8", 443)]


def test_the_host_header_has_the_name_and_not_the_address(receiver, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", answers(["127.0.0.1"], ["127.0.0.1"]))
    assert outgoing.send(f"http://pacs.hospital:{receiver.server_port}/", b"{}", {}, LOCAL) == 204
    assert receiver.calls[0][1]["Host"] == f"pacs.hospital:{receiver.server_port}"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file:///etc/passwd", "begins with http"),
        ("gopher://host/", "begins with http"),
        ("http:///path", "names no host"),
        ("http://user:password@host/", "user name or password"),
        ("http://host:99999/", "is no address"),
        ("http://host/a b", "blanks or control characters"),
        ("http://10.0.0.1/", "is no public address"),
        ("http://[::1]/", "is no public address"),
    ],
)
def test_what_cannot_be_called_is_refused_when_it_is_entered(url, words, settings):
    settings.WEBHOOK_PRIVATE_NETWORKS = []
    webhook = Webhook(name="x", url=url, secret=SECRET, events=[])
    with pytest.raises(ValidationError, match=words):
        webhook.clean_fields(exclude=["events"])


def test_one_who_answers_a_byte_at_a_time_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(outgoing, "LONGEST_SECONDS", 0.3)
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip():
            caller, _ = server.accept()
            with caller, contextlib.suppress(OSError):
                while not ended.wait(0.05):
                    caller.sendall(b"H")

        thread = threading.Thread(target=drip)
        thread.start()
        begin = time.monotonic()
        try:
            with pytest.raises(outgoing.OutgoingError, match="did not answer"):
                outgoing.send(f"http://127.0.0.1:{server.getsockname()[1]}/", b"{}", {}, LOCAL)
        finally:
            ended.set()
            thread.join()
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("address", ["::10.0.0.1", "fec0::1", "64:ff9b::a00:1", "::ffff:0:10.0.0.1", "ff02::1"])
def test_ipv6_that_is_not_global_unicast_is_not_public(address):
    assert not outgoing.is_allowed(ipaddress.ip_address(address), [])


# -- The list


def test_administrators_keep_the_list_and_the_secret_is_not_shown(administrator, alice, client, settings):
    client.force_login(administrator)
    add = reverse("admin:registry_webhook_add")
    values = {"name": "PACS", "url": "https://pacs.example/hook", "secret": SECRET, "events": [Event.NEW]}
    assert client.post(add, {**values, "active": "on"}).status_code == 302
    webhook = Webhook.objects.get()
    assert (webhook.secret, webhook.events) == (SECRET, ["version.new"])
    change = reverse("admin:registry_webhook_change", args=[webhook.pk])
    assert SECRET not in client.get(change).content.decode()
    client.post(change, {**values, "secret": "", "events": [Event.DAMAGED], "active": "on"})
    webhook.refresh_from_db()
    assert (webhook.secret, webhook.events) == (SECRET, ["version.damaged"])
    assert set(AuditEntry.objects.values_list("action", flat=True)) >= {"webhook.add", "webhook.change"}
    assert SECRET not in json.dumps(list(AuditEntry.objects.values("before", "after")))
    client.force_login(alice)
    assert client.get(add).status_code == 302


def test_a_short_secret_and_none_are_refused(administrator, client):
    client.force_login(administrator)
    values = {"name": "PACS", "url": "https://pacs.example/hook", "events": [Event.NEW]}
    for secret in ("", "short"):
        page = client.post(reverse("admin:registry_webhook_add"), {**values, "secret": secret})
        assert page.status_code == 200
    assert not Webhook.objects.exists()


def test_an_administrator_sends_a_test_call(webhook, receiver, administrator, client):
    client.force_login(administrator)
    data = {"action": "send_test", "_selected_action": [webhook.pk]}
    client.post(reverse("admin:registry_webhook_changelist"), data)
    deliver_all()
    assert [body_of(call)["event"] for call in receiver.calls] == ["webhook.test"]
    assert AuditEntry.objects.filter(action="webhook.test").get().actor == administrator


def test_who_may_only_look_does_not_see_the_secret(webhook, alice, client):
    alice.is_staff = True
    alice.save()
    alice.user_permissions.add(Permission.objects.get(codename="view_webhook"))
    client.force_login(alice)
    page = client.get(reverse("admin:registry_webhook_change", args=[webhook.pk])).content.decode()
    assert "PACS" in page
    assert SECRET not in page


def test_the_audit_log_tells_of_a_new_secret_only_where_there_is_one(webhook, administrator, client):
    client.force_login(administrator)
    change = reverse("admin:registry_webhook_change", args=[webhook.pk])
    values = {"name": "RIS", "url": "https://pacs.example/hook", "events": [Event.NEW], "active": "on"}
    for secret, is_told in (("", False), ("another long enough secret", True)):
        client.post(change, {**values, "secret": secret})
        last = AuditEntry.objects.filter(action="webhook.change").first()
        assert ("ecret" in json.dumps(last.after)) is is_told


# -- Networks in the settings


@pytest.mark.parametrize("text", ["10.20.0.1/16", "10.20.0.0/33", "hospital.example", "10.20.*", ""])
def test_a_network_that_is_none_is_said_at_the_start_and_does_not_crash_a_call(text, webhook, settings, chest):
    settings.WEBHOOK_PRIVATE_NETWORKS = ["192.168.0.0/16", text]
    (error,) = [found for found in run_checks() if found.id == "registry.E001"]
    assert f"WEBHOOK_PRIVATE_NETWORKS names {text!r}, which is no network" in error.msg
    with pytest.raises(SystemCheckError, match="which is no network"):
        call_command("check")
    make_version(chest)
    deliver_all()
    assert "which is no network" in WebhookDelivery.objects.get().log[0]["result"]
    with pytest.raises(ValidationError, match="which is no network"):
        Webhook(name="x", url="https://pacs.example/", secret=SECRET).clean_fields(exclude=["events"])


@pytest.mark.parametrize("networks", [[], ["10.20.0.0/16", " 192.168.7.4", "fd00::/8"]])
def test_networks_that_are_some_are_no_error(networks, settings):
    settings.WEBHOOK_PRIVATE_NETWORKS = networks
    assert [found for found in run_checks() if found.id == "registry.E001"] == []


# -- Ending one


@pytest.fixture
def as_administrator(client, administrator):
    client.force_login(administrator)
    return client


def test_one_that_was_never_called_is_deleted(webhook, as_administrator):
    page = as_administrator.get(reverse("admin:registry_webhook_change", args=[webhook.pk])).content.decode()
    assert "It was never called, so that it can be deleted." in page
    as_administrator.post(reverse("admin:registry_webhook_delete", args=[webhook.pk]), {"post": "yes"})
    assert not Webhook.objects.exists()
    assert AuditEntry.objects.filter(action="webhook.delete").exists()


def test_one_that_was_called_is_not_deleted_and_the_admin_says_what_to_do(webhook, chest, as_administrator):
    make_version(chest)
    change = reverse("admin:registry_webhook_change", args=[webhook.pk])
    delete = reverse("admin:registry_webhook_delete", args=[webhook.pk])
    page = as_administrator.get(change).content.decode()
    assert "It was called 1 time. These calls are history" in page and delete not in page
    answer = as_administrator.post(delete, {"post": "yes"}, follow=True)
    assert answer.redirect_chain[-1][0] == change
    assert "PACS was not deleted." in answer.content.decode()
    assert WebhookDelivery.objects.count() == 1
    assert "delete_selected" not in as_administrator.get(reverse("admin:registry_webhook_changelist")).content.decode()


def test_who_may_not_delete_is_not_told_what_was_called(webhook, chest, client, alice):
    make_version(chest)
    alice.is_staff = True
    alice.save()
    client.force_login(alice)
    assert client.post(reverse("admin:registry_webhook_delete", args=[webhook.pk])).status_code == 403


def test_it_is_made_inactive_on_the_list_with_an_audit_entry(webhook, chest, as_administrator, administrator):
    data = {"action": "make_inactive", "_selected_action": [webhook.pk]}
    as_administrator.post(reverse("admin:registry_webhook_changelist"), data)
    webhook.refresh_from_db()
    assert not webhook.active
    assert AuditEntry.objects.get(action="webhook.change").actor == administrator
    make_version(chest)
    assert not WebhookDelivery.objects.exists()


# -- By command


def run_command(*args, **options):
    out = StringIO()
    call_command("webhook", *args, json=True, stdout=out, **options)
    return json.loads(out.getvalue())


def test_the_command_lists_them_without_their_secrets(webhook):
    (row,) = run_command()["webhooks"]
    assert (row["name"], row["url"], row["active"], row["last_call"]) == ("PACS", webhook.url, True, None)
    assert SECRET not in json.dumps(row)
    with pytest.raises(SystemExit):
        run_command("RIS")
    with pytest.raises(CommandError, match=r"There is no webhook 'RIS'\. Known: PACS\."):
        call_command("webhook", "RIS")


def test_the_command_makes_a_test_call_and_says_what_came_of_it(webhook, receiver, administrator, alice):
    result = run_command("PACS", test=True, user="ada")
    assert (result["test"], result["failed"]) == ("answered 204", 0)
    assert AuditEntry.objects.get(action="webhook.test").actor == administrator
    deliver_all()
    assert [body_of(call)["event"] for call in receiver.calls] == ["webhook.test"]
    receiver.status = 500
    with pytest.raises(SystemExit):
        run_command("PACS", test=True)
    assert WebhookDelivery.objects.first().state == "waiting"
    for options, words in (({"test": True}, "Say which one"), ({"user": "alice"}, "no role that allows this")):
        with pytest.raises(CommandError, match=words):
            call_command("webhook", **options)
