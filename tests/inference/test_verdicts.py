"""What readers say about answers: by page, API and command."""

import json
from io import StringIO
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse

from inference.models import Verdict, VerdictError
from tests.factories import ConditionFactory, ModelVersionFactory, PredictionFactory, UserFactory
from xrayplatform.audit import AuditEntry

HTMX = {"HX-Request": "true"}


@pytest.fixture
def answer(team):
    """PNEUMONIA, by a version that knows NORMAL and PNEUMONIA."""
    return PredictionFactory(version__condition=ConditionFactory(slug="chest", name="Chest", team=team))


@pytest.fixture
def graded(team):
    """Of three classes the second."""
    version = ModelVersionFactory(condition__team=team, classes=["none", "mild", "severe"], positive_class="")
    chances = {"none": 0.2, "mild": 0.7, "severe": 0.1}
    return PredictionFactory(version=version, probabilities=chances, decision="mild", threshold=None)


@pytest.fixture
def give(client, bob):
    client.force_login(bob)

    def give(answer, verdict="", headers=None, **said):
        url = reverse("inference:verdict-create", args=[answer.pk])
        return client.post(url, {"verdict": verdict} | said, headers=headers)

    return give


def said(answer):
    return list(answer.verdicts.values_list("agrees", "label", "comment"))


# -- What is stored


def test_who_agrees_sees_what_was_decided(answer, bob):
    verdict = Verdict.objects.give(answer, bob, True)
    assert (verdict.agrees, verdict.label, verdict.by) == (True, "PNEUMONIA", bob)


def test_who_disagrees_with_one_of_two_sees_the_other(answer, bob):
    assert Verdict.objects.give(answer, bob, False).label == "NORMAL"


def test_of_several_classes_the_reader_names_one(graded, bob):
    with pytest.raises(VerdictError, match="Say which class you see: none, severe"):
        Verdict.objects.give(graded, bob, False)
    assert Verdict.objects.give(graded, bob, False, "severe").label == "severe"


@pytest.mark.parametrize(
    ("agrees", "label", "words"),
    [
        (False, "FRACTURE", "knows no such class"),
        (False, "PNEUMONIA", "PNEUMONIA is what was decided"),
        (True, "NORMAL", "Who agrees sees what was decided, PNEUMONIA"),
    ],
)
def test_a_label_that_does_not_go_with_the_verdict_is_refused_in_words(answer, bob, agrees, label, words):
    with pytest.raises(VerdictError, match=words):
        Verdict.objects.give(answer, bob, agrees, label)
    assert not Verdict.objects.exists() and not AuditEntry.objects.exists()


@pytest.mark.parametrize("comment", ["x" * 1001, "a\0b"])
def test_a_comment_is_short_and_printable(answer, bob, comment):
    with pytest.raises(VerdictError, match="at most 1,000 characters"):
        Verdict.objects.give(answer, bob, True, comment=comment)
    assert not Verdict.objects.exists()


def test_of_one_reader_the_newest_counts_and_the_earlier_stays(answer, alice, bob):
    Verdict.objects.give(answer, bob, True)
    Verdict.objects.give(answer, alice, True)
    changed = Verdict.objects.give(answer, bob, False, comment="on second thoughts")
    assert answer.verdicts.count() == 3
    counting = Verdict.objects.counting()
    assert {(verdict.by, verdict.agrees) for verdict in counting} == {(alice, True), (bob, False)}
    assert counting.first() == changed


def test_a_reader_may_return_to_what_they_said_first(answer, bob):
    for agrees in (True, False, True):
        Verdict.objects.give(answer, bob, agrees)
    assert [agrees for agrees, *_ in said(answer)] == [True, False, True]
    assert Verdict.objects.counting().get().agrees


def test_the_same_said_twice_is_stored_once(answer, bob):
    first = Verdict.objects.give(answer, bob, False, "NORMAL", " clear ")
    assert Verdict.objects.give(answer, bob, False, comment="clear") == first
    assert AuditEntry.objects.filter(action="verdict.give").count() == 1


def test_a_verdict_is_audited_with_what_it_replaces_but_without_the_comment(answer, bob):
    Verdict.objects.give(answer, bob, True)
    verdict = Verdict.objects.give(answer, bob, False, comment="Frau Mustermann")
    entry = AuditEntry.objects.filter(action="verdict.give").first()
    assert (entry.actor, entry.object_id) == (bob, str(verdict.pk))
    assert entry.before == {"agrees": True, "label": "PNEUMONIA"}
    assert entry.after == {"prediction": str(answer.pk), "agrees": False, "label": "NORMAL"}
    assert "Mustermann" not in str(AuditEntry.objects.values())


def test_the_answer_of_a_shadow_takes_no_verdict(answer, bob):
    shadow = PredictionFactory(version=answer.version, id=uuid4(), shown=False, paired_with=answer)
    with pytest.raises(VerdictError, match="answer of a shadow"):
        Verdict.objects.give(shadow, bob, True)


def test_a_verdict_is_never_changed_or_deleted(answer, bob):
    verdict = Verdict.objects.give(answer, bob, True)
    with pytest.raises(TypeError, match="never changed"):
        verdict.save()
    with pytest.raises(TypeError, match="never deleted"):
        verdict.delete()


# -- On the page


def test_a_verdict_is_shown_with_who_gave_it(answer, alice, give, client):
    Verdict.objects.give(answer, alice, True)
    response = give(answer, "disagree", label="NORMAL", comment="No infiltrate.")
    assert response.url == f"{answer.get_absolute_url()}#verdicts"
    assert said(answer)[0] == (False, "NORMAL", "No infiltrate.")
    page = client.get(answer.get_absolute_url()).content.decode()
    for expected in ("No infiltrate.", "bob (you)", "alice,", "Change your verdict"):
        assert expected in page


