"""The registry in Django's admin: lists, history and actions, by the same rules and audit as the pages."""

import pytest
from django.contrib.admin import site
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from registry.admin import versions as admin_versions
from registry.models import Activation, DeletedVersion, Deployment, IntegrityCheck, ModelVersion
from tests.factories import (
    ConditionFactory,
    ModelVersionFactory,
    ScheduledActivationFactory,
    TeamFactory,
    ThresholdSetFactory,
    UserFactory,
)
from tests.inference.versions import make_version
from tests.registry.evaluations import make_evaluation
from xrayplatform.audit import AuditEntry

VERSIONS = "/admin/registry/modelversion/"
DEPLOYMENTS = "/admin/registry/deployment/"
ACTIONS = {"activate", "approve", "archive", "reopen", "verify", "export", "delete_versions"}


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def served(chest, alice):
    """Two versions with real files; the first is in service."""
    versions = [make_version(chest), make_version(chest)]
    versions[0].activate(by=alice, reason="first")
    return versions


def staff(team, *roles):
    user = UserFactory(username="-".join(roles).replace(" ", "-"), roles=list(roles), is_staff=True)
    team.members.add(user)
    return user


@pytest.fixture
def keeper(team, client):
    """A model manager with staff status, logged in."""
    user = staff(team, "model manager")
    client.force_login(user)
    return user


@pytest.fixture
def stranger(roles, client):
    """The same in another team, who may delete as well."""
    user = staff(TeamFactory(name="Orthopaedics"), "model manager", "version remover")
    client.force_login(user)
    return user


def choose(client, action, rows, url=VERSIONS, **given):
    """The answer to an action on the chosen rows; what was redirected to is followed."""
    data = {"action": action, "_selected_action": [getattr(row, "pk", row) for row in rows], **given}
    return client.post(url, data, follow=True)


def confirm(client, action, rows, url=VERSIONS, **given):
    return choose(client, action, rows, url, decided="yes", **given)


def text(response):
    return response.content.decode()


def told(response):
    return [str(message) for message in response.context["messages"]]


def offered(client, url=VERSIONS):
    """The actions in the list's menu."""
    form = client.get(url).context["action_form"]
    return {name for name, _ in form.fields["action"].choices if name} if form else set()


def audited(action, outcome="success"):
    return AuditEntry.objects.filter(action=action, outcome=outcome).order_by("seq")


# -- Roles


@pytest.mark.parametrize(
    ("given", "actions"),
    [
        (["model manager"], ACTIONS - {"delete_versions"}),
        (["model manager", "version remover"], ACTIONS),
        (["version remover"], {"delete_versions"}),
        (["administrator"], set()),
        (["administrator", "model manager"], ACTIONS - {"delete_versions"}),
        (["auditor"], set()),
        (["data scientist"], set()),
        (["clinician"], set()),
    ],
)
def test_each_role_is_offered_the_actions_that_the_pages_allow_it(given, actions, team, served, client):
    client.force_login(staff(team, *given))
    assert offered(client) == actions
    assert offered(client, DEPLOYMENTS) == ({"roll_back"} if "activate" in actions else set())


@pytest.mark.parametrize("role", ["administrator", "auditor", "data scientist"])
def test_a_forged_action_of_somebody_without_the_right_does_nothing(role, team, served, client):
    client.force_login(staff(team, role))
    before = AuditEntry.objects.count()
    for action in [*sorted(ACTIONS), "delete_selected"]:
        confirm(client, action, [served[1]], reason="because", epoch=1)
    served[1].refresh_from_db()
    assert (served[1].state, Deployment.objects.get().active) == ("candidate", served[0])
    confirm(client, "roll_back", [Deployment.objects.get()], DEPLOYMENTS, **{"rollback-reason": "x"})
    assert Activation.objects.count() == 1
    assert AuditEntry.objects.count() == before


def test_a_forged_deletion_by_a_manager_who_may_not_delete_is_refused(served, keeper, client):
    served[1].archive(by=keeper, reason="superseded")
    for action in ("delete_versions", "delete_selected"):
        assert told(confirm(client, action, [served[1]], reason="because")) == ["No action selected."]
    assert ModelVersion.objects.count() == 2


def test_a_manager_without_staff_status_does_not_get_in(served, alice, client):
    client.force_login(alice)
    assert client.get(VERSIONS).status_code == 302


