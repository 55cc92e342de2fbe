"""Pages and API of experiments: started, watched and ended by those who may, and honest about what is known."""

import json

import pytest
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from inference.models import Experiment
from registry.models import Deployment
from tests.factories import ConditionFactory, ExperimentFactory, ModelVersionFactory, TeamFactory, UserFactory
from tests.inference.trials import CHALLENGER, CHAMPION, answer, judge, shadowed, start
from tests.inference.versions import make_version

pytestmark = pytest.mark.django_db

LIST, CREATE = "/analysis/experiments/", "/analysis/experiments/new/"
API = "/api/v1/experiments/"
WISH = {
    "kind": "ab",
    "share": 20,
    "reason": "see whether it is better",
    "max_error_rate": 0.1,
    "max_latency_ratio": 2,
    "min_requests": 30,
}
HTMX = {"HX-Request": "true"}


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def champion(chest, alice):
    version = make_version(chest)
    version.activate(by=alice, reason="agreed")
    return version


@pytest.fixture
def challenger(chest, champion):
    return make_version(chest, slope=-8.0)


@pytest.fixture
def shadow(chest, challenger, alice):
    return start(chest, challenger, alice, kind="shadow")


@pytest.fixture
def trial(chest, challenger, alice):
    return start(chest, challenger, alice, share=20)


@pytest.fixture
def reader(client, bob):
    """The browser of bob, a clinician."""
    client.force_login(bob)
    return client


def text(response):
    return " ".join(response.content.decode().split())


def browser(user):
    client = Client()
    client.force_login(user)
    return client


# -- Starting


def test_the_form_names_the_version_in_service_and_offers_the_others(logged_in, challenger, chest):
    ModelVersionFactory(condition=chest, number=9, state="archived")
    page = logged_in.get(CREATE, {"condition": "chest"})
    assert list(page.context["form"].fields["challenger"].queryset) == [challenger]
    assert 'name="epoch" value="1"' in text(page) and "threshold of 50.0" in text(page)


def test_a_version_leads_to_the_form_with_itself_chosen(logged_in, challenger):
    link = f"{CREATE}?version={challenger.pk}"
    assert link in text(logged_in.get(challenger.get_absolute_url()))
    assert f'value="{challenger.pk}" selected' in text(logged_in.get(link))


def test_the_version_in_service_and_people_who_may_not_are_offered_none(logged_in, challenger, champion, bob):
    assert CREATE not in text(logged_in.get(champion.get_absolute_url()))
    assert CREATE not in text(browser(bob).get(challenger.get_absolute_url()))


def test_a_filled_in_form_starts_it_and_leads_to_it(logged_in, alice, challenger):
    answer = logged_in.post(f"{CREATE}?condition=chest", {**WISH, "challenger": challenger.pk, "epoch": 1})
    experiment = Experiment.objects.get()
    assert (answer.status_code, answer.url) == (302, experiment.get_absolute_url())
    assert (experiment.kind, experiment.share, experiment.created_by) == ("ab", 20, alice)
    assert (experiment.max_error_rate, experiment.max_latency_ratio, experiment.min_requests) == (0.1, 2, 30)


def test_an_activation_since_the_form_was_loaded_is_told(logged_in, challenger, alice, chest):
    make_version(chest).activate(by=alice, reason="urgent")
    answer = logged_in.post(f"{CREATE}?condition=chest", {**WISH, "challenger": challenger.pk, "epoch": 1})
    assert answer.status_code == 409 and "after what you looked at" in text(answer)
    assert not Experiment.objects.exists()


@pytest.mark.parametrize(
    "wrong", [{"share": 0}, {"reason": ""}, {"kind": "x"}, {"max_error_rate": 1}, {"epoch": ""}, {"challenger": 0}]
)
def test_a_wrong_form_is_shown_again(logged_in, challenger, wrong):
    sent = {**WISH, "challenger": challenger.pk, "epoch": 1, **wrong}
    answer = logged_in.post(f"{CREATE}?condition=chest", sent)
    assert answer.status_code == 400 and answer.context["form"].errors
    assert not Experiment.objects.exists()


def test_where_nothing_can_begin_the_page_says_why(logged_in, chest, champion, alice):
    assert "There is no other version" in text(logged_in.get(CREATE, {"condition": "chest"}))
    running = start(chest, make_version(chest), alice)
    page = text(logged_in.get(CREATE, {"condition": "chest"}))
    assert "One at a time" in page and running.get_absolute_url() in page
    knee = ModelVersionFactory(condition=ConditionFactory(slug="knee"))
    assert "Nothing is in service for" in text(logged_in.get(CREATE, {"version": knee.pk}))


def test_another_teams_versions_and_conditions_are_not_found(logged_in, challenger):
    hidden = ModelVersionFactory(condition=ConditionFactory(slug="secret", team=TeamFactory()))
    assert logged_in.get(CREATE, {"condition": "secret"}).status_code == 404
    assert logged_in.get(CREATE, {"version": hidden.pk}).status_code == 404
    sent = {**WISH, "challenger": hidden.pk, "epoch": 1}
    assert logged_in.post(f"{CREATE}?condition=chest", sent).status_code == 400


