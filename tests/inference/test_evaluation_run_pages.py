"""The pages and the API of evaluations: choices are explained before the start, progress and problems after it."""

import pytest
from django.urls import reverse
from django_q.models import OrmQ

from inference.models import EvaluationRun
from inference.offers import offers_of
from tests.factories import (
    ConditionFactory,
    DatasetFactory,
    EvaluationRunFactory,
    ModelVersionFactory,
    PreparationFactory,
    TeamFactory,
)
from tests.registry.evaluations import make_evaluation

pytestmark = pytest.mark.django_db

CREATE = "/analysis/evaluations/new/"


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def version(chest):
    return ModelVersionFactory(condition=chest, number=4, dataset_name="CHEST/own", split_digest="own")


@pytest.fixture
def own(chest):
    """The dataset that the version was trained with, with its division and a later one."""
    dataset = DatasetFactory(name="CHEST/own", condition=chest)
    PreparationFactory(dataset=dataset, split_digest="own")
    PreparationFactory(dataset=dataset, split_digest="later")
    PreparationFactory(dataset=dataset, state="failed")
    return dataset


def page_of(client, version):
    return client.get(CREATE, {"version": version.pk})


# -- What is offered


def test_the_versions_own_validation_part_is_offered_and_no_other(version, own, alice):
    (offered,) = offers_of(version, alice)
    later, first = own.preparations.filter(state="succeeded")
    assert [(offer.preparation, offer.part) for offer in offered.offers] == [
        (later, "test"), (first, "test"), (first, "validation"), (None, "all"),
    ]  # fmt: skip
    assert [offer.images for offer in offered.offers] == [10, 10, 10, 40]
    assert "Another division" in offered.offers[0].meaning
    assert "locked away when this version was trained" in offered.offers[1].meaning
    assert "too good to judge it by" in offered.offers[2].meaning
    assert "without those that the version learned from" in offered.offers[3].meaning


def test_only_datasets_that_the_user_may_see_are_offered_the_own_first(logged_in, chest, version, own):
    DatasetFactory(name="A/elsewhere")
    DatasetFactory(name="B/same condition", condition=chest)
    DatasetFactory(name="C/secret", condition=ConditionFactory(team=TeamFactory()))
    page = page_of(logged_in, version)
    assert [one.dataset.name for one in page.context["usable"]] == ["CHEST/own", "B/same condition", "A/elsewhere"]
    assert "C/secret" not in page.content.decode()


def test_classes_that_do_not_fit_are_explained_before_the_start(logged_in, version, own):
    DatasetFactory(name="KNEE/grades", classes=["0", "4"], source_classes=["0", "4"], counts={"0": 5, "4": 5})
    page = page_of(logged_in, version)
    assert [one.dataset.name for one in page.context["unusable"]] == ["KNEE/grades"]
    content = page.content.decode()
    assert "It has images of classes 0, 4, which this version does not know" in content
    assert "The version tells apart NORMAL, PNEUMONIA" in content and "Classes and patients" in content


def test_classes_that_the_images_lack_are_told_but_no_obstacle(logged_in, version):
    DatasetFactory(name="CHEST/healthy", counts={"NORMAL": 30, "PNEUMONIA": 0})
    assert "There are no images of PNEUMONIA" in page_of(logged_in, version).content.decode()


def test_many_datasets_need_no_more_queries(logged_in, version, django_assert_max_num_queries):
    for _ in range(12):
        PreparationFactory()
    with django_assert_max_num_queries(20):
        assert len(page_of(logged_in, version).context["usable"]) == 12


def test_without_a_version_the_versions_are_offered(logged_in, version):
    ModelVersionFactory(condition=ConditionFactory(slug="secret", team=TeamFactory()))
    page = logged_in.get(CREATE)
    assert list(page.context["versions"]) == [version]
    assert logged_in.get(CREATE, {"version": "no number"}).status_code == 404


# -- Start, follow, cancel


def test_a_choice_starts_a_job(logged_in, alice, version, own):
    first = own.preparations.get(split_digest="own")
    answer = logged_in.post(CREATE, {"version": version.pk, "choice": f"{own.pk}-{first.pk}-test"})
    run = EvaluationRun.objects.get()
    assert (answer.status_code, answer.url) == (302, run.get_absolute_url())
    assert (run.version, run.preparation, run.part, run.created_by) == (version, first, "test", alice)
    assert run.kind == "test" and OrmQ.objects.count() == 1