def test_versions_of_another_team_are_neither_listed_nor_changed_nor_told_of(served, stranger, client):
    version = served[1]
    assert "Custom_CNN" not in text(client.get(VERSIONS))
    assert client.get(f"{VERSIONS}{version.pk}/change/").status_code == 302
    assert client.get(f"{VERSIONS}{version.pk}/history/").status_code == 302
    for action in sorted(ACTIONS):
        assert "chest" not in text(confirm(client, action, [version], reason="because", epoch=1))
    confirm(client, "roll_back", [Deployment.objects.get()], DEPLOYMENTS, **{"rollback-reason": "x"})
    version.refresh_from_db()
    assert version.state == "candidate"
    assert Activation.objects.count() == 1
    assert not AuditEntry.objects.filter(actor=stranger).exists()


def test_filters_tell_nothing_of_other_teams(served, stranger, client, alice):
    """Each has two conditions of the own team, so that the filter is shown at all."""
    for name in ("Knee", "Hip"):
        condition = ConditionFactory(name=name, team=stranger.teams.get())
        for version in (ModelVersionFactory(condition=condition), ModelVersionFactory(condition=condition)):
            version.tag(f"tag of {name}", by=stranger)
            version.add_note("seen", by=stranger)
            version.archive(by=stranger, reason="not needed")
            make_evaluation(version, patients=10)
            ThresholdSetFactory(version=version)
            ScheduledActivationFactory(version=version)
            condition.activations.create(to_version=version, by=stranger)
        Deployment.objects.create(condition=condition, active=version)
    served[0].tag("secret tag", by=alice)
    models = ("modelversion", "deployment", "activation", "scheduledactivation", "evaluation", "thresholdset")
    for model in (*models, "statechange", "versiontag", "versionnote"):
        page = text(client.get(f"/admin/registry/{model}/"))
        assert "Knee" in page and "Hip" in page, model
        for secret in ("Chest", "secret tag", "alice"):
            assert secret not in page, (model, secret)


def test_an_autocompletion_offers_the_own_versions_only(served, stranger, client):
    asked = {"app_label": "registry", "model_name": "evaluation", "field_name": "version", "term": ""}
    assert client.get(reverse("admin:autocomplete"), asked).json()["results"] == []


# -- Lists and pages


def test_a_long_list_takes_no_more_queries_than_a_short_one(
    chest, keeper, client, django_assert_num_queries, django_assert_max_num_queries
):
    def fill(count):
        for _ in range(count):
            version = ModelVersionFactory(condition=chest, created_by=UserFactory())
            IntegrityCheck.objects.create(version=version, checked_at=timezone.now())
            version.tag("pilot", by=keeper)

    fill(2)
    client.get(VERSIONS)
    with django_assert_max_num_queries(30) as short:
        client.get(VERSIONS)
    fill(15)
    with django_assert_num_queries(len(short)):
        client.get(VERSIONS)


def test_a_long_history_takes_no_more_queries_than_a_short_one_and_is_cut(served, keeper, client, alice):
    version, other = served[1], served[0]
    deployment = Deployment.objects.get()

    def fill(count):
        for number in range(count):
            version.add_note(f"note {number}", by=UserFactory())
            version.tag(f"tag {number}", by=UserFactory())
            point = ThresholdSetFactory(version=version, created_by=UserFactory())
            version.activations.create(
                condition=version.condition, from_version=other, threshold_set=point, by=UserFactory()
            )
            version.state_changes.create(from_state="a", to_state="b", reason="x", by=UserFactory())

    def queries(url):
        with CaptureQueriesContext(connection) as captured:
            page = text(client.get(url))
        return len(captured), page

    pages = (f"{VERSIONS}{version.pk}/change/", f"{DEPLOYMENTS}{deployment.pk}/change/")
    fill(2)
    [client.get(url) for url in pages]
    short = [queries(url)[0] for url in pages]
    fill(20 - 2)
    version.add_note("the newest", by=alice)
    version.add_note("the very newest", by=alice)
    long = [queries(url) for url in pages]
    assert [count for count, _ in long] == short
    assert "the very newest" in long[0][1] and "note 17" in long[0][1]
    assert long[0][1].count('<tr class="form-row has_original') <= 5 * 20 + 2


def test_the_page_of_a_version_shows_its_whole_history_and_leads_to_the_site(served, keeper, client):
    version = served[0]
    version.approve(by=keeper, reason="read by two")
    version.tag("pilot", by=keeper)
    version.add_note("well behaved", by=keeper)
    report = make_evaluation(version, patients=10).report
    version.verify()
    page = text(client.get(f"{VERSIONS}{version.pk}/change/"))
    for shown in ("first", "read by two", "pilot", "well behaved", "CHEST/study", version.get_absolute_url()):
        assert shown in page, shown
    assert "calibration" in report
    assert "calibration" not in page
    assert 'name="_save"' not in page


