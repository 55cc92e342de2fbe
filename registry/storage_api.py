"""API: the space that versions take, what could go, and deleting a version."""

from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from xrayplatform.http import Conflict
from xrayplatform.system import resources

from . import retention, space
from .models import ModelVersion
from .models.state_change import LONGEST_REASON
from .retention import DeletionError

# The largest versions that one answer names.
MOST = 200


class SpaceSerializer(serializers.Serializer):
    """Bytes."""

    files = serializers.IntegerField(help_text="the version's own")
    backup = serializers.IntegerField()
    evaluations = serializers.IntegerField(help_text="the answers behind its evaluations")
    total = serializers.IntegerField()


class ConditionSpaceSerializer(SpaceSerializer):
    condition = serializers.CharField()
    versions = serializers.IntegerField()


class VersionSpaceSerializer(SpaceSerializer):
    version = serializers.IntegerField(help_text="id")
    condition = serializers.CharField()
    number = serializers.IntegerField()
    state = serializers.ChoiceField(choices=ModelVersion.State.values)
    obstacles = serializers.ListField(
        child=serializers.CharField(), help_text="why it cannot be deleted, in words; empty for one that can"
    )


class ProposalSerializer(serializers.Serializer):
    """Something that nothing refers to. Nobody but people carries it out."""

    version = serializers.IntegerField(help_text="id")
    condition = serializers.CharField()
    number = serializers.IntegerField()
    step = serializers.ChoiceField(choices=space.Step.values, help_text="archive comes first, delete after that")
    why = serializers.CharField()
    frees = serializers.IntegerField(help_text="bytes, as soon as it is deleted")


class ModelStorageSerializer(serializers.Serializer):
    disk_free = serializers.IntegerField(help_text="bytes")
    total = SpaceSerializer()
    conditions = ConditionSpaceSerializer(many=True)
    versions = VersionSpaceSerializer(many=True, help_text=f"the {MOST} largest")
    proposals = ProposalSerializer(many=True)


class StorageQuerySerializer(serializers.Serializer):
    condition = serializers.SlugField(required=False, default="", help_text="only versions of this one")
    days = serializers.IntegerField(
        required=False,
        default=space.DAYS,
        min_value=0,
        max_value=space.MAX_DAYS,
        help_text="from which age on versions are proposed",
    )


class DeleteSerializer(serializers.Serializer):
    reason = serializers.CharField(max_length=LONGEST_REASON, help_text="kept for good")


class StorageActions(GenericViewSet):
    """The actions that concern the space of versions."""

    storage_permissions = {"storage": "registry.view_modelversion", "destroy": "registry.delete_modelversion"}

    @extend_schema(parameters=[StorageQuerySerializer], responses=ModelStorageSerializer)
    @action(detail=False, pagination_class=None, filter_backends=[])
    def storage(self, request: Request) -> Response:
        """The space of each condition and version, what could go and why, and what cannot."""
        asked = StorageQuerySerializer(data=request.query_params)
        asked.is_valid(raise_exception=True)
        versions = ModelVersion.objects.visible_to(request.user)
        if asked.validated_data["condition"]:
            versions = versions.filter(condition__slug=asked.validated_data["condition"])
        spaces = space.of(versions)
        proposals = space.proposals(versions, asked.validated_data["days"], spaces=spaces)
        return Response(
            {
                "disk_free": resources().disk_free,
                "total": sum(spaces.values(), space.Space()).to_json(),
                "conditions": [total.to_json() for total in space.totals(versions, spaces)],
                "versions": _largest(spaces),
                "proposals": [one.to_json() for one in proposals],
            }
        )

    @extend_schema(
        parameters=[OpenApiParameter("reason", str, required=True, description="kept for good")], responses={204: None}
    )
    def destroy(self, request: Request, pk: Any = None) -> Response:
        """Delete an archived version that nothing refers to. The reason stands in the address or in the body.

        409 with every reason why it has to stay. Its number is never given again.
        """
        version = self.get_object()
        asked = DeleteSerializer(data=request.query_params if request.query_params.get("reason") else request.data)
        asked.is_valid(raise_exception=True)
        try:
            retention.delete(version, by=request.user, reason=asked.validated_data["reason"])
        except DeletionError as error:
            raise Conflict(str(error)) from error
        return Response(status=status.HTTP_204_NO_CONTENT)


def _largest(spaces: dict[int, space.Space]) -> list[dict[str, Any]]:
    keys = sorted(spaces, key=lambda pk: (-spaces[pk].total, pk))[:MOST]
    chosen = ModelVersion.objects.filter(pk__in=keys)
    against = retention.obstacles(chosen)
    rows = {row.pk: row for row in chosen.select_related("condition").defer("history", "metrics")}
    return [
        {
            "version": pk,
            "condition": rows[pk].condition.slug,
            "number": rows[pk].number,
            "state": rows[pk].state,
            **spaces[pk].to_json(),
            "obstacles": against[pk],
        }
        for pk in keys
        if pk in rows and pk in against
    ]