# -- The list


def test_the_list_is_of_all_conditions_or_of_one(reader, shadow):
    other = ExperimentFactory(challenger=ModelVersionFactory(condition=ConditionFactory(slug="knee")))
    assert len(reader.get(LIST).context["page"].object_list) == 2
    assert list(reader.get(LIST, {"condition": "knee"}).context["page"]) == [other]
    assert reader.get(LIST, {"condition": "nothing"}).status_code == 404


def test_many_experiments_need_no_more_queries(reader, shadow, django_assert_max_num_queries):
    for number in range(100, 112):
        ExperimentFactory(challenger__condition=shadow.condition, challenger__number=number)
    with django_assert_max_num_queries(16):
        assert len(reader.get(LIST).context["page"].object_list) == 13


# -- Watching


def test_the_page_shows_what_both_did_and_asks_again_while_it_runs(reader, shadow, alice):
    for decisions in (("NORMAL", "NORMAL"), ("PNEUMONIA", "NORMAL"), ("PNEUMONIA", "PNEUMONIA")):
        judge(shadowed(shadow, *decisions), "PNEUMONIA", alice)
    shadowed(shadow, "NORMAL", "PNEUMONIA")
    page = reader.get(shadow.get_absolute_url())
    report = page.context["report"]
    assert page.context["state"]["challenger_answers"] == 4 and page.context["state"]["judged"] == 3
    assert report["table"] == [[1, 1], [1, 1]] and report["agreement"]["value"] == 0.5
    assert report["champion"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert report["challenger"]["sensitivity"]["value"] == pytest.approx(1 / 3)
    words = text(page)
    assert "Not enough data to decide." in words
    assert "Only answers with a verdict count: 3 of 4 studies." in words
    assert "Readers saw the champion&#x27;s answer" in words
    assert "finds a chance difference sooner or later" in words
    assert 'hx-trigger="every 5s"' in words


def test_the_fragment_leaves_out_the_statistics_and_stops_asking_at_the_end(reader, shadow, alice):
    fragment = reader.get(shadow.get_absolute_url(), headers=HTMX)
    assert "hx-get" in text(fragment) and "Conclusion" not in text(fragment)
    shadow.stop(by=alice, reason="enough seen")
    ended = text(reader.get(shadow.get_absolute_url(), headers=HTMX))
    assert "hx-get" not in ended and "by alice: enough seen" in ended


def test_asking_again_costs_few_queries_however_many_answers_there_are(reader, trial, django_assert_max_num_queries):
    for _ in range(15):
        answer(trial, CHAMPION)
        answer(trial, CHALLENGER)
    with django_assert_max_num_queries(16):
        reader.get(trial.get_absolute_url(), headers=HTMX)


def test_the_arms_of_an_ab_experiment_are_compared_on_their_own_studies(reader, trial, alice):
    for label in ("PNEUMONIA", "PNEUMONIA", "NORMAL"):
        judge(answer(trial, CHAMPION), label, alice)
    judge(answer(trial, CHALLENGER), "PNEUMONIA", alice)
    answer(trial, CHALLENGER)
    report = reader.get(trial.get_absolute_url()).context["report"]
    assert (report["champion"]["studies"], report["challenger"]["studies"]) == (3, 2)
    assert (report["champion"]["judged"], report["challenger"]["judged"]) == (3, 1)
    assert report["difference"]["difference"] == pytest.approx(1 / 3)


def test_the_newest_verdict_of_an_answer_counts_and_an_unknown_finding_does_not(reader, trial, alice, bob):
    first, second = answer(trial, CHAMPION), answer(trial, CHAMPION)
    judge(first, "NORMAL", alice)
    judge(first, "PNEUMONIA", bob)
    judge(second, "something else", bob)
    report = reader.get(trial.get_absolute_url()).context["report"]
    assert (report["champion"]["judged"], report["champion"]["accuracy"]["value"]) == (1, 1)


def test_an_older_version_that_stepped_in_is_no_answer_of_the_champion(reader, trial, chest):
    answer(trial, CHAMPION)
    answer(trial, CHAMPION, version=ModelVersionFactory(condition=chest, number=40))
    assert reader.get(trial.get_absolute_url()).context["state"]["champion_answers"] == 1


def test_a_clear_winner_is_said_with_what_speaks_against_it(reader, shadow, alice):
    for _ in range(14):
        judge(shadowed(shadow, "PNEUMONIA", "NORMAL"), "NORMAL", alice)
    judge(shadowed(shadow, "PNEUMONIA", "NORMAL"), "PNEUMONIA", alice)
    page = text(reader.get(shadow.get_absolute_url()))
    assert "The challenger is better. chest v2 is right more often" in page
    assert "sensitivity is lower so far: 0.0 % instead of 100.0 %" in page


def test_a_chance_difference_recommends_nothing(logged_in, shadow, alice):
    for _ in range(6):
        judge(shadowed(shadow, "PNEUMONIA", "NORMAL"), "NORMAL", alice)
    page = logged_in.get(shadow.get_absolute_url())
    assert page.context["report"]["mcnemar"]["p"] < 0.05
    assert "Not enough data to decide." in text(page)
    assert "does not show that the challenger is better" in text(page)


# -- Ending


def test_stopping_asks_for_the_reason_and_shows_it(logged_in, trial, alice):
    url = reverse("inference:experiment-stop", args=[trial.pk])
    assert "Give the reason" in text(logged_in.post(url, {"stop-reason": ""}, follow=True))
    page = text(logged_in.post(url, {"stop-reason": "enough seen"}, follow=True))
    assert "The experiment is stopped; the champion answers." in page and "by alice: enough seen" in page
    assert "alice stopped it at" in text(logged_in.post(url, {"stop-reason": "again"}, follow=True))


def test_the_winner_is_promoted_in_one_click_with_the_outlook_beside_it(logged_in, trial, challenger):
    assert "What would change: v2 instead of v1" in text(logged_in.get(trial.get_absolute_url()))
    url = reverse("inference:experiment-promote", args=[trial.pk])
    page = text(logged_in.post(url, {"promote-reason": "right more often"}, follow=True))
    assert "chest v2 is in service for Chest, and the experiment has ended." in page
    assert Deployment.objects.get().active == challenger
    assert "Promoted" in page and "End it" not in page


def test_the_second_of_two_clicks_is_told(logged_in, trial, alice, chest):
    url = reverse("inference:experiment-promote", args=[trial.pk])
    logged_in.post(url, {"promote-reason": "right more often"})
    assert "alice promoted its challenger" in text(logged_in.post(url, {"promote-reason": "too"}, follow=True))
    assert Deployment.objects.get().epoch == 2


def test_who_may_not_end_it_is_offered_nothing(reader, trial):
    page = text(reader.get(trial.get_absolute_url()))
    assert "End it" not in page
    assert reader.post(reverse("inference:experiment-stop", args=[trial.pk])).status_code == 403


def test_whoever_may_stop_may_not_promote_without_the_right_to_activate(trial, team):
    from django.contrib.auth.models import Permission

    carol = UserFactory(username="carol", roles=["clinician"])
    team.members.add(carol)
    carol.user_permissions.add(Permission.objects.get(codename="change_experiment"))
    page = text(browser(carol).get(trial.get_absolute_url()))
    assert "End it" in page and "Promote" not in page
    assert browser(carol).post(reverse("inference:experiment-promote", args=[trial.pk])).status_code == 403


# -- API


@pytest.fixture
def rest(alice):
    client = APIClient()
    client.force_authenticate(alice)
    return client


def test_the_api_starts_shows_and_ends(rest, challenger, champion):
    made = rest.post(API, {**WISH, "challenger": challenger.pk, "epoch": 1}, format="json")
    assert made.status_code == 201
    assert (made.json()["state"], made.json()["champion"], made.json()["share"]) == ("running", champion.pk, 20)
    one = f"{API}{made.json()['id']}/"
    found = rest.get(one).json()
    assert found["report"]["conclusion"].startswith("Not enough data") and found["so_far"]["challenger_answers"] == 0
    assert json.dumps(found)
    assert [row["id"] for row in rest.get(API, {"condition": "chest", "state": "running"}).json()["results"]]
    stopped = rest.post(f"{one}stop/", {"reason": "enough"}).json()
    assert (stopped["state"], stopped["ended_by"]) == ("stopped", "alice")
    assert rest.post(f"{one}promote/", {"reason": "late"}).status_code == 409


def test_the_api_promotes_and_tells_the_second(rest, trial, challenger):
    one = f"{API}{trial.pk}/promote/"
    assert rest.post(one, {"reason": "better"}).json()["active"] == challenger.pk
    second = rest.post(one, {"reason": "better"})
    assert second.status_code == 409 and "alice promoted its challenger" in second.json()["detail"]


@pytest.mark.parametrize(
    "wrong",
    [{"share": 0}, {"share": 100}, {"reason": ""}, {"kind": "x"}, {"max_error_rate": True}, {"salt": "mine"}],
)
def test_the_api_refuses_by_name_what_is_wrong(rest, challenger, wrong):
    refused = rest.post(API, {**WISH, "challenger": challenger.pk, **wrong}, format="json")
    assert refused.status_code == 400 and set(refused.json()["errors"]) == set(wrong)
    assert not Experiment.objects.exists()


def test_the_api_says_what_cannot_begin_now(rest, champion, trial):
    refused = rest.post(API, {**WISH, "challenger": champion.pk}, format="json")
    assert refused.status_code == 409 and "is in service itself" in refused.json()["detail"]


def test_the_api_hides_other_teams_experiments(trial, charlie):
    client = APIClient()
    client.force_authenticate(charlie)
    assert client.get(API).json()["results"] == []
    assert client.get(f"{API}{trial.pk}/").status_code == 404
    refused = client.post(API, {**WISH, "challenger": trial.challenger.pk}, format="json")
    assert refused.status_code == 400 and set(refused.json()["errors"]) == {"challenger"}