def test_json_is_shown_line_by_line_and_escaped(chest, keeper, client):
    version = ModelVersionFactory(condition=chest, environment={"python": "<script>alert(1)</script>"})
    page = text(client.get(f"{VERSIONS}{version.pk}/change/"))
    assert "<pre>{\n  &quot;python&quot;: &quot;&lt;script&gt;alert(1)&lt;/script&gt;&quot;\n}</pre>" in page


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("", [1, 2, 3]),
        ("state__exact=archived", [3]),
        ("architecture=ResNet50", [2]),
        ("tag=pilot", [2]),
        ("service=yes", [1]),
        ("service=no", [2, 3]),
        ("files=damaged", [2]),
        ("files=whole", [1]),
        ("files=unknown", [3]),
        ("origin=trained", [2]),
        ("origin=imported", [3]),
        ("origin=other", [1]),
        ("synthetic__exact=1", [3]),
        ("q=v2", [2]),
        ("q=pilot", [2]),
        ("q=chest+resnet", [2]),
        ("q=nothing", []),
        ("_facets=True", [1, 2, 3]),
        ("service=maybe&files=eaten&origin=mars", [2, 3]),
    ],
)
def test_versions_are_found_by_what_they_are(query, numbers, chest, keeper, client):
    first = ModelVersionFactory(condition=chest, number=1)
    second = ModelVersionFactory(condition=chest, number=2, architecture="ResNet50", origin="trained here, run 7")
    ModelVersionFactory(condition=chest, number=3, state="archived", synthetic=True, origin="imported from Elsewhere")
    second.tag("pilot", by=keeper)
    Deployment.objects.create(condition=chest, active=first)
    IntegrityCheck.objects.create(version=first, checked_at=timezone.now())
    IntegrityCheck.objects.create(version=second, checked_at=timezone.now(), reason="digest", message="Changed.")
    found = client.get(f"{VERSIONS}?{query}").context["cl"].queryset
    assert sorted(version.number for version in found) == numbers


@pytest.mark.parametrize("column", range(1, 11))
def test_the_list_is_sorted_by_every_column(column, served, keeper, client):
    for order in (column, -column):
        answer = client.get(f"{VERSIONS}?o={order}")
        assert answer.status_code == 200
        assert len(answer.context["cl"].queryset.query.order_by) > 0


@pytest.mark.parametrize("table", ["modelversion", "webhookdelivery"])
@pytest.mark.parametrize(
    "query",
    ["created_at__year=99999999999999999999", "created_at__year=9999", "created_at__year=0", "id__in=1,9" + 30 * "9"],
)
def test_an_address_with_a_number_that_cannot_be_is_no_error(query, table, served, admin_client):
    address = reverse(f"admin:registry_{table}_changelist")
    assert admin_client.get(f"{address}?{query}", follow=True).status_code == 200


def test_a_search_for_too_much_says_so(served, keeper, client):
    answer = client.get(VERSIONS, {"q": "a b c d e f g h i"})
    assert told(answer) == ["Search for at most 8 words."]
    assert answer.context["cl"].result_count == 0


@pytest.mark.parametrize("number", ["abc", "-1", "9" * 40, "1e3"])
def test_numbers_that_no_row_has_are_refused_in_words(number, served, keeper, client):
    for action in sorted(ACTIONS - {"delete_versions"}):
        assert "Nothing was changed" in told(confirm(client, action, [number], reason="x", epoch=1))[0]
    assert client.get(f"{VERSIONS}{number}/change/").status_code == 302


# -- Activation and the way back


def test_activating_asks_first_and_shows_what_would_change(served, keeper, client):
    page = text(choose(client, "activate", [served[1]]))
    for shown in ("Nothing has happened yet", "In service for Chest", "What would change", 'name="epoch" value="1"'):
        assert shown in page, shown
    assert Deployment.objects.get().active == served[0]


def test_activating_puts_the_version_in_service_with_reason_history_and_audit(served, keeper, client):
    answer = confirm(client, "activate", [served[1]], reason="fewer misses", epoch=1)
    assert told(answer) == ["chest v2 is in service for Chest. No restart is needed."]
    activation = Activation.objects.first()
    assert (activation.to_version, activation.by, activation.reason) == (served[1], keeper, "fewer misses")
    entry = audited("version.activate").last()
    assert (entry.actor, entry.channel) == (keeper, "web")


