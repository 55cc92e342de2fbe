"""API: what a version came from, and what came of it."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from .lineage import Kind, lineage_of


class StepSerializer(serializers.Serializer):
    """One thing on the way from images to answers."""

    kind = serializers.CharField(help_text=", ".join(Kind.values))
    label = serializers.CharField()
    id = serializers.IntegerField(allow_null=True)
    url = serializers.CharField(allow_blank=True, help_text="of its page, where it has one")
    digest = serializers.CharField(allow_blank=True, help_text="hex SHA-256 of its content")
    when = serializers.DateTimeField(allow_null=True)
    by = serializers.CharField(allow_blank=True)
    facts = serializers.DictField(child=serializers.CharField())
    count = serializers.IntegerField(help_text="how many rows it stands for; predictions are only counted")
    hidden = serializers.BooleanField(help_text="something is there that belongs to another team")


class MemberSerializer(serializers.Serializer):
    version = StepSerializer()
    through = serializers.CharField(allow_blank=True, help_text="how it belongs to the family, in words")
    upstream = StepSerializer(many=True, help_text="what it came from besides its parent, the earliest first")
    downstream = StepSerializer(many=True, help_text="what came of it besides its children")


class LineageSerializer(MemberSerializer):
    ancestors = MemberSerializer(many=True, help_text="versions whose weights it started from, the earliest first")
    descendants = MemberSerializer(many=True, help_text="versions that go back to it, without their own steps")


class LineageActions(GenericViewSet):
    """The action of a version that tells its lineage."""

    lineage_permissions = {"lineage": "registry.view_modelversion"}

    @extend_schema(responses=LineageSerializer)
    @action(detail=True, pagination_class=None, filter_backends=[])
    def lineage(self, request: Request, pk: Any = None) -> Response:
        """From the datasets that it learned from, also through its parents, to activations and answers."""
        return Response(lineage_of(self.get_object(), request.user).to_json())