def test_htmx_gets_the_part_about_verdicts_alone(answer, give):
    response = give(answer, "agree", headers=HTMX)
    page = response.content.decode()
    assert response.status_code == 200 and "Your verdict is stored." in page and "<html" not in page


@pytest.mark.parametrize("headers", [None, HTMX], ids=["page", "htmx"])
@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({"verdict": "disagree"}, "Say which class you see: none, severe."),
        ({"verdict": "perhaps"}, "Select a valid choice."),
        ({}, "Say whether you agree or disagree."),
        ({"verdict": "agree", "comment": "x" * 1001}, "at most 1000 characters"),
    ],
)
def test_what_is_wrong_with_a_verdict_is_said_and_nothing_is_stored(graded, give, headers, sent, words):
    response = give(graded, headers=headers, **sent)
    assert response.status_code == 400
    page = response.content.decode()
    assert "Your verdict was not stored." in page and words in page
    assert not Verdict.objects.exists()


def test_a_label_left_over_in_the_other_form_does_not_contradict_an_agreement(answer, give):
    give(answer, "agree", label="NORMAL")
    assert said(answer) == [(True, "PNEUMONIA", "")]


def test_who_may_not_give_verdicts_sees_them_without_the_buttons(answer, bob, client, team):
    Verdict.objects.give(answer, bob, False)
    scientist = UserFactory(roles=["data scientist"])
    team.members.add(scientist)
    client.force_login(scientist)
    page = client.get(answer.get_absolute_url()).content.decode()
    assert "Disagrees" in page and "verdict-form" not in page
    assert client.post(reverse("inference:verdict-create", args=[answer.pk]), {"verdict": "agree"}).status_code == 403


def test_another_team_and_a_shadow_are_not_found(answer, give, client, charlie):
    shadow = PredictionFactory(version=answer.version, id=uuid4(), shown=False, paired_with=answer)
    assert give(shadow, "agree").status_code == 404
    client.force_login(charlie)
    assert give(answer, "agree").status_code == 404
    assert not Verdict.objects.exists()


def test_a_comment_is_text_and_no_markup(answer, give, client):
    give(answer, "agree", comment="<script>alert(1)</script>")
    assert "<script>alert" not in client.get(answer.get_absolute_url()).content.decode()


# -- By the API


def test_the_api_takes_verdicts_and_says_which_count(answer, api, bob):
    api.force_authenticate(bob)
    url = f"/api/v1/predictions/{answer.pk}/verdicts/"
    first = api.post(url, {"agrees": True}, format="json")
    assert first.status_code == 201
    assert (first.json()["label"], first.json()["by"], first.json()["counts"]) == ("PNEUMONIA", "bob", True)
    second = api.post(url, {"agrees": False, "label": "NORMAL", "comment": "clear"}, format="json").json()
    listed = api.get(url).json()
    assert [(row["id"], row["counts"]) for row in listed] == [(second["id"], True), (first.json()["id"], False)]


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({}, "agrees"),
        ({"agrees": False, "label": "FRACTURE"}, "label"),
        ({"agrees": True, "lable": "NORMAL"}, "lable"),
    ],
)
def test_the_api_names_what_is_wrong(answer, api, bob, sent, field):
    api.force_authenticate(bob)
    response = api.post(f"/api/v1/predictions/{answer.pk}/verdicts/", sent, format="json")
    assert response.status_code == 400 and list(response.json()["errors"]) == [field]
    assert not Verdict.objects.exists()


def test_by_the_api_another_team_and_a_shadow_are_not_found(answer, api, bob, charlie):
    shadow = PredictionFactory(version=answer.version, id=uuid4(), shown=False, paired_with=answer)
    api.force_authenticate(bob)
    assert api.post(f"/api/v1/predictions/{shadow.pk}/verdicts/", {"agrees": True}).status_code == 404
    api.force_authenticate(charlie)
    assert api.get(f"/api/v1/predictions/{answer.pk}/verdicts/").status_code == 404


# -- By the command


def run(*arguments, **options):
    out = StringIO()
    call_command("verdict", *map(str, arguments), stdout=out, **options)
    return out.getvalue()


def test_the_command_stores_a_verdict_of_the_user_who_is_named(answer, bob):
    told = json.loads(run(answer.pk, "disagree", "--label", "NORMAL", user="bob", json=True))
    assert (told["agrees"], told["label"], told["by"]) == (False, "NORMAL", "bob")
    assert said(answer) == [(False, "NORMAL", "")]
    assert run(answer.pk, "agree", user="bob") == "Stored: bob agrees with PNEUMONIA.\n"


def test_the_command_needs_a_person_who_may_and_an_answer_that_they_may_see(answer, charlie, auditor):
    with pytest.raises(CommandError, match="say whose, with --user"):
        run(answer.pk, "agree")
    with pytest.raises(CommandError, match="no role that allows this"):
        run(answer.pk, "agree", user="otto")
    with pytest.raises(CommandError, match=r"There is no analysis .* that charlie may see"):
        run(answer.pk, "agree", user="charlie")
    assert not Verdict.objects.exists()


def test_the_command_says_what_is_wrong_with_a_label(graded, bob):
    with pytest.raises(CommandError, match="Say which class you see"):
        run(graded.pk, "disagree", user="bob")
