from django.urls import path

from . import lineage_views, live_views, preset_views, queue_views, search_views, views

app_name = "training"

urlpatterns = [
    path("", views.run_list, name="run-list"),
    path("pretrained/", views.pretrained_list, name="pretrained-list"),
    path("new/", views.run_create, name="run-create"),
    path("new/preview/", views.strengths_preview, name="strengths-preview"),
    path("presets/", preset_views.preset_list, name="preset-list"),
    path("presets/new/", preset_views.preset_create, name="preset-create"),
    path("presets/<int:pk>/", preset_views.preset_edit, name="preset-edit"),
    path("presets/<int:pk>/delete/", preset_views.preset_delete, name="preset-delete"),
    path("preview/<int:pk>/", views.augmentation_preview, name="augmentation-preview"),
    path("runs/<int:pk>/", views.run_detail, name="run-detail"),
    path("runs/<int:pk>/status/", views.run_status, name="run-status"),
    path("runs/<int:pk>/curves/", views.run_curves, name="run-curves"),
    path("runs/<int:pk>/note/", live_views.run_note, name="run-note"),
    path("new/check/", live_views.run_preflight, name="run-preflight"),
    path("speed/", live_views.speed_test_start, name="speed-test-start"),
    path("speed/<int:pk>/", live_views.speed_test_detail, name="speed-test-detail"),
    path("runs/<int:pk>/cancel/", views.run_cancel, name="run-cancel"),
    path("runs/<int:pk>/resume/", views.run_resume, name="run-resume"),
    path("runs/<int:pk>/prioritise/", queue_views.run_prioritise, name="run-prioritise"),
    path("datasets/<int:pk>/lineage/", lineage_views.dataset_lineage, name="dataset-lineage"),
    path("queue/", queue_views.queue_detail, name="queue-detail"),
    path("queue/pause/", queue_views.queue_pause, name="queue-pause"),
    path("queue/open/", queue_views.queue_open, name="queue-open"),
    path("searches/", search_views.search_list, name="search-list"),
    path("searches/new/", search_views.search_create, name="search-create"),
    path("searches/<int:pk>/", search_views.search_detail, name="search-detail"),
    path("searches/<int:pk>/curves/", search_views.search_curves, name="search-curves"),
    path("searches/<int:pk>/cancel/", search_views.search_cancel, name="search-cancel"),
]
