"""A database backend for Django: `ENGINE: "pooled_pymysql.django"`.

Nothing is imported here: Django loads `base` when an alias asks for it.
"""
