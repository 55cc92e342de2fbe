"""The space of versions: what they take, what is proposed to go and why, and that nothing goes without a decision."""

import json
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from registry import backups, space
from registry.models import DeletedVersion, ModelVersion, StateChange
from registry.models.evaluation import file_of
from registry.retention import delete
from tests.factories import ConditionFactory, ModelVersionFactory, PredictionFactory, UserFactory
from tests.inference.versions import make_version
from tests.registry.evaluations import make_evaluation
from tests.tampering import tampered
from xrayplatform.audit import AuditEntry

DAYS = 90


@pytest.fixture
def chest(team, settings):
    """The disk of the models is there, although most versions here have no files."""
    (settings.MODEL_ROOT / "registry" / "chest").mkdir(parents=True)
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def ada(team):
    """A model manager who may delete as well."""
    user = UserFactory(username="ada-may-delete", roles=["model manager", "version remover"])
    team.members.add(user)
    return user


def made(condition, number, *, state="candidate", days=100, auc=0.9, accuracy=0.9):
    """A version that has been in its state for so many days."""
    figures = {"auc": auc, "accuracy": accuracy}
    version = ModelVersionFactory(condition=condition, number=number, metrics=figures, state=state)
    tampered(version, created_at=timezone.now() - timedelta(days=days))
    return version


def put_away(version, days):
    version.archive(by=None, reason="superseded")
    tampered(StateChange.objects.get(version=version), at=timezone.now() - timedelta(days=days))


def proposed(versions=None, days=DAYS):
    found = space.proposals(ModelVersion.objects.all() if versions is None else versions, days)
    return {(one.version.number, one.step.value) for one in found}


# -- Space


def test_the_space_of_a_version_is_that_of_its_files_its_backup_and_its_evaluations(chest):
    version = make_version(chest)
    evaluation = make_evaluation(version, patients=10)
    copied = backups.keep(version)
    found = space.of(ModelVersion.objects.all())[version.pk]
    in_copy = sum(path.stat().st_size for path in copied.rglob("*") if path.is_file())
    assert (found.files, found.backup) == (version.size, in_copy)
    assert found.evaluations == file_of(evaluation.key).stat().st_size > 0
    assert found.total == found.files + found.backup + found.evaluations


def test_the_totals_are_those_of_each_condition_the_largest_first(chest):
    knee = ConditionFactory(slug="knee")
    for condition, size in ((chest, 10), (knee, 100), (knee, 200)):
        ModelVersionFactory(condition=condition, size=size)
    versions = ModelVersion.objects.all()
    totals = space.totals(versions, space.of(versions))
    assert [(total.condition.slug, total.versions, total.space.total) for total in totals] == [
        ("knee", 2, 300),
        ("chest", 1, 10),
    ]


# -- Proposals


def test_a_version_made_while_the_spaces_are_measured_counts_the_next_time(chest):
    made(chest, 1)
    put_away(ModelVersion.objects.get(), days=100)
    spaces = space.of(ModelVersion.objects.none())
    assert space.totals(ModelVersion.objects.all(), spaces) == []
    assert space.proposals(ModelVersion.objects.all(), DAYS, spaces=spaces) == []


def test_what_was_archived_long_ago_and_is_referred_to_by_nothing_is_proposed_for_deletion(chest):
    old, young, answered = (made(chest, number) for number in (1, 2, 3))
    put_away(old, 91)
    put_away(young, 89)
    put_away(answered, 200)
    PredictionFactory(version=answered)
    assert proposed() == {(1, "delete")}
    assert proposed(days=10) == {(1, "delete"), (2, "delete")}


def test_what_was_reopened_lately_is_not_old(chest):
    made(chest, 9, auc=0.99, accuracy=0.99)
    version = made(chest, 1)
    put_away(version, 200)
    assert proposed() == {(1, "delete")}
    version.reopen(by=None, reason="after all")
    assert proposed() == set()


def test_old_candidates_that_others_surpass_are_proposed_for_archiving(chest):
    made(chest, 1, auc=0.95, accuracy=0.80)
    made(chest, 2, auc=0.85, accuracy=0.91)
    made(chest, 3, auc=0.90, accuracy=0.85)
    made(chest, 4, auc=0.80, accuracy=0.70, days=10)
    made(chest, 5, auc=0.80, accuracy=0.70, state="approved")
    made(chest, 6, auc=0.95, accuracy=0.70)
    assert proposed() == {(3, "archive")}
    why = space.proposals(ModelVersion.objects.all(), DAYS)[0].why
    assert why.endswith("that nothing refers to: AUC 0.900 against 0.950 of v1, accuracy 0.850 against 0.910 of v2.")


