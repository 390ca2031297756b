"""Settings of the site; the environment names the database."""

import json
import os

DATABASES = {"default": json.loads(os.environ["SITE_DATABASE"])}
SECRET_KEY = "site"
DEBUG = False
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["shop"]
ROOT_URLCONF = "project.urls"
STATIC_URL = "static/"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
