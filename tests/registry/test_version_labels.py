"""Tags and notes: how people find a version again, and what they tell others about it."""

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from registry.models import LabelError, VersionNote, VersionTag
from registry.models.label import MOST_TAGS
from tests.factories import ConditionFactory, ModelVersionFactory
from xrayplatform.audit import AuditEntry


@pytest.fixture
def version(team):
    return ModelVersionFactory(condition=ConditionFactory(slug="chest", name="Chest", team=team), number=3)


def names(version):
    return list(VersionTag.objects.filter(version=version).values_list("name", flat=True))


def texts(version):
    return list(VersionNote.objects.filter(version=version).values_list("text", flat=True))


def page_of(client, version):
    return client.get(version.get_absolute_url()).content.decode()


def send(client, address, version, **data):
    return client.post(reverse(address, args=[version.pk]), data, follow=True).content.decode()


# -- Tags


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("Pilot", "pilot"),
        ("  Pilot \t  Study ", "pilot study"),
        ("v2.1/ct+mr_a:b-c", "v2.1/ct+mr_a:b-c"),
        ("Größe", "größe"),
        ("x" * 40, "x" * 40),
    ],
)
def test_tags_are_kept_in_small_letters_with_single_spaces(version, alice, given, kept):
    assert version.tag(given, by=alice).name == kept
    assert names(version) == [kept]


@pytest.mark.parametrize("name", ["", "  ", "x" * 41, "-pilot", "a,b", "<b>", "a\0b", "a\u202eb"])
def test_what_cannot_be_a_tag_is_refused_in_words(version, alice, client, name):
    with pytest.raises(LabelError, match="tag"):
        version.tag(name, by=alice)
    client.force_login(alice)
    assert "alert-danger" in send(client, "registry:version-tag", version, name=name)
    answer = client.post(reverse("api:version-tag", args=[version.pk]), {"name": name})
    assert answer.status_code == 400
    assert "name" in answer.json()["errors"]
    assert names(version) == []


def test_a_tag_that_is_there_already_stays_as_it_is(version, alice, bob):
    first = version.tag("pilot", by=alice)
    assert version.tag("PILOT", by=bob) == first
    assert AuditEntry.objects.filter(action="version.tag").count() == 1


def test_there_are_only_so_many_tags(version, alice):
    for number in range(MOST_TAGS):
        version.tag(f"tag {number}", by=alice)
    with pytest.raises(LabelError, match="the most there can be; remove one first"):
        version.tag("one more", by=alice)
    assert len(names(version)) == MOST_TAGS


def test_tags_added_and_removed_are_in_the_audit_log(version, alice):
    version.tag("pilot", by=alice)
    version.untag("Pilot", by=alice)
    added = AuditEntry.objects.get(action="version.tag")
    removed = AuditEntry.objects.get(action="version.untag")
    assert (added.actor, added.after, removed.before) == (alice, {"tag": "pilot"}, {"tag": "pilot"})
    assert names(version) == []


def test_a_tag_that_is_not_there_cannot_be_removed(version, alice):
    with pytest.raises(LabelError, match="chest v3 has no tag “pilot”"):
        version.untag("pilot", by=alice)
    assert not AuditEntry.objects.exists()


# -- Notes


def test_a_note_is_kept_with_who_and_when_and_in_the_audit_log(version, alice):
    note = version.add_note("  Misses small effusions.\nSee the report. ", by=alice)
    assert (note.text, note.by) == ("Misses small effusions.\nSee the report.", alice)
    entry = AuditEntry.objects.get(action="version.note")
    assert (entry.actor, entry.after) == (alice, {"note": note.text})


@pytest.mark.parametrize("text", ["", " \n ", "x" * 2001, "a\0b"])
def test_what_cannot_be_a_note_is_refused_in_words(version, alice, client, text):
    with pytest.raises(LabelError, match="note"):
        version.add_note(text, by=alice)
    client.force_login(alice)
    assert "alert-danger" in send(client, "registry:version-note", version, text=text)
    assert client.post(reverse("api:version-notes", args=[version.pk]), {"text": text}).status_code == 400
    assert texts(version) == []


def test_a_note_is_never_changed(version, alice):
    note = version.add_note("first", by=alice)
    note.text = "another"
    with pytest.raises(TypeError, match="never changed"):
        note.save()
    for spoil in (lambda rows: rows.update(text="another"), lambda rows: rows.delete()):
        with pytest.raises(DatabaseError), transaction.atomic():
            spoil(VersionNote.objects.all())
    assert texts(version) == ["first"]


# -- On the page


def test_tags_and_notes_are_added_and_tags_removed_on_the_page(version, alice, client):
    client.force_login(alice)
    assert "chest v3 is tagged “pilot study”." in send(client, "registry:version-tag", version, name="Pilot study")
    page = page_of(client, version)
    assert 'aria-label="Remove the tag pilot study"' in page
    assert "Your note about chest v3 is kept." in send(
        client, "registry:version-note", version, text="<script>alert(1)</script>\nsecond line"
    )
    page = page_of(client, version)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;<br>second line" in page
    page = send(client, "registry:version-untag", version, name="pilot study")
    assert "The tag “pilot study” of chest v3 was removed." in page
    assert "has no tag" in send(client, "registry:version-untag", version, name="pilot study")
    assert names(version) == []


