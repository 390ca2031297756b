"""The site's own tests, which Django's runner runs; in several processes each on a copy of the database."""

import json
import os
import threading
import urllib.request

from django.db import connection
from django.test import LiveServerTestCase, TestCase, TransactionTestCase

from .models import Item


def database() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT DATABASE()")
        return str(cursor.fetchone()[0])


class InTransactions(TestCase):
    """Tests that are rolled back."""

    def test_one(self) -> None:
        self.assertTrue(database().startswith("test_"))
        Item.objects.create(name="only")
        self.assertEqual(Item.objects.count(), 1)

    def test_two(self) -> None:
        self.assertEqual(Item.objects.count(), 0)


class Committed(TransactionTestCase):
    """Tests that commit, after which the tables are emptied."""

    def test_one(self) -> None:
        Item.objects.create(name="only")
        connection.close()
        self.assertEqual(Item.objects.count(), 1)

    def test_two(self) -> None:
        self.assertEqual(Item.objects.count(), 0)
        connection.close_pool()
        self.assertEqual(Item.objects.count(), 0)


class Served(LiveServerTestCase):
    """A server whose threads use the pool of the test database."""

    def get(self, page: str) -> dict[str, object]:
        with urllib.request.urlopen(f"{self.live_server_url}/{page}", timeout=30) as answer:
            return dict(json.load(answer))

    def test_pages_use_the_test_database(self) -> None:
        own = database()
        answers: list[dict[str, object]] = []
        threads = [threading.Thread(target=lambda: answers.append(self.get("session"))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        self.assertEqual([answer["database"] for answer in answers], [own] * 6)
        self.assertEqual([answer["left"] for answer in answers], [None] * 6)
        print(f"\nserved process={os.getpid()} database={own}")

    def test_pages_write(self) -> None:
        self.get("sell/hat")
        self.assertEqual([item.name for item in Item.objects.all()], ["hat"])


class Elsewhere(TestCase):
    """Something for another process to do."""

    def test_database(self) -> None:
        print(f"\nelsewhere process={os.getpid()} database={database()}")
