"""Auditors, and nobody else, learn over the API which side of an experiment answered and what a shadow said."""

from uuid import uuid4

import pytest

from inference.models import Experiment
from tests.factories import ConditionFactory, ModelVersionFactory, PredictionFactory
from xrayplatform.audit import AuditEntry


@pytest.fixture
def pair(team, auditor, alice):
    """What the champion answered, and what its shadow said of the same image."""
    team.members.add(auditor)
    condition = ConditionFactory(slug="chest", team=team)
    champion, challenger = (ModelVersionFactory(condition=condition) for _ in range(2))
    experiment = Experiment.objects.create(
        condition=condition, champion=champion, challenger=challenger, kind="shadow", share=0, epoch=1, created_by=alice
    )
    shown = PredictionFactory(id=uuid4(), version=champion, experiment=experiment, variant="champion")
    unseen = {"shown": False, "paired_with": shown, "variant": "challenger", "decision": "NORMAL"}
    return shown, PredictionFactory(id=uuid4(), version=challenger, experiment=experiment, **unseen)


def address(answer):
    return f"/api/v1/predictions/{answer.pk}/experiment/"


def test_an_auditor_sees_both_sides_and_that_is_audited(pair, api, auditor):
    shown, shadow = pair
    api.force_authenticate(auditor)
    champion, challenger = (api.get(address(answer)).json() for answer in pair)
    assert (champion["variant"], champion["shown"], champion["shadows"]) == ("champion", True, [str(shadow.pk)])
    assert (challenger["variant"], challenger["shown"], challenger["decision"]) == ("challenger", False, "NORMAL")
    assert challenger["paired_with"] == str(shown.pk)
    assert AuditEntry.objects.filter(action="prediction.view", after={"experiment": True}).count() == 2


def test_readers_are_told_neither_the_side_nor_that_there_is_a_shadow(pair, api, bob):
    shown, shadow = pair
    api.force_authenticate(bob)
    assert [api.get(address(answer)).status_code for answer in pair] == [403, 403]
    assert api.get(f"/api/v1/predictions/{shadow.pk}/").status_code == 404
    answer = api.get(f"/api/v1/predictions/{shown.pk}/").json()
    assert not {"experiment", "variant", "shadows"} & set(answer)
    assert [row["id"] for row in api.get("/api/v1/predictions/").json()["results"]] == [str(shown.pk)]


def test_an_address_that_names_no_answer_is_404(pair, api, auditor):
    api.force_authenticate(auditor)
    assert api.get("/api/v1/predictions/abc/experiment/").status_code == 404


def test_not_even_the_admin_shows_what_a_shadow_said(pair, client, administrator, team):
    team.members.add(administrator)
    client.force_login(administrator)
    opened = [client.get(f"/admin/inference/prediction/{answer.pk}/change/").status_code for answer in pair]
    assert opened == [200, 302]


def test_an_auditor_of_another_team_does_not_find_it(pair, api, auditor, team):
    team.members.remove(auditor)
    api.force_authenticate(auditor)
    assert api.get(address(pair[0])).status_code == 404
