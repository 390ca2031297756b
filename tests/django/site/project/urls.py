"""Where the site's pages are."""

from django.urls import path
from shop import views

urlpatterns = [path("session", views.session), path("sell/<str:name>", views.sell), path("fail", views.fail)]
