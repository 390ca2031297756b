"""Pages that use the database."""

from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse

from .models import Item


def session(request: HttpRequest) -> JsonResponse:
    """Tell the id of the server session, held for a while, and what others have left in it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID(), @mine, SLEEP(0.1), DATABASE()")
        number, mine, _, database = cursor.fetchone()
        cursor.execute("SET @mine = 1")
    return JsonResponse({"id": number, "left": mine, "database": database})


def sell(request: HttpRequest, name: str) -> JsonResponse:
    """Write in a transaction."""
    with transaction.atomic():
        item = Item.objects.create(name=name)
        if Item.objects.filter(name=name).count() != 1:
            raise AssertionError("not alone")
    return JsonResponse({"id": item.pk})


def fail(request: HttpRequest) -> JsonResponse:
    """End in the middle of a transaction."""
    with transaction.atomic():
        Item.objects.create(name="failed")
        raise ValueError("on purpose")
