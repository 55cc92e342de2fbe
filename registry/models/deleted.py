"""What is remembered of a version that was deleted; its number is never given again."""

from django.conf import settings
from django.db import models

from xrayplatform.conditions import Condition
from xrayplatform.immutability import Immutable
from xrayplatform.teams import TeamScopedQuerySet


class DeletedVersionQuerySet(TeamScopedQuerySet):
    team_path = "condition__team"


class DeletedVersion(Immutable):
    """One that is gone. Without this row the database does not let the version's own row go."""

    version_key = models.PositiveBigIntegerField(unique=True, help_text="primary key that the version had")
    condition = models.ForeignKey(Condition, models.PROTECT, related_name="deleted_versions")
    number = models.PositiveIntegerField()
    architecture = models.CharField(max_length=60)
    sha256 = models.CharField(max_length=64)
    size = models.BigIntegerField(help_text="bytes that were freed")
    made_at = models.DateTimeField()
    reason = models.CharField(max_length=500)
    by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="+")
    at = models.DateTimeField(auto_now_add=True)

    objects = DeletedVersionQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [models.UniqueConstraint(fields=["condition", "number"], name="a_number_is_deleted_once")]

    def __str__(self) -> str:
        return f"{self.condition.slug} v{self.number} (deleted)"
