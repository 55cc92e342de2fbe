from django.contrib import admin

from xrayplatform.admin import ReadOnlyAdmin

from .models import EpochMetric, RunNote, SavedPreset, Search, SpeedTest, TrainingQueue, TrainingRun


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


@admin.register(Search)
class SearchAdmin(ReadOnlyAdmin):
    team_path = "preparation__dataset__condition__team"
    list_display = ["id", "name", "mode", "preparation", "created_by", "created_at"]
    list_filter = ["mode"]
    search_fields = ["name"]
    list_select_related = ["preparation__dataset", "created_by"]


@admin.register(TrainingQueue)
class TrainingQueueAdmin(ReadOnlyAdmin):
    list_display = ["__str__", "reason", "changed_by", "changed_at"]


@admin.register(RunNote)
class RunNoteAdmin(ReadOnlyAdmin):
    team_path = "run__preparation__dataset__condition__team"
    list_display = ["run", "author", "at", "text"]
    list_select_related = ["run__preparation__dataset", "author"]


@admin.register(SavedPreset)
class SavedPresetAdmin(ReadOnlyAdmin):
    """Changed on its own page, where the options are checked."""

    team_path = "team"
    list_display = ["name", "description", "team", "created_by", "changed_at"]
    list_filter = ["team"]
    list_select_related = ["team", "created_by"]
    search_fields = ["name", "description"]


@admin.register(SpeedTest)
class SpeedTestAdmin(ReadOnlyAdmin):
    list_display = ["id", "architecture", "image_size", "batch_size", "fine_tuning", "state", "step_seconds"]
    list_filter = ["state", "architecture"]