def test_the_best_is_the_best_of_its_own_condition_and_never_an_archived_one(chest):
    put_away(made(chest, 1, auc=0.99, accuracy=0.99), 1)
    made(ConditionFactory(slug="knee"), 7, auc=0.99, accuracy=0.99)
    made(chest, 2, auc=0.7, accuracy=0.7)
    assert proposed() == set()


def test_a_candidate_without_figures_is_nobodys_worse(chest):
    made(chest, 1)
    made(chest, 2, auc=None, accuracy=None)
    assert proposed() == set()


def test_the_largest_stands_first_and_what_it_frees_is_told(chest):
    for number, size in ((1, 10), (2, 30), (3, 20)):
        version = ModelVersionFactory(condition=chest, number=number, size=size)
        tampered(version, created_at=timezone.now() - timedelta(days=400))
        put_away(version, 300)
    found = space.proposals(ModelVersion.objects.all(), DAYS)
    assert [(one.version.number, one.frees) for one in found] == [(2, 30), (3, 20), (1, 10)]


# -- The page


def test_the_page_shows_space_proposals_and_why_a_version_has_to_stay(chest, alice, client):
    put_away(made(chest, 1), 200)
    PredictionFactory(version=made(chest, 2, auc=0.99, accuracy=0.99, state="archived"))
    client.force_login(alice)
    page = client.get(reverse("registry:storage")).content.decode()
    assert "nothing refers to it" in page
    assert "No: predictions name it, and they stay readable" in page
    assert "Only people with the role version remover may delete." in page
    assert reverse("registry:storage") in client.get(reverse("registry:version-list")).content.decode()


def test_the_page_takes_an_age_and_a_condition(chest, ada, client):
    put_away(made(chest, 1), 20)
    client.force_login(ada)
    address = reverse("registry:storage")
    assert "Nothing that is older than 90 days could go" in client.get(address).content.decode()
    assert "Archived since" in client.get(address, {"days": 10}).content.decode()
    assert "chest v1" in client.get(address, {"condition": "chest", "days": ""}).content.decode()
    for nonsense in ({"days": "x"}, {"days": "-1"}, {"condition": "no-such"}, {"page": "x"}):
        assert client.get(address, nonsense).status_code == 200


@pytest.mark.parametrize(
    "query", ["days=9" + 30 * "9", "days=NaN", "days=-1", "condition=none", "page=-1", "days=5&days=x"]
)
def test_what_cannot_be_used_is_as_if_it_were_not_there(query, chest, ada, client):
    made(chest, 1)
    client.force_login(ada)
    assert client.get(f"{reverse('registry:storage')}?{query}").status_code == 200
    assert client.get(f"{reverse('api:version-storage')}?{query}").status_code in (200, 400)


def test_the_queries_of_the_page_do_not_grow_with_the_versions(chest, ada, client):
    client.force_login(ada)

    def count():
        with CaptureQueriesContext(
            connection,
        ) as queries:
            client.get(reverse("registry:storage"))
        return len(queries)

    for number in range(1, 4):
        put_away(made(chest, number), 200)
    few = count()
    for number in range(4, 20):
        put_away(made(chest, number), 200)
    assert count() <= few


def test_the_queries_of_the_page_that_asks_do_not_grow_with_what_was_chosen(chest, ada, client):
    client.force_login(ada)
    keys = [made(chest, number, state="archived").pk for number in range(1, 9)]

    def queries(*chosen):
        with CaptureQueriesContext(connection) as asked:
            client.get(reverse("registry:versions-delete"), {"version": chosen})
        return len(asked)

    queries(keys[0])
    assert queries(*keys) == queries(keys[0])


def test_several_versions_go_with_one_reason_and_what_has_to_stay_is_told(chest, ada, client):
    versions = [made(chest, number) for number in (1, 2, 3)]
    for version in versions:
        put_away(version, 200)
    PredictionFactory(version=versions[1])
    client.force_login(ada)
    address = reverse("registry:versions-delete")
    chosen = [version.pk for version in versions]
    page = client.get(address, {"version": chosen}).content.decode()
    assert "Delete 3 versions?" in page
    assert "It stays: predictions name it" in page
    assert "Delete 2 versions" in page
    page = client.post(address, {"version": chosen, "reason": "clean-up"}, follow=True).content.decode()
    assert "chest v1 was deleted." in page
    assert "chest v2 was not deleted: predictions name it" in page
    assert list(ModelVersion.objects.values_list("number", flat=True)) == [2]
    assert set(DeletedVersion.objects.values_list("reason", flat=True)) == {"clean-up"}


