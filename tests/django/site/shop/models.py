"""What the shop keeps."""

from django.db import models


class Item(models.Model):
    """Something that was sold."""

    name = models.CharField(max_length=50, unique=True)

    def __str__(self) -> str:
        return self.name
