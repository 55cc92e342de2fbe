from django.contrib import admin

from xrayplatform.admin import ReadOnlyAdmin

from .models import EpochMetric, TrainingRun


class EpochMetricInline(admin.TabularInline):
    model = EpochMetric
    extra = 0
    can_delete = False
    fields = readonly_fields = ["epoch", *EpochMetric.QUANTITIES]

    def has_add_permission(self, request: object, obj: object = None) -> bool:
        return False


@admin.register(TrainingRun)
class TrainingRunAdmin(ReadOnlyAdmin):
    team_path = "preparation__dataset__condition__team"
    list_display = ["id", "architecture", "preparation", "preset", "state", "epoch", "epochs", "version", "created_by"]
    list_filter = ["state", "architecture", "preset"]
    list_select_related = ["preparation__dataset", "version__condition", "created_by"]
    inlines = [EpochMetricInline]


@admin.register(EpochMetric)
class EpochMetricAdmin(ReadOnlyAdmin):
    team_path = "run__preparation__dataset__condition__team"
    list_display = ["run", "epoch", "loss", "accuracy", "val_loss", "val_accuracy", "val_auc"]
    list_select_related = ["run__preparation__dataset"]
