"""Several trainings as one: a grid of architectures and settings, or a race that drops the hopeless ones."""

from django.conf import settings
from django.db import models
from django.urls import reverse

from datasets.models import Preparation
from xrayplatform.teams import TeamScopedQuerySet


class SearchQuerySet(TeamScopedQuerySet):
    team_path = "preparation__dataset__condition__team"


class Search(models.Model):
    """A batch of runs on one preparation that are compared at the end."""

    class Mode(models.TextChoices):
        GRID = "grid", "Train all to the end"
        HALVING = "halving", "Stop hopeless ones early"

    name = models.CharField(max_length=80)
    preparation = models.ForeignKey(Preparation, models.PROTECT, related_name="searches", editable=False)
    mode = models.CharField(max_length=10, choices=Mode)
    parameters = models.JSONField(editable=False, help_text="architectures, and the values of each option that varies")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.PROTECT, null=True, editable=False, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = SearchQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"Search {self.pk}: {self.name}"

    def get_absolute_url(self) -> str:
        return reverse("training:search-detail", args=[self.pk])
