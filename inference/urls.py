from django.urls import path

from . import views

app_name = "inference"

urlpatterns = [
    path("", views.prediction_create, name="prediction-create"),
    path("history/", views.prediction_list, name="prediction-list"),
    path("<uuid:pk>/", views.prediction_detail, name="prediction-detail"),
]