def test_what_is_not_offered_starts_nothing_and_the_page_says_why(logged_in, version, own):
    later = own.preparations.get(split_digest="later")
    hidden = DatasetFactory(condition=ConditionFactory(team=TeamFactory()))
    for choice in ("", "x", f"{own.pk}-{later.pk}-validation", f"{hidden.pk}-0-all"):
        answer = logged_in.post(CREATE, {"version": version.pk, "choice": choice})
        assert answer.status_code == 409 and b"Choose the images" in answer.content
    EvaluationRunFactory(version=version, dataset=own)
    answer = logged_in.post(CREATE, {"version": version.pk, "choice": f"{own.pk}-0-all"})
    assert b"already being measured" in answer.content
    assert EvaluationRun.objects.count() == 1


def test_a_running_evaluation_is_followed_and_the_fragment_stops_by_itself(logged_in, version, own):
    run = EvaluationRunFactory(
        version=version, dataset=own, state="running", progress=0.4, message="12 of 40 images decoded"
    )
    page = logged_in.get(run.get_absolute_url()).content.decode()
    assert "12 of 40 images decoded" in page and f'hx-get="{run.get_absolute_url()}"' in page
    EvaluationRun.objects.update(
        state="succeeded",
        message="Measured on 38 images",
        evaluation=make_evaluation(version),
        problems=[{"path": "NORMAL/4.png", "reason": "This is a text file."}],
    )
    fragment = logged_in.get(run.get_absolute_url(), headers={"HX-Request": "true"}).content.decode()
    assert "<html" not in fragment and "hx-get" not in fragment
    assert "Measured on 38 images" in fragment and "This is a text file." in fragment
    run.refresh_from_db()
    assert f'href="{run.evaluation.get_absolute_url()}"' in fragment
    assert f"/analysis/evaluated/{run.evaluation.pk}/images/" in fragment


def test_an_evaluation_that_waits_is_cancelled(logged_in, version, own):
    run = EvaluationRunFactory(version=version, dataset=own)
    assert logged_in.post(reverse("inference:evaluation-run-cancel", args=[run.pk])).url == run.get_absolute_url()
    run.refresh_from_db()
    assert run.state == "cancelled"
    again = logged_in.post(reverse("inference:evaluation-run-cancel", args=[run.pk]), follow=True)
    assert b"had ended already" in again.content


def test_who_sees_the_version_but_not_the_dataset_does_not_see_the_run(logged_in, version):
    hidden = DatasetFactory(condition=ConditionFactory(team=TeamFactory()))
    run = EvaluationRunFactory(version=version, dataset=hidden)
    assert logged_in.get(run.get_absolute_url()).status_code == 404
    assert logged_in.get(reverse("api:evaluationrun-list")).json()["results"] == []


# -- API


def test_the_api_starts_lists_and_cancels(logged_in, version, own):
    address = reverse("api:evaluationrun-list")
    first = own.preparations.get(split_digest="own")
    answer = logged_in.post(address, {"version": version.pk, "preparation": first.pk})
    assert answer.status_code == 202
    told = answer.json()
    assert (told["dataset"], told["preparation"], told["part"], told["state"]) == (own.pk, first.pk, "test", "queued")
    assert logged_in.post(address, {"version": version.pk, "dataset": own.pk}).json()["part"] == "all"
    assert len(logged_in.get(address, {"version": version.pk}).json()["results"]) == 2
    cancelled = logged_in.post(reverse("api:evaluationrun-cancel", args=[told["id"]])).json()
    assert cancelled["state"] == "cancelled"
    assert OrmQ.objects.count() == 2


def test_the_api_says_what_is_wrong(logged_in, version, own):
    address = reverse("api:evaluationrun-list")
    hidden = DatasetFactory(condition=ConditionFactory(team=TeamFactory()))
    knee = DatasetFactory(classes=["0"], counts={"0": 5})
    for body, status in (
        ({"version": version.pk}, 400),
        ({"version": version.pk, "dataset": hidden.pk}, 400),
        ({"version": version.pk, "dataset": own.pk, "part": "train"}, 400),
        ({"version": version.pk, "dataset": own.pk, "part": "test"}, 409),
        ({"version": version.pk, "dataset": knee.pk}, 409),
        ({"version": version.pk, "dataset": knee.pk, "preparation": own.preparations.first().pk}, 409),
    ):
        answer = logged_in.post(address, body)
        assert answer.status_code == status, answer.json()
    assert not EvaluationRun.objects.exists()
