"""Notes that people leave on runs: added by all three ways, never changed, seen by the team alone."""

import json

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse

from training.models import RunNote
from xrayplatform.audit import AuditEntry


@pytest.fixture
def url(world):
    return reverse("training:run-note", args=[world.run.pk])


def test_a_note_is_added_on_the_page_and_shown_with_who_and_when(client, world, bob, url):
    client.force_login(bob)
    answer = client.post(url, {"text": "Looks <b>odd</b>\nTry again"}, follow=True)
    page = answer.content.decode()
    assert "Looks &lt;b&gt;odd&lt;/b&gt;<br>Try again" in page
    assert "bob, " in page
    note = RunNote.objects.get()
    assert (note.author, note.run) == (bob, world.run)
    entry = AuditEntry.objects.get(action="run.note")
    assert (entry.actor, entry.object_id, entry.after) == (bob, str(world.run.pk), {"text": note.text})


@pytest.mark.parametrize("text", ["", "   ", "x" * 2001, "nul \0"])
def test_an_unusable_note_is_not_stored_and_says_so(client, bob, url, text):
    client.force_login(bob)
    answer = client.post(url, {"text": text}, follow=True)
    assert "The note was not stored" in answer.content.decode()
    assert not RunNote.objects.exists()


def test_a_note_is_never_changed_or_deleted(world, alice):
    note = world.run.note("First thought", alice)
    note.text = "Second thought"
    with pytest.raises(TypeError, match="never changed"):
        note.save()
    with pytest.raises(TypeError, match="never deleted"):
        note.delete()


def test_a_note_whose_audit_entry_cannot_be_written_is_none(world, alice, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no audit")

    monkeypatch.setattr("xrayplatform.audit.record", fail)
    with pytest.raises(RuntimeError):
        world.run.note("x", alice)
    assert not RunNote.objects.exists()


def test_programs_add_and_read_notes(client, world, bob):
    client.force_login(bob)
    url = reverse("api:run-notes", args=[world.run.pk])
    made = client.post(url, {"text": "from a program"})
    assert (made.status_code, made.json()["author"]) == (201, "bob")
    assert [note["text"] for note in client.get(url).json()] == ["from a program"]
    refused = client.post(url, {"text": ""})
    assert (refused.status_code, list(refused.json()["errors"])) == (400, ["text"])


def test_the_command_adds_and_lists_notes(world, bob, capsys):
    call_command("run_note", world.run.pk, "from the shell", "--user", "bob", "--json")
    assert [note["text"] for note in json.loads(capsys.readouterr().out)["notes"]] == ["from the shell"]
    call_command("run_note", world.run.pk)
    assert "bob: from the shell" in capsys.readouterr().out
    assert RunNote.objects.count() == 1


def test_the_command_knows_no_run_of_another_team(world, charlie):
    with pytest.raises(CommandError, match="There is no run"):
        call_command("run_note", world.run.pk, "x", "--user", "charlie")
