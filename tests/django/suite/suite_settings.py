"""Settings for Django's own test suite; the environment says with which driver, and where the results go."""

import json
import os
from typing import Any

import django

WAY = os.environ["SUITE_WAY"]
SERVER = json.loads(os.environ["SUITE_SERVER"])

if WAY == "installed":
    import pooled_pymysql

    pooled_pymysql.install_as_MySQLdb()
elif WAY == "plain":
    import pymysql

    pymysql.version_info = (2, 2, 8, "final", 1)  # PyMySQL 1.1 names a mysqlclient that Django 6 finds too old
    pymysql.install_as_MySQLdb()


def database(name: str) -> dict[str, Any]:
    options: dict[str, Any] = {"ssl_disabled": True}
    if WAY == "engine":
        options["pool"] = True
    return {
        "ENGINE": "pooled_pymysql.django" if WAY == "engine" else "django.db.backends.mysql",
        "NAME": name,
        **{name.upper(): SERVER[name] for name in ("host", "port", "user", "password")},
        "OPTIONS": options,
        "TEST": {"CHARSET": "utf8mb4"},
    }


DATABASES = {"default": database(f"suite_{WAY}"), "other": database(f"suite_{WAY}_other")}
SECRET_KEY = "suite"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
if django.VERSION < (6,):
    DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
TEST_RUNNER = "suite_runner.Runner"
