"""A role is a group with exactly the permissions that the code lists, and nothing else."""

import pytest
from django.contrib.auth.models import Group, Permission
from django.core.management import call_command
from django_q.models import Schedule

from tests.factories import UserFactory
from xrayplatform.teams import ROLES, sync_roles


def permissions(role):
    held = Group.objects.get(name=role).permissions.values_list("content_type__app_label", "codename")
    return {f"{app}.{name}" for app, name in held}


def test_each_role_has_exactly_what_is_listed(roles):
    assert {role: permissions(role) for role in ROLES} == {role: set(names) for role, names in ROLES.items()}
    assert set(Group.objects.values_list("name", flat=True)) == set(ROLES)


def test_what_somebody_added_to_a_role_by_hand_is_taken_away(roles):
    Group.objects.get(name="clinician").permissions.add(Permission.objects.get(codename="activate_modelversion"))
    sync_roles()
    assert permissions("clinician") == set(ROLES["clinician"])


def test_a_role_that_was_emptied_is_filled_again_and_keeps_its_members(roles):
    nora = UserFactory(roles=["clinician"])
    Group.objects.get(name="clinician").permissions.clear()
    sync_roles()
    assert nora.has_perm("inference.add_prediction")


# The account of a device stores images and sees nothing.
READERS = set(ROLES) - {"imaging device"}


@pytest.mark.parametrize(
    ("permission", "holders"),
    [
        ("inference.add_prediction", {"clinician"}),
        ("datasets.scan_dataset", {"data scientist"}),
        ("datasets.prepare_dataset", {"data scientist"}),
        ("datasets.curate_dataset", {"data scientist"}),
        ("datasets.upload_dataset", {"data scientist"}),
        ("datasets.remove_pixels", {"data scientist", "administrator"}),
        ("training.add_trainingrun", {"data scientist"}),
        ("training.cancel_trainingrun", {"data scientist", "model manager", "administrator"}),
        ("training.prioritise_trainingrun", {"model manager", "administrator"}),
        ("training.pause_trainingqueue", {"model manager", "administrator"}),
        ("training.add_search", {"data scientist"}),
        ("training.view_trainingqueue", READERS),
        ("training.view_search", READERS),
        ("training.add_runnote", READERS - {"auditor", "version remover"}),
        ("training.add_speedtest", {"data scientist"}),
        ("training.view_speedtest", READERS),
        ("training.view_savedpreset", READERS),
        ("training.add_savedpreset", {"data scientist"}),
        ("training.change_savedpreset", {"data scientist"}),
        ("training.delete_savedpreset", {"data scientist"}),
        ("registry.activate_modelversion", {"model manager"}),
        ("registry.change_state_modelversion", {"model manager"}),
        ("registry.delete_modelversion", {"version remover"}),
        ("inference.add_verdict", {"clinician"}),
        ("inference.add_experiment", {"model manager"}),
        ("inference.change_servingpolicy", {"model manager"}),
        ("inference.add_receivedobject", {"imaging device"}),
        ("xrayplatform.view_auditentry", {"auditor"}),
        ("auth.change_user", {"administrator"}),
    ],
)
def test_each_deed_belongs_to_the_roles_that_are_meant(permission, holders):
    assert {role for role, names in ROLES.items() if permission in names} == holders


def test_no_role_may_change_or_delete_what_never_changes():
    protected = ("auditentry", "prediction", "modelversion", "activation", "deployment", "datasetimage", "group")
    protected += ("finding", "decision", "upload", "runnote", "search")
    forbidden = {f"{verb}_{name}" for verb in ("change", "delete") for name in protected}
    held = {name.split(".")[1] for names in ROLES.values() for name in names}
    # A version, archived before and with nothing that refers to it, by those alone who have that role besides.
    assert held & forbidden == {"delete_modelversion"}


def test_the_platform_is_initialised_as_often_as_one_likes(db):
    for _ in range(2):
        call_command("init_platform")
    assert Schedule.objects.get().func == "xrayplatform.tasks.every_minute"
    assert set(Group.objects.values_list("name", flat=True)) == set(ROLES)
