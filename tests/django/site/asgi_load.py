"""Many requests at the same time through the ASGI handler; prints what they answered as JSON."""

import asyncio
import json
import os
import sys
from typing import Any

os.environ["DJANGO_SETTINGS_MODULE"] = "project.settings"

from asgiref.testing import ApplicationCommunicator
from django.core.asgi import get_asgi_application

application = get_asgi_application()


async def get(path: str) -> Any:
    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b"", "asgi": {}}
    communicator = ApplicationCommunicator(application, scope)
    await communicator.send_input({"type": "http.request"})
    start = await communicator.receive_output(30)
    body = await communicator.receive_output(30)
    await communicator.wait()
    return start["status"], json.loads(body["body"])


async def main(number: int) -> None:
    answers = [await asyncio.gather(*[get("/session") for _ in range(number)]) for _ in range(3)]
    print(json.dumps([answer for round_ in answers for answer in round_]))


asyncio.run(main(int(sys.argv[1])))