def test_activating_warns_where_the_chosen_version_is_worse(chest, served, keeper, client):
    first = make_evaluation(served[0], quality=4.0)
    make_evaluation(served[1], images_like=first, quality=0.5)
    page = text(choose(client, "activate", [served[1]]))
    assert "This version is worse in some respects." in page
    assert "Both on the same" in page


def test_without_a_reason_nothing_is_activated(served, keeper, client):
    answer = confirm(client, "activate", [served[1]], epoch=1)
    assert answer.status_code == 400
    assert "Give the reason; it is kept in the history." in text(answer)
    assert Deployment.objects.get().active == served[0]


def test_who_decided_on_what_is_not_so_any_more_is_told(served, keeper, client, alice):
    served[1].activate(by=alice, reason="faster than you")
    answer = confirm(client, "activate", [served[0]], reason="back", epoch=1)
    assert "faster than you" in told(answer)[0]
    assert Deployment.objects.get().active == served[1]
    assert audited("version.activate", "refused").last().actor == keeper


def test_several_versions_are_not_activated_at_once(served, keeper, client):
    answer = confirm(client, "activate", served, reason="both", epoch=1)
    assert told(answer) == ["Choose exactly one model version for this. Nothing was changed."]
    assert Deployment.objects.get().active == served[0]


def test_the_two_person_rule_holds_in_the_admin(chest, served, keeper, client, settings):
    settings.TWO_PERSON_RULE = True
    own = make_version(chest, by=keeper)
    page = text(choose(client, "activate", [own]))
    assert "The two-person rule is on" in page
    assert 'name="reason"' not in page
    assert "The two-person rule is on" in told(confirm(client, "activate", [own], reason="mine", epoch=1))[0]
    assert "The two-person rule is on" in told(confirm(client, "approve", [own], reason="mine"))[0]
    assert Deployment.objects.get().active == served[0]


def test_a_damaged_version_is_not_activated(served, keeper, client):
    (served[1].folder / "weights.safetensors").write_bytes(b"")
    answer = confirm(client, "activate", [served[1]], reason="newest", epoch=1)
    assert "was not activated" in told(answer)[0]
    assert "damaged" in text(choose(client, "activate", [served[1]]))


def test_a_deployment_shows_its_history_and_is_rolled_back_from_the_admin(served, keeper, client, alice):
    served[1].activate(by=alice, reason="better")
    deployment = Deployment.objects.get()
    page = text(client.get(f"{DEPLOYMENTS}{deployment.pk}/change/"))
    assert "first" in page and "better" in page
    asked = text(choose(client, "roll_back", [deployment], DEPLOYMENTS))
    assert "Before it," in asked and 'name="rollback-epoch" value="2"' in asked
    given = {"rollback-reason": "it misses fractures", "rollback-epoch": 2}
    answer = confirm(client, "roll_back", [deployment], DEPLOYMENTS, **given)
    assert told(answer) == ["chest v2 is out of service; what was in service before answers again."]
    assert Deployment.objects.get().active == served[0]
    assert audited("version.rollback").last().actor == keeper


def test_rolling_back_what_has_no_way_back_says_so(served, keeper, client):
    deployment = Deployment.objects.get()
    assert "there is no way back" in text(choose(client, "roll_back", [deployment], DEPLOYMENTS))
    given = {"rollback-reason": "no", "rollback-epoch": 1}
    assert "there is no way back" in told(confirm(client, "roll_back", [deployment], DEPLOYMENTS, **given))[0]
    empty = Deployment.objects.create(condition=ConditionFactory())
    assert "Nothing is in service" in told(choose(client, "roll_back", [empty], DEPLOYMENTS))[0]


# -- States


def test_several_versions_are_archived_and_what_is_in_use_is_told(served, keeper, client):
    page = text(choose(client, "archive", served))
    assert "Archive 2 versions?" in page
    assert "it is in service for Chest" in page
    assert 'value="Archive 1 version"' in page
    answer = confirm(client, "archive", served, reason="superseded")
    assert told(answer)[0].startswith("chest v1 cannot be archived: it is in service for Chest")
    assert told(answer)[1] == "chest v2 was archived."
    assert [version.state for version in ModelVersion.objects.order_by("number")] == ["candidate", "archived"]
    change = served[1].state_changes.get()
    assert (change.by, change.reason) == (keeper, "superseded")
    assert [audited("version.archive", outcome).count() for outcome in ("success", "refused")] == [1, 1]


