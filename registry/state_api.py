"""API: the state of a version, its tags, and what people noted about it."""

from collections.abc import Callable
from typing import Any

from drf_spectacular.utils import OpenApiExample, OpenApiParameter, extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from xrayplatform.http import Conflict

from .models import LabelError, ModelVersion, StateChange, StateError, VersionNote, VersionTag
from .models.label import LONGEST_NOTE, LONGEST_TAG
from .models.state_change import LONGEST_REASON

CHANGE_STATE = "registry.change_state_modelversion"
LABEL = "registry.label_modelversion"


class ReasonSerializer(serializers.Serializer):
    reason = serializers.CharField(max_length=LONGEST_REASON, help_text="kept in the history")


class StateChangeSerializer(serializers.ModelSerializer):
    from_state = serializers.ChoiceField(choices=ModelVersion.State.choices, read_only=True)
    to_state = serializers.ChoiceField(choices=ModelVersion.State.choices, read_only=True)
    by = serializers.CharField(source="by.username", read_only=True, allow_null=True, default=None)

    class Meta:
        model = StateChange
        fields = ["from_state", "to_state", "reason", "by", "at"]
        read_only_fields = fields


class VersionTagSerializer(serializers.ModelSerializer):
    name = serializers.CharField(
        max_length=LONGEST_TAG,
        help_text="letters and digits, spaces and . : / + - _ between them; kept in small letters",
    )
    by = serializers.CharField(source="by.username", read_only=True, allow_null=True, default=None)

    class Meta:
        model = VersionTag
        fields = ["name", "by", "at"]
        read_only_fields = ["by", "at"]


class VersionNoteSerializer(serializers.ModelSerializer):
    text = serializers.CharField(max_length=LONGEST_NOTE, help_text="no names of patients")
    by = serializers.CharField(source="by.username", read_only=True, allow_null=True, default=None)

    class Meta:
        model = VersionNote
        fields = ["id", "text", "by", "at"]
        read_only_fields = ["id", "by", "at"]


def _example(**value: str) -> list[OpenApiExample]:
    return [OpenApiExample("", value, request_only=True)]


class StateActions(GenericViewSet):
    """The actions of a version that concern its state, and how people find it again."""

    state_permissions = {
        "approve": CHANGE_STATE,
        "archive": CHANGE_STATE,
        "reopen": CHANGE_STATE,
        "states": "registry.view_statechange",
        "tag": LABEL,
        "untag": LABEL,
        "notes": "registry.view_versionnote",
        "add_note": LABEL,
    }

    @extend_schema(
        request=ReasonSerializer,
        responses=StateChangeSerializer,
        examples=_example(reason="Report and misread images looked through with the radiologists"),
    )
    @action(detail=True, methods=["post"])
    def approve(self, request: Request, pk: Any = None) -> Response:
        """Say that a candidate may go into service. 409 where the two-person rule or damaged files are in the way."""
        return self._change(ModelVersion.approve, request)

    @extend_schema(
        request=ReasonSerializer, responses=StateChangeSerializer, examples=_example(reason="Replaced by version 7")
    )
    @action(detail=True, methods=["post"])
    def archive(self, request: Request, pk: Any = None) -> Response:
        """Put the version away, so that it cannot go into service. 409 while it is in service, planned or in use."""
        return self._change(ModelVersion.archive, request)

    @extend_schema(
        request=ReasonSerializer,
        responses=StateChangeSerializer,
        examples=_example(reason="Poor on images of the new device"),
    )
    @action(detail=True, methods=["post"])
    def reopen(self, request: Request, pk: Any = None) -> Response:
        """Make an approved or archived version a candidate again."""
        return self._change(ModelVersion.reopen, request)

    @extend_schema(responses=StateChangeSerializer(many=True))
    @action(detail=True, pagination_class=None, filter_backends=[])
    def states(self, request: Request, pk: Any = None) -> Response:
        """Who approved, archived or reopened the version, when and why; newest first."""
        changes = self.get_object().state_changes.select_related("by")
        return Response(StateChangeSerializer(changes, many=True).data)

    @extend_schema(
        request=VersionTagSerializer, responses={201: VersionTagSerializer}, examples=_example(name="pilot study")
    )
    @action(detail=True, methods=["post"], url_path="tags")
    def tag(self, request: Request, pk: Any = None) -> Response:
        """Add a tag. One that is there already stays as it is."""
        version = self.get_object()
        asked = VersionTagSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        try:
            tag = version.tag(asked.validated_data["name"], by=request.user)
        except LabelError as error:
            raise ValidationError({"name": [str(error)]}) from error
        return Response(VersionTagSerializer(tag).data, status=status.HTTP_201_CREATED)

    @extend_schema(parameters=[OpenApiParameter("name", str, OpenApiParameter.PATH)], responses={204: None})
    @action(detail=True, methods=["delete"], url_path="tags/(?P<name>.+)")
    def untag(self, request: Request, pk: Any = None, name: str = "") -> Response:
        """Remove a tag. 404 where the version has none of this name."""
        version = self.get_object()
        try:
            version.untag(name, by=request.user)
        except LabelError as error:
            raise NotFound(str(error)) from error
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(responses=VersionNoteSerializer(many=True))
    @action(detail=True, pagination_class=None, filter_backends=[])
    def notes(self, request: Request, pk: Any = None) -> Response:
        """What people noted about the version, newest first."""
        return Response(VersionNoteSerializer(self.get_object().notes.select_related("by"), many=True).data)

    @extend_schema(
        request=VersionNoteSerializer,
        responses={201: VersionNoteSerializer},
        examples=_example(text="Misses small effusions; see the report"),
    )
    @notes.mapping.post
    def add_note(self, request: Request, pk: Any = None) -> Response:
        """Add a note. It cannot be changed afterwards."""
        version = self.get_object()
        asked = VersionNoteSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        try:
            note = version.add_note(asked.validated_data["text"], by=request.user)
        except LabelError as error:
            raise ValidationError({"text": [str(error)]}) from error
        return Response(VersionNoteSerializer(note).data, status=status.HTTP_201_CREATED)

    def _change(self, change: Callable[..., StateChange], request: Request) -> Response:
        version = self.get_object()
        asked = ReasonSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        try:
            done = change(version, by=request.user, reason=asked.validated_data["reason"])
        except StateError as error:
            raise Conflict(str(error)) from error
        return Response(StateChangeSerializer(done).data)
