"""A small site on one database."""