def test_versions_are_approved_and_reopened(served, keeper, client):
    assert told(confirm(client, "approve", served, reason="read")) == ["chest v2, chest v1 were approved."]
    assert told(confirm(client, "reopen", [served[0]], reason="doubts")) == ["chest v1 was made a candidate again."]
    assert [version.state for version in ModelVersion.objects.order_by("number")] == ["candidate", "approved"]


def test_a_decision_without_a_reason_is_asked_again(served, keeper, client):
    answer = confirm(client, "approve", served)
    assert answer.status_code == 400
    assert "Give the reason; it is kept." in text(answer)
    assert set(ModelVersion.objects.values_list("state", flat=True)) == {"candidate"}


def test_no_more_are_decided_about_at_once_than_a_page_holds(chest, keeper, client):
    for _ in range(101):
        ModelVersionFactory(condition=chest)
    answer = confirm(client, "approve", [ModelVersion.objects.first()], reason="all", select_across=1)
    assert told(answer) == ["Choose at most 100 at once. Nothing was changed."]
    assert not ModelVersion.objects.exclude(state="candidate").exists()


def test_versions_that_left_the_filtered_list_are_told_of(served, keeper, client):
    url = f"{VERSIONS}?state__exact=candidate"
    served[1].approve(by=keeper, reason="meanwhile")
    answer = confirm(client, "archive", [served[1]], url, reason="superseded")
    assert "1 of those chosen are not in the list any more" in told(answer)[0]
    served[1].refresh_from_db()
    assert served[1].state == "approved"


# -- Deletion, verification, export


def test_only_archived_versions_that_nothing_needs_are_deleted(
    served, team, client, django_capture_on_commit_callbacks
):
    remover = staff(team, "version remover")
    client.force_login(remover)
    assert "it is not archived; archive it first" in text(choose(client, "delete_versions", [served[1]]))
    served[1].archive(by=remover, reason="superseded")
    folder = served[1].folder
    with django_capture_on_commit_callbacks(execute=True):
        answer = confirm(client, "delete_versions", served, reason="disk is full")
    assert told(answer)[0] == "chest v2 was deleted." or told(answer)[1] == "chest v2 was deleted."
    assert any(message.startswith("chest v1 was not deleted") for message in told(answer))
    assert (DeletedVersion.objects.get().by, folder.exists()) == (remover, False)
    assert list(ModelVersion.objects.all()) == [served[0]]


def test_files_are_verified_and_damage_is_told(served, keeper, client):
    (served[1].folder / "weights.safetensors").write_bytes(b"")
    answer = choose(client, "verify", served)
    assert any(message.startswith("chest v2 is damaged") for message in told(answer))
    assert "Every file of chest v1 is what was registered." in told(answer)
    assert audited("version.damaged", "failed").get().actor == keeper


def test_too_much_to_verify_at_once_is_left_to_the_night(served, keeper, client, monkeypatch):
    monkeypatch.setattr(admin_versions, "MOST_BYTES_VERIFIED", 1)
    assert "manage.py verify_models" in told(choose(client, "verify", served))[0]
    monkeypatch.setattr(admin_versions, "MOST_VERIFIED", 1)
    assert told(choose(client, "verify", served)) == ["Choose at most 1 at once. Nothing was changed."]
    assert not IntegrityCheck.objects.filter(version=served[1]).exists()


def test_one_version_is_exported_as_a_package_and_several_with_their_condition(served, keeper, client):
    answer = choose(client, "export", [served[1]])
    assert answer.redirect_chain[0][0] == reverse("registry:version-export", args=[served[1].pk])
    assert answer["Content-Disposition"] == 'attachment; filename="chest-v2.xrpkg.zip"'
    assert audited("version.export").get().actor == keeper
    answer = choose(client, "export", served)
    assert answer.redirect_chain[0][0] == reverse("registry:condition-export", args=["chest"])
    assert "Export all versions" in answer.content.decode()
    other = ModelVersionFactory()
    assert told(choose(client, "export", [served[0], other]))[0].startswith("Choose versions of one condition")


def test_every_table_with_a_team_is_shown_by_teams():
    """Those without are for administrators: addresses, calls, trusted sites, nightly runs."""
    mine = {model: options for model, options in site._registry.items() if model._meta.app_label == "registry"}
    without = {model.__name__ for model, options in mine.items() if not options.team_path}
    assert without == {"Webhook", "WebhookDelivery", "TrustedOrigin", "VerificationRun", "PackageImport"}
