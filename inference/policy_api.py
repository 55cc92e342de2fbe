"""API: the serving policy of a condition."""

from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from xrayplatform.conditions import Condition
from xrayplatform.fields import NumberField, OneOfField, StrictSerializer
from xrayplatform.http import Conflict

from .models import ServingPolicy
from .models.serving import Response as Reaction
from .policies import CHECK_FIELDS, EXPLANATIONS, LIMITS, PolicyConflict, PolicyError, change, values_of


def _value_fields() -> dict[str, serializers.Field]:
    checks = {
        name: OneOfField(choices=Reaction.values, required=False, help_text=EXPLANATIONS[check])
        for name, check in CHECK_FIELDS.items()
    }
    limits = {
        name: NumberField(required=False, help_text=f"{limit.label}: {limit.unit}, {limit.range}. {limit.text}")
        for name, limit in LIMITS.items()
    }
    return {**checks, **limits}


class PolicySerializer(StrictSerializer):
    condition = serializers.CharField(read_only=True)

    def get_fields(self) -> dict[str, serializers.Field]:
        return {**super().get_fields(), **_value_fields()}


class SeenSerializer(StrictSerializer):
    """What whoever decides looked at."""

    def get_fields(self) -> dict[str, serializers.Field]:
        return _value_fields()


class ChangePolicySerializer(StrictSerializer):
    seen = SeenSerializer(required=False, help_text="values as they were read; 409 when one of them is another now")

    def get_fields(self) -> dict[str, serializers.Field]:
        return {**_value_fields(), **super().get_fields()}


class PolicyViewSet(GenericViewSet):
    """What each check before the model does when it fails, and the limits of a week beyond which people are told."""

    queryset = Condition.objects.none()
    serializer_class = PolicySerializer
    lookup_field = "slug"
    lookup_url_kwarg = "condition"
    permissions = {
        "retrieve": "inference.view_servingpolicy",
        "partial_update": "inference.change_servingpolicy",
    }

    def get_queryset(self) -> QuerySet:
        return Condition.objects.visible_to(self.request.user)

    def retrieve(self, request: Request, condition: str = "") -> Response:
        return Response(document(ServingPolicy.objects.of(self.get_object())))

    @extend_schema(request=ChangePolicySerializer, responses=PolicySerializer)
    def partial_update(self, request: Request, condition: str = "") -> Response:
        """Change the fields that are sent; the others stay."""
        wanted = ChangePolicySerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        changes: dict[str, Any] = dict(wanted.validated_data)
        seen = changes.pop("seen", None)
        try:
            return Response(document(change(self.get_object(), changes, by=request.user, seen=seen)))
        except PolicyError as error:
            raise serializers.ValidationError({name: [text] for name, text in error.problems.items()}) from error
        except PolicyConflict as error:
            raise Conflict(str(error)) from error


def document(policy: ServingPolicy) -> dict[str, Any]:
    """The policy as the API and the command write it."""
    return {"condition": policy.condition.slug, **values_of(policy)}
