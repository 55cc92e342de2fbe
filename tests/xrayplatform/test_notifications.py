"""What the platform tells a person: on the page, over the API, and by mail where there is a mail server."""

import contextlib
import json
from datetime import timedelta

import pytest
from django.core import mail
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from django_q.brokers import get_broker
from django_q.models import Schedule
from django_q.scheduler import scheduler

from tests.factories import ModelVersionFactory, TrainingRunFactory
from tests.mails import later_mails, send_waiting_mails
from training.models import Search
from xrayplatform.audit import AuditEntry
from xrayplatform.notifications import Notification, mark_read, notify
from xrayplatform.tries import PAUSES

LIST = "/notifications/"


@pytest.fixture
def mailing(settings):
    settings.EMAIL_ON = True
    settings.SITE_URL = "https://xray.hospital/"


def run_what_is_due():
    """The queue's own look at the schedule, which closes the connection of the process that it takes for its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("django_q.scheduler.close_old_django_connections", lambda: None)
        scheduler(get_broker("xray"))


def told(user):
    return list(Notification.objects.of(user).values_list("text", flat=True))


# -- At the end of a training


@pytest.fixture
def run(world, alice):
    run = TrainingRunFactory(preparation=world.preparation, created_by=alice)
    assert run.claim(1)
    return run


def test_who_started_a_training_is_told_that_it_finished(run, world, alice):
    run.version = ModelVersionFactory(condition=world.condition, number=700)
    run.succeed("done")
    words = f"Run {run.pk} has finished: Custom_CNN on CHEST/secret study is chest v700, test AUC 0.950"
    assert told(alice) == [f"{words} (only 10 test images)."]
    assert Notification.objects.get().url == run.get_absolute_url()


@pytest.mark.parametrize(
    ("synthetic", "images", "caveat"),
    [(False, 100, ""), (True, 100, " (synthetic images)"), (True, 1, " (synthetic images, only 1 test image)")],
)
def test_why_a_figure_says_little_is_told_with_it(run, world, alice, synthetic, images, caveat):
    run.preparation.counts = {"test": {"NORMAL": images}}
    run.preparation.dataset.synthetic = run.preparation.synthetic = synthetic
    run.version = ModelVersionFactory(condition=world.condition, number=700)
    run.succeed("done")
    assert told(alice)[0].endswith(f"test AUC 0.950{caveat}.")


def test_a_failure_is_told_with_its_reason(run, alice):
    run.fail("Out of memory.", "Use less.")
    assert told(alice) == [
        f"Run {run.pk} has failed and needs your attention: Custom_CNN on CHEST/secret study. Out of memory."
    ]


def test_after_the_last_attempt_the_reasons_of_all_are_told(run, alice):
    run.give_up("The worker died.", "Start it again.")
    assert "needs your attention" in told(alice)[0] and "The worker died." in told(alice)[0]


def test_an_attempt_that_is_followed_by_another_is_not_told(run, alice):
    run.requeue("The worker died.")
    assert told(alice) == []


@pytest.mark.parametrize("state", ["queued", "running"])
def test_who_cancels_the_own_training_is_not_told_but_others_are(world, alice, bob, state):
    for canceller, expected in ((alice, 0), (bob, 1)):
        run = TrainingRunFactory(preparation=world.preparation, created_by=alice)
        if state == "running":
            run.claim(1)
        run.request_cancel(canceller)
        if state == "running":
            run.end_cancelled()
        assert Notification.objects.of(alice).count() == expected
    assert f"Run {run.pk} was cancelled by bob" in told(alice)[0]


def test_what_the_command_line_started_is_told_to_nobody(world):
    run = TrainingRunFactory(preparation=world.preparation)
    run.claim(1)
    run.fail("x")
    assert not Notification.objects.exists()


def test_somebody_who_has_left_is_not_told(alice):
    alice.is_active = False
    assert notify(alice, "x") is None


def test_a_search_is_told_once_when_its_last_run_has_ended(world, alice, django_capture_on_commit_callbacks):
    search = Search.objects.create(
        name="both", preparation=world.preparation, mode="grid", parameters={}, created_by=alice
    )
    runs = [TrainingRunFactory(preparation=world.preparation, created_by=alice, search=search) for _ in range(2)]
    for run in runs:
        run.claim(1)
    for run, expected in zip(runs, (0, 1), strict=True):
        with django_capture_on_commit_callbacks(execute=True):
            run.fail("x")
        assert Notification.objects.count() == expected
    assert told(alice) == [f"{search} has ended: 0 of 2 runs finished, 2 failed."]
    assert Notification.objects.get().url == search.get_absolute_url()


def test_of_a_search_that_somebody_else_cancelled_it_says_who(world, alice, bob, django_capture_on_commit_callbacks):
    search = Search.objects.create(
        name="both", preparation=world.preparation, mode="grid", parameters={}, created_by=alice
    )
    for _ in range(3):
        TrainingRunFactory(preparation=world.preparation, created_by=alice, search=search)
    with django_capture_on_commit_callbacks(execute=True):
        search.runs.first().request_cancel(alice)
    with django_capture_on_commit_callbacks(execute=True):
        search.cancel(bob)
    assert told(alice) == [f"{search} has ended: 0 of 3 runs finished, 2 cancelled by bob."]


# -- Mail


@pytest.fixture
def reachable(alice):
    alice.email = "alice@hospital"
    alice.save()
    return alice


@pytest.fixture
def broken_server(mailing, monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionRefusedError("no server")

    monkeypatch.setattr("xrayplatform.notifications.send_mail", refuse)


def test_a_mail_goes_to_who_has_an_address_where_there_is_a_server(reachable, mailing):
    notify(reachable, "Run 1 has finished:\nfine.", "/training/runs/1/")
    send_waiting_mails()
    (message,) = mail.outbox
    assert message.to == ["alice@hospital"]
    assert message.subject == "X-ray platform: Run 1 has finished: fine."
    assert "https://xray.hospital/training/runs/1/" in message.body


def test_without_a_mail_server_or_an_address_none_is_sent(reachable, bob, settings):
    notify(reachable, "x")
    settings.EMAIL_ON = True
    notify(bob, "x")
    assert send_waiting_mails() == 0
    assert Notification.objects.count() == 2


def test_nobody_waits_for_the_mail_server(reachable, mailing, monkeypatch, django_capture_on_commit_callbacks):
    """Neither while it happens nor when it is committed: both are inside of the request of a web page."""
    called = []
    monkeypatch.setattr("xrayplatform.notifications.send_mail", lambda *args, **kwargs: called.append(args))
    with django_capture_on_commit_callbacks(execute=True):
        notify(reachable, "x")
    assert called == []
    send_waiting_mails()
    assert len(called) == 1


@pytest.mark.django_db(transaction=True)
def test_what_did_not_happen_sends_no_mail(reachable, mailing):
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        notify(reachable, "x")
        1 / 0  # noqa: B018
    assert send_waiting_mails() == 0


def test_a_mail_that_cannot_be_sent_is_logged_and_harms_nothing(run, reachable, broken_server, caplog):
    run.created_by = reachable
    run.fail("x")
    send_waiting_mails()
    run.refresh_from_db()
    assert run.state == "failed" and len(told(reachable)) == 1
    assert "could not be sent" in caplog.text


def test_it_is_tried_again_with_longer_and_longer_pauses_and_then_given_up(reachable, broken_server, caplog):
    notify(reachable, "x", why="because")
    send_waiting_mails()
    for pause in PAUSES:
        (later,) = later_mails()
        assert later.next_run - timezone.now() == pytest.approx(pause, abs=timedelta(seconds=30))
        Schedule.objects.update(next_run=timezone.now() - timedelta(seconds=1))
        run_what_is_due()
        assert send_waiting_mails() == 1
    assert later_mails() == []
    assert "was given up" in caplog.text
    assert caplog.text.count("could not be sent") == len(PAUSES) + 1


def test_a_server_that_answers_again_sends_what_had_failed(reachable, mailing, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr("xrayplatform.notifications.send_mail", lambda *args: 1 / 0)
        notify(reachable, "x", why="because you asked")
        send_waiting_mails()
    Schedule.objects.update(next_run=timezone.now() - timedelta(seconds=1))
    run_what_is_due()
    send_waiting_mails()
    (message,) = mail.outbox
    assert message.body.endswith("because you asked")


def test_who_left_before_the_mail_was_sent_gets_none(reachable, mailing):
    notify(reachable, "x")
    reachable.is_active = False
    reachable.save()
    send_waiting_mails()
    assert mail.outbox == []


# -- Pages and API


def test_the_bell_shows_how_many_are_unread_with_one_query(client, alice):
    client.force_login(alice)
    notify(alice, "one")
    notify(alice, "two")
    with CaptureQueriesContext(connection) as queries:
        page = client.get("/guide/").content.decode()
    assert page.count('<span class="badge badge-count">2<span') == 2, "in the navigation and, for phones, at the top"
    assert sum("xrayplatform_notification" in query["sql"] for query in queries) == 1


def test_without_unread_messages_the_bell_shows_no_number(client, alice):
    client.force_login(alice)
    assert "badge-count" not in client.get("/guide/").content.decode()


def test_the_list_shows_the_own_messages_newest_first_as_text(client, alice, bob):
    notify(alice, "first <b>", "/training/")
    notify(alice, "second")
    notify(bob, "not for alice")
    client.force_login(alice)
    page = client.get(LIST).content.decode()
    assert page.index("second") < page.index("first &lt;b&gt;")
    assert 'href="/training/"' in page and "not for alice" not in page


def test_messages_are_marked_as_read_one_or_all(client, alice, bob):
    one, two, three = (notify(alice, text) for text in "abc")
    other = notify(bob, "x")
    client.force_login(alice)
    client.post(f"{LIST}read/", {"id": [one.pk, other.pk]})
    assert set(Notification.objects.unread()) == {two, three, other}
    client.post(f"{LIST}read/")
    assert set(Notification.objects.unread()) == {other}
    assert AuditEntry.objects.filter(action="notification.read", actor=alice).count() == 2
    assert mark_read(alice) == 0 and AuditEntry.objects.filter(action="notification.read").count() == 2


@pytest.mark.parametrize("number", ["x", "-1", "9" * 40, "²"])
def test_numbers_that_are_none_are_not_found(client, alice, number):
    client.force_login(alice)
    assert client.post(f"{LIST}read/", {"id": number}).status_code == 404


def test_programs_list_and_mark_their_own(client, alice, bob):
    one, two = notify(alice, "one"), notify(alice, "two")
    notify(bob, "x")
    client.force_login(alice)
    url = reverse("api:notification-list")
    assert [row["text"] for row in client.get(url).json()["results"]] == ["two", "one"]
    answer = client.post(reverse("api:notification-read"), {"ids": [one.pk]}, content_type="application/json")
    assert answer.json() == {"read": 1}
    assert [row["id"] for row in client.get(url, {"unread": "true"}).json()["results"]] == [two.pk]
    assert client.post(reverse("api:notification-read")).json() == {"read": 1}


@pytest.mark.parametrize("number", ["-1", "99999999999999999999", "1" + "0" * 400, "true", "1.5", "1e999", '"x"'])
def test_programs_are_told_of_numbers_that_are_none(client, alice, number):
    client.force_login(alice)
    url = reverse("api:notification-read")
    answer = client.post(url, f'{{"ids": [{number}]}}', content_type="application/json")
    assert answer.status_code == 400 and set(answer.json()["errors"]) == {"ids"}


def test_a_mistyped_field_does_not_mark_all_as_read(client, alice):
    message = notify(alice, "one")
    client.force_login(alice)
    answer = client.post(reverse("api:notification-read"), {"id": [message.pk]}, content_type="application/json")
    assert answer.status_code == 400 and set(answer.json()["errors"]) == {"id"}
    assert set(Notification.objects.unread()) == {message}


@pytest.mark.parametrize("word", ["maybe", "2", "none"])
def test_programs_are_told_of_a_filter_that_is_neither_true_nor_false(client, alice, word):
    client.force_login(alice)
    answer = client.get(reverse("api:notification-list"), {"unread": word})
    assert answer.status_code == 400 and "true or false" in str(answer.json()["errors"]["unread"])


def test_the_command_shows_and_marks_a_users_messages(alice, capsys):
    notify(alice, "finished")
    call_command("notifications", "--user", "alice", "--read", "--json")
    assert [item["text"] for item in json.loads(capsys.readouterr().out)["notifications"]] == ["finished"]
    assert not Notification.objects.unread().exists()
    with pytest.raises(CommandError, match="--user"):
        call_command("notifications")