def test_notes_come_newest_first(version, alice, bob, client):
    version.add_note("the older one", by=alice)
    version.add_note("the newer one", by=None)
    client.force_login(bob)
    page = page_of(client, version)
    assert page.index("the newer one") < page.index("the older one")


def test_a_clinician_reads_tags_and_notes_and_changes_none(version, alice, bob, client):
    version.tag("pilot", by=alice)
    version.add_note("misses small effusions", by=alice)
    client.force_login(bob)
    page = page_of(client, version)
    assert "pilot" in page
    assert "misses small effusions" in page
    for name, data in (("tag", {"name": "x"}), ("untag", {"name": "pilot"}), ("note", {"text": "x"})):
        url = reverse(f"registry:version-{name}", args=[version.pk])
        assert url not in page
        assert client.post(url, data).status_code == 403
    assert (names(version), len(texts(version))) == (["pilot"], 1)


def test_another_team_finds_neither(version, charlie, client):
    client.force_login(charlie)
    for name in ("registry:version-tag", "registry:version-note", "api:version-tag", "api:version-notes"):
        data = {"name": "x", "text": "x"}
        assert client.post(reverse(name, args=[version.pk]), data).status_code == 404
    assert client.get(reverse("api:version-notes", args=[version.pk])).status_code == 404
    assert names(version) == texts(version) == []


# -- Over the API and by command


def test_the_api_tags_and_untags(version, alice, client):
    client.force_login(alice)
    answer = client.post(reverse("api:version-tag", args=[version.pk]), {"name": "CT/MR study"})
    assert answer.status_code == 201
    assert (answer.json()["name"], answer.json()["by"]) == ("ct/mr study", "alice")
    assert client.get(reverse("api:version-detail", args=[version.pk])).json()["tags"] == ["ct/mr study"]
    assert client.get(reverse("api:version-list")).json()["results"][0]["tags"] == ["ct/mr study"]
    url = f"/api/v1/versions/{version.pk}/tags/ct%2Fmr%20study/"
    assert client.delete(url).status_code == 204
    missing = client.delete(url)
    assert (missing.status_code, missing.json()["detail"]) == (404, "chest v3 has no tag “ct/mr study”.")


def test_a_tag_beyond_the_most_is_refused_although_the_tags_were_read_before(version, alice, client):
    for number in range(MOST_TAGS):
        version.tag(f"tag {number}", by=alice)
    client.force_login(alice)
    answer = client.post(reverse("api:version-tag", args=[version.pk]), {"name": "one more"})
    assert answer.status_code == 400
    assert "the most there can be" in answer.json()["errors"]["name"][0]


def test_the_api_lists_and_adds_notes(version, alice, bob, client):
    client.force_login(alice)
    url = reverse("api:version-notes", args=[version.pk])
    for text in ("first", "second"):
        answer = client.post(url, {"text": text})
        assert (answer.status_code, answer.json()["text"], answer.json()["by"]) == (201, text, "alice")
    client.force_login(bob)
    assert [row["text"] for row in client.get(url).json()] == ["second", "first"]
    assert client.post(url, {"text": "x"}).status_code == 403


def test_the_list_of_the_api_asks_for_all_tags_at_once(version, alice, client):
    client.force_login(alice)
    url = reverse("api:version-list")

    def queries():
        with CaptureQueriesContext(connection) as captured:
            assert client.get(url).status_code == 200
        return len(captured)

    version.tag("pilot", by=alice)
    queries()
    few = queries()
    for number in range(4, 14):
        ModelVersionFactory(condition=version.condition, number=number).tag("pilot", by=alice)
    assert queries() == few


def test_the_command_shows_tags_and_notes(version, alice, bob):
    version.tag("pilot", by=alice)
    version.add_note("misses small effusions", by=alice)
    out = StringIO()
    call_command("version_label", "chest", 3, user="bob", stdout=out)
    assert out.getvalue().splitlines()[0] == "Tags: pilot"
    assert "alice: misses small effusions" in out.getvalue()


def test_the_command_changes_all_or_nothing(version, alice, bob, charlie):
    version.tag("old", by=alice)
    out = StringIO()
    options = ["--tag", "Pilot", "--tag", "new", "--untag", "old", "--note", "seen", "--user", "alice", "--json"]
    call_command("version_label", "chest", "3", *options, stdout=out)
    found = json.loads(out.getvalue())
    assert (found["condition"], found["version"], found["tags"]) == ("chest", 3, ["new", "pilot"])
    assert [(note["text"], note["by"]) for note in found["notes"]] == [("seen", "alice")]
    with pytest.raises(CommandError, match="no tag “missing”"):
        call_command("version_label", "chest", 3, "--untag", "new", "--untag", "missing", "--note", "x")
    with pytest.raises(CommandError, match="Write something"):
        call_command("version_label", "chest", 3, "--untag", "new", "--note", "")
    assert (names(version), texts(version)) == (["new", "pilot"], ["seen"])
    with pytest.raises(CommandError, match="bob has no role that allows this"):
        call_command("version_label", "chest", 3, "--tag", "x", "--user", "bob")
    with pytest.raises(CommandError, match="no version 3 of 'chest'"):
        call_command("version_label", "chest", 3, "--tag", "x", "--user", "charlie")
