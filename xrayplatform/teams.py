"""Hospital teams, the roles of the platform, and who may see and do what."""

from typing import Any

from django.conf import settings
from django.contrib.auth.models import Group, Permission
from django.db import models
from rest_framework.exceptions import MethodNotAllowed
from rest_framework.permissions import BasePermission

VIEW = [
    "xrayplatform.view_team",
    "xrayplatform.view_condition",
    "datasets.view_scan",
    "datasets.view_dataset",
    "datasets.view_datasetimage",
    "datasets.view_finding",
    "datasets.view_preparation",
    "datasets.view_upload",
    "training.view_trainingrun",
    "training.view_epochmetric",
    "training.view_runnote",
    "training.view_search",
    "training.view_savedpreset",
    "training.view_trainingqueue",
    "training.view_speedtest",
    "registry.view_modelversion",
    "registry.view_deployment",
    "registry.view_activation",
    "registry.view_evaluation",
    "registry.view_thresholdset",
    "registry.view_packageimport",
    "registry.view_integritycheck",
    "registry.view_scheduledactivation",
    "registry.view_statechange",
    "registry.view_versiontag",
    "registry.view_versionnote",
    "registry.view_deletedversion",
    "inference.view_prediction",
    "inference.view_evaluationrun",
    "inference.view_verdict",
    "inference.view_batch",
    "inference.view_experiment",
    "inference.view_unanswered",
    "inference.view_servingpolicy",
    "inference.view_monitoringalert",
]
# Analysing radiographs, one or many, and saying what readers think of the answers.
READ = ["inference.add_prediction", "inference.add_batch", "inference.add_verdict"]
SYSTEM = ["xrayplatform.view_system"]

# A role is a Django group; `sync_roles` gives it exactly these permissions. What is not listed is denied.
ROLES: dict[str, list[str]] = {
    "clinician": [*VIEW, "datasets.flag_datasetimage", "training.add_runnote", *READ],
    "data scientist": [
        *VIEW,
        *SYSTEM,
        "datasets.scan_dataset",
        "datasets.prepare_dataset",
        "datasets.curate_dataset",
        "datasets.flag_datasetimage",
        "datasets.upload_dataset",
        "datasets.remove_pixels",
        "training.add_trainingrun",
        "training.add_runnote",
        "training.cancel_trainingrun",
        "training.add_search",
        "training.add_speedtest",
        "registry.add_thresholdset",
        "registry.label_modelversion",
        "inference.add_evaluationrun",
        "training.add_savedpreset",
        "training.change_savedpreset",
        "training.delete_savedpreset",
    ],
    "model manager": [
        *VIEW,
        *SYSTEM,
        "datasets.flag_datasetimage",
        "registry.activate_modelversion",
        "registry.change_state_modelversion",
        "registry.label_modelversion",
        "registry.export_modelversion",
        "registry.view_conditionexport",
        "registry.add_packageimport",
        "inference.add_experiment",
        "inference.change_experiment",
        "inference.change_servingpolicy",
        "inference.change_monitoringalert",
        "xrayplatform.add_condition",
        "registry.add_thresholdset",
        "inference.add_evaluationrun",
        "training.add_runnote",
        "training.cancel_trainingrun",
        "training.prioritise_trainingrun",
        "training.pause_trainingqueue",
    ],
    "administrator": [
        *VIEW,
        *SYSTEM,
        "xrayplatform.add_team",
        "xrayplatform.change_team",
        "xrayplatform.delete_team",
        "xrayplatform.change_condition",
        "registry.view_webhook",
        "registry.add_webhook",
        "registry.change_webhook",
        "registry.delete_webhook",
        "registry.view_webhookdelivery",
        "registry.view_verificationrun",
        "registry.view_trustedorigin",
        "registry.add_trustedorigin",
        "registry.change_trustedorigin",
        "inference.view_dicomroute",
        "inference.add_dicomroute",
        "inference.change_dicomroute",
        "inference.delete_dicomroute",
        "inference.view_dicomdestination",
        "inference.add_dicomdestination",
        "inference.change_dicomdestination",
        "inference.delete_dicomdestination",
        "inference.view_receivedobject",
        "inference.view_dicomdelivery",
        "inference.view_lowerprecision",
        "inference.view_servingprocess",
        "inference.view_servingreference",
        "datasets.change_dataset",
        "training.add_runnote",
        "datasets.remove_pixels",
        "training.cancel_trainingrun",
        "training.prioritise_trainingrun",
        "training.pause_trainingqueue",
        "auth.view_group",
        "auth.view_user",
        "auth.add_user",
        "auth.change_user",
        "knox.view_authtoken",
        "knox.delete_authtoken",
    ],
    # For the account of a modality or an archive that stores objects over DICOMweb; it sees nothing.
    "imaging device": ["inference.add_receivedobject"],
    "auditor": [*VIEW, *SYSTEM, "xrayplatform.view_auditentry"],
    # Beside another role, for those few who may also delete versions; every other role may do all but that.
    "version remover": [*VIEW, "registry.delete_modelversion"],
}


class Team(models.Model):
    """A hospital team. What belongs to a team is invisible to everybody else."""

    name = models.CharField(max_length=120, unique=True)
    members = models.ManyToManyField(settings.AUTH_USER_MODEL, related_name="teams", blank=True)
    training_limit = models.PositiveSmallIntegerField(
        null=True, blank=True, help_text="how many trainings of this team may run at once; empty: no limit"
    )

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


def visible(queryset: models.QuerySet, team_path: str, user: Any) -> models.QuerySet:
    """What has no team, and what belongs to a team of `user`. A superuser sees everything, a visitor nothing."""
    if not user.is_authenticated:
        return queryset.none()
    if user.is_superuser:
        return queryset
    # A subquery instead of a join: a user in two teams must not see a row twice.
    teams = Team.objects.filter(members=user).values("pk")
    return queryset.filter(models.Q(**{f"{team_path}__isnull": True}) | models.Q(**{f"{team_path}__in": teams}))


class TeamScopedQuerySet(models.QuerySet):
    """Rows that belong, through `team_path`, to one team or to none."""

    team_path = "team"

    def visible_to(self, user: Any) -> "TeamScopedQuerySet":
        return visible(self, self.team_path, user)

    def seen_by(self, actor: Any) -> "TeamScopedQuerySet":
        """What the actor of a command may see: a user's rows, or everything for the command line itself (None)."""
        return self.all() if actor is None else self.visible_to(actor)


def sync_roles() -> None:
    """Create the role groups and give each exactly the permissions of `ROLES` (run after migrate)."""
    there = {
        f"{permission.content_type.app_label}.{permission.codename}": permission
        for permission in Permission.objects.select_related("content_type")
    }
    for role, names in ROLES.items():
        group, _ = Group.objects.get_or_create(name=role)
        group.permissions.set([there[name] for name in names])


class RolePermission(BasePermission):
    """Deny by default for the API: a view names the permission, or several, of each of its actions in `permissions`."""

    message = "Your role does not allow this action. Ask an administrator if you need it."

    def has_permission(self, request: Any, view: Any) -> bool:
        if not request.user.is_authenticated:
            return False
        action = getattr(view, "action", request.method.lower())
        if action is None:
            raise MethodNotAllowed(request.method)
        needed = getattr(view, "permissions", {}).get(action)
        if needed is None:
            return False
        return bool(request.user.has_perms((needed,) if isinstance(needed, str) else needed))
