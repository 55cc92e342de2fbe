"""API for auditors: which side of an experiment answered, and what a shadow said. Readers are not told (blinding)."""

from typing import Any

from django.db import transaction
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.generics import get_object_or_404
from rest_framework.request import Request
from rest_framework.response import Response

from xrayplatform import audit

from .models import Prediction


class ExperimentOfSerializer(serializers.ModelSerializer):
    shadows = serializers.PrimaryKeyRelatedField(many=True, read_only=True, help_text="what other versions said unseen")

    class Meta:
        model = Prediction
        fields = [
            "id", "version", "probabilities", "threshold", "decision", "experiment", "variant", "shown", "paired_with",
            "shadows", "created_at",
        ]  # fmt: skip
        read_only_fields = fields


class AuditActions:
    """What only auditors see of a prediction; part of its view set."""

    audit_permissions = {"experiment": "xrayplatform.view_auditentry"}

    @extend_schema(responses=ExperimentOfSerializer)
    @action(detail=True, pagination_class=None, filter_backends=[])
    def experiment(self: Any, request: Request, pk: str = "") -> Response:
        """The experiment that an answer belongs to, on which side; also of an answer that nobody was shown."""
        prediction = get_object_or_404(Prediction.objects.audited_by(request.user), pk=pk)
        with transaction.atomic():
            audit.record("prediction.view", prediction, actor=request.user, after={"experiment": True})
        return Response(ExperimentOfSerializer(prediction).data)
