"""API: training options that a team saved under a name."""

from typing import Any

import django_filters
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from xrayplatform.fields import RowField, StrictSerializer
from xrayplatform.http import row_filter
from xrayplatform.teams import Team

from .configurations import OPTIONS, ConfigurationError
from .models import SavedPreset
from .serializers import OptionsSerializer


class PresetOptionsSerializer(OptionsSerializer):
    """Every training option, none of them required; null is that of Standard."""

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        super().validate(attrs)
        return {name: attrs[name] for name in OPTIONS if name in attrs}


class PresetSerializer(StrictSerializer, serializers.ModelSerializer):
    """A named configuration. Options that are left out are those of Standard, or stay as they are in a change.

    In a change, null puts an option back to that of Standard, which for some is "the architecture's own".
    """

    configuration = PresetOptionsSerializer(required=False)
    team = RowField(
        queryset=Team.objects.none(), required=False, allow_null=True,
        help_text="who sees it; null is everybody, left out the first of your teams",
    )  # fmt: skip
    created_by = serializers.CharField(source="created_by.username", read_only=True, default=None)
    key = serializers.CharField(read_only=True, help_text="what a run takes as its `configuration`")

    class Meta:
        model = SavedPreset
        fields = ["id", "key", "name", "description", "team", "configuration", "created_by", "changed_at"]
        read_only_fields = ["changed_at"]
        # The model itself tells which name is taken, within what the user may see.
        validators: list[Any] = []

    def get_fields(self) -> dict[str, serializers.Field]:
        fields = super().get_fields()
        request = self.context.get("request")
        if request is not None:
            teams = Team.objects.all() if request.user.is_superuser else Team.objects.filter(members=request.user.pk)
            fields["team"].queryset = teams
        return fields

    def save(self, **kwargs: Any) -> SavedPreset:
        values = dict(self.validated_data)
        by = self.context["request"].user
        preset = self.instance or SavedPreset(team=by.teams.first())
        try:
            preset.set_options(values.pop("configuration", {}))
        except ConfigurationError as error:
            raise serializers.ValidationError({"configuration": [str(error)]}) from error
        for name, value in values.items():
            setattr(preset, name, value)
        try:
            preset.store(by)
        except ValidationError as error:
            raise serializers.ValidationError(error.message_dict) from error
        self.instance = preset
        return preset


class PresetFilter(django_filters.FilterSet):
    team = row_filter("team_id")

    class Meta:
        model = SavedPreset
        fields = ["team"]


class PresetViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet):
    """Saved training options: list, save, change, delete. A run takes one as `configuration`: "saved:12"."""

    queryset = SavedPreset.objects.none()
    serializer_class = PresetSerializer
    filterset_class = PresetFilter
    permissions = {
        "list": "training.view_savedpreset",
        "retrieve": "training.view_savedpreset",
        "create": "training.add_savedpreset",
        "partial_update": "training.change_savedpreset",
        "destroy": "training.delete_savedpreset",
    }

    def get_queryset(self) -> QuerySet:
        return SavedPreset.objects.visible_to(self.request.user).select_related("team", "created_by")

    def create(self, request: Request) -> Response:
        wanted = self.get_serializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        wanted.save()
        return Response(wanted.data, status=status.HTTP_201_CREATED)

    def partial_update(self, request: Request, pk: Any = None) -> Response:
        wanted = self.get_serializer(self.get_object(), data=request.data, partial=True)
        wanted.is_valid(raise_exception=True)
        wanted.save()
        return Response(wanted.data)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: Any = None) -> Response:
        """Runs that used it keep their own copy of the options."""
        self.get_object().remove(request.user)
        return Response(status=status.HTTP_204_NO_CONTENT)