def test_several_candidates_are_archived_with_one_reason(chest, alice, client):
    made(chest, 9, auc=0.99, accuracy=0.99)
    candidate = made(chest, 1)
    client.force_login(alice)
    address = reverse("registry:versions-archive")
    assert address in client.get(reverse("registry:storage")).content.decode()
    assert "Archive 1 version?" in client.get(address, {"version": candidate.pk}).content.decode()
    client.post(address, {"version": candidate.pk, "reason": "surpassed"})
    candidate.refresh_from_db()
    assert (candidate.state, candidate.state_changes.get().reason) == ("archived", "surpassed")
    assert "is archived already" in client.get(address, {"version": candidate.pk}).content.decode()


@pytest.mark.parametrize("name", ["registry:versions-delete", "registry:versions-archive"])
def test_nothing_or_nonsense_chosen_is_no_error(chest, ada, client, name):
    client.force_login(ada)
    assert client.get(reverse(name)).url == reverse("registry:storage")
    assert client.post(reverse(name), {"reason": "x"}).url == reverse("registry:storage")
    for number in ("x", "0", "9" * 40):
        assert client.get(reverse(name), {"version": number}).status_code == 404


def test_deleted_versions_are_remembered_on_the_page(chest, alice, charlie, client):
    version = made(chest, 3, state="archived")
    delete(version, by=alice, reason="never used anywhere")
    client.force_login(alice)
    assert "never used anywhere" in client.get(reverse("registry:storage")).content.decode()
    client.force_login(charlie)
    assert "never used anywhere" not in client.get(reverse("registry:storage")).content.decode()


# -- API and command


def test_the_api_tells_the_same(chest, alice, charlie, client):
    version = made(chest, 1)
    put_away(version, 200)
    client.force_login(alice)
    told = client.get(reverse("api:version-storage")).json()
    assert told["conditions"] == [
        {"condition": "chest", "versions": 1, "files": 1000, "backup": 0, "evaluations": 0, "total": 1000}
    ]
    assert [(row["version"], row["step"], row["frees"]) for row in told["proposals"]] == [(version.pk, "delete", 1000)]
    assert told["versions"][0]["obstacles"] == []
    assert client.get(reverse("api:version-storage"), {"days": 300}).json()["proposals"] == []
    assert client.get(reverse("api:version-storage"), {"days": -1}).status_code == 400
    client.force_login(charlie)
    assert client.get(reverse("api:version-storage")).json()["versions"] == []


def prune(**options):
    out = StringIO()
    call_command("prune_versions", json=True, stdout=out, **options)
    return json.loads(out.getvalue())


def test_the_command_only_proposes(chest):
    put_away(made(chest, 1), 200)
    told = prune()
    assert [(row["number"], row["step"]) for row in told["proposals"]] == [(1, "delete")]
    assert "done" not in told["proposals"][0]
    assert ModelVersion.objects.count() == 1
    assert prune(condition="knee")["proposals"] == []


def test_the_command_does_with_a_reason_what_it_proposes(chest, ada):
    made(chest, 9, auc=0.99, accuracy=0.99)
    made(chest, 2)
    put_away(made(chest, 1), 200)
    with pytest.raises(CommandError, match="Give the reason"):
        call_command("prune_versions", yes=True, stdout=StringIO())
    told = prune(yes=True, reason="each quarter", user=ada.username)
    assert {(row["number"], row["step"], row["done"]) for row in told["proposals"]} == {
        (1, "delete", True),
        (2, "archive", True),
    }
    assert (told["freed"], told["failed"]) == (1000, 0)
    assert DeletedVersion.objects.get().by == ada
    assert ModelVersion.objects.get(number=2).state == "archived"
    # What was archived a moment ago is not proposed again before the time has passed once more.
    assert prune()["proposals"] == []


def test_the_command_does_nothing_for_who_may_not(chest, alice):
    put_away(made(chest, 1), 200)
    assert len(prune(user="alice")["proposals"]) == 1
    with pytest.raises(CommandError, match="no role that allows this"):
        call_command("prune_versions", yes=True, reason="x", user="alice", stdout=StringIO())
    assert not AuditEntry.objects.filter(action="version.delete").exists()
