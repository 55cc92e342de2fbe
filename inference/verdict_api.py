"""API: what readers say about a prediction."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.parsers import FormParser, JSONParser, MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response

from xrayplatform.fields import StrictSerializer

from .models import Verdict, VerdictError
from .models.verdict import LONGEST_COMMENT


class VerdictSerializer(serializers.ModelSerializer):
    by = serializers.CharField(source="by.username", read_only=True)
    counts = serializers.SerializerMethodField(help_text="false: its reader has given another since then")

    class Meta:
        model = Verdict
        fields = ["id", "prediction", "agrees", "label", "comment", "by", "at", "counts"]
        read_only_fields = fields

    def get_counts(self, verdict: Verdict) -> bool:
        newest: dict[int, int] | None = self.context.get("newest")
        return newest is None or newest[verdict.by_id] == verdict.pk


class GiveVerdictSerializer(StrictSerializer):
    agrees = serializers.BooleanField(help_text="whether the reader sees what was decided")
    label = serializers.CharField(
        required=False, default="", allow_blank=True, max_length=200,
        help_text="the class that the reader sees; needed when they disagree, unless there is only one other",
    )  # fmt: skip
    comment = serializers.CharField(required=False, default="", allow_blank=True, max_length=LONGEST_COMMENT)


class VerdictActions:
    """The verdicts below a prediction; part of its view set."""

    verdict_permissions = {"verdicts": "inference.view_verdict", "give_verdict": "inference.add_verdict"}

    @extend_schema(responses={200: VerdictSerializer(many=True)})
    @action(
        detail=True, pagination_class=None, filter_backends=[], parser_classes=[JSONParser, FormParser, MultiPartParser]
    )
    def verdicts(self: Any, request: Request, pk: str = "") -> Response:
        """All verdicts, newest first. Of each reader the newest counts."""
        verdicts = list(self.get_object().verdicts.select_related("by"))
        newest: dict[int, int] = {}
        for verdict in verdicts:
            newest.setdefault(verdict.by_id, verdict.pk)
        return Response(VerdictSerializer(verdicts, many=True, context={"newest": newest}).data)

    @extend_schema(request=GiveVerdictSerializer, responses={201: VerdictSerializer})
    @verdicts.mapping.post
    def give_verdict(self: Any, request: Request, pk: str = "") -> Response:
        """Say what you see. The same said again is stored once."""
        prediction = self.get_object()
        wanted = GiveVerdictSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        try:
            verdict = Verdict.objects.give(prediction, request.user, **wanted.validated_data)
        except VerdictError as error:
            raise serializers.ValidationError({"label": [str(error)]}) from error
        return Response(VerdictSerializer(verdict).data, status=status.HTTP_201_CREATED)
