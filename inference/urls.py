from django.urls import path

from . import evaluation_views, looking_views, several_views, views

app_name = "inference"

urlpatterns = [
    path("", views.prediction_create, name="prediction-create"),
    path("history/", views.prediction_list, name="prediction-list"),
    path("<uuid:pk>/", views.prediction_detail, name="prediction-detail"),
    path("evaluations/new/", evaluation_views.evaluation_run_create, name="evaluation-run-create"),
    path("evaluations/several/", several_views.evaluation_run_several, name="evaluation-run-several"),
    path("evaluations/<int:pk>/", evaluation_views.evaluation_run_detail, name="evaluation-run-detail"),
    path("evaluations/<int:pk>/cancel/", evaluation_views.evaluation_run_cancel, name="evaluation-run-cancel"),
    path("evaluated/<int:pk>/images/", looking_views.evaluation_images, name="evaluation-images"),
    path("evaluated/<int:pk>/images/<int:position>/flag/", looking_views.evaluation_flag, name="evaluation-flag"),
    path("evaluated/<int:pk>/map/<int:position>/", looking_views.evaluation_map, name="evaluation-map"),
]
