from django.urls import path

from . import views

app_name = "training"

urlpatterns = [
    path("", views.run_list, name="run-list"),
    path("new/", views.run_create, name="run-create"),
    path("preview/<int:pk>/", views.augmentation_preview, name="augmentation-preview"),
    path("runs/<int:pk>/", views.run_detail, name="run-detail"),
    path("runs/<int:pk>/status/", views.run_status, name="run-status"),
    path("runs/<int:pk>/curves/", views.run_curves, name="run-curves"),
    path("runs/<int:pk>/cancel/", views.run_cancel, name="run-cancel"),
]
