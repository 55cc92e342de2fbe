from django.contrib import admin

from xrayplatform.admin import ReadOnlyAdmin

from .models import Activation, Deployment, ModelVersion


@admin.register(ModelVersion)
class ModelVersionAdmin(ReadOnlyAdmin):
    team_path = "condition__team"
    list_display = ["id", "condition", "number", "architecture", "accuracy", "auc", "state", "created_by", "created_at"]
    list_filter = ["state", "architecture", "condition", "synthetic"]
    search_fields = ["condition__name", "architecture", "sha256", "dataset_name"]
    list_select_related = ["condition", "created_by"]


@admin.register(Deployment)
class DeploymentAdmin(ReadOnlyAdmin):
    team_path = "condition__team"
    list_display = ["condition", "active", "previous", "epoch"]
    list_select_related = ["condition", "active__condition", "previous__condition"]


@admin.register(Activation)
class ActivationAdmin(ReadOnlyAdmin):
    team_path = "condition__team"
    list_display = ["at", "condition", "from_version", "to_version", "by", "reason"]
    list_filter = ["condition"]
    list_select_related = ["condition", "from_version__condition", "to_version__condition", "by"]
