"""What MariaDB and PyMySQL can do, for the compliance suite; the same for both drivers that are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy.testing import exclusions
from sqlalchemy.testing.requirements import SuiteRequirements

# Which the suite leaves out unless a dialect says that it has them. A name that a version of SQLAlchemy does not know
# is left alone.
HAS = """
    autocommit check_constraint_reflection column_collation_reflection comment_reflection computed_columns
    computed_columns_reflect_persisted computed_columns_stored computed_columns_virtual create_or_replace_view
    create_table_as create_temp_table_as cross_schema_fk_reflection ctes ctes_on_dml ctes_with_values date_historic
    datetime_historic datetime_literals dbapi_lastrowid delete_from delete_returning expression_server_defaults
    fetch_first fetch_no_order_by fetch_ties foreign_key_constraint_name_reflection
    fk_constraint_option_reflection_ondelete_noaction fk_constraint_option_reflection_onupdate_noaction
    foreign_key_constraint_option_reflection_ondelete foreign_key_constraint_option_reflection_onupdate
    foreign_keys_reflect_as_index has_temp_table index_ddl_if_exists indexes_check_column_order insert_returning
    isolation_level json_type precision_numerics_many_significant_digits precision_numerics_retains_significant_digits
    reflect_table_options regexp_match regexp_replace savepoints schema_create_delete sequences server_defaults
    skip_autocommit_rollback supports_bitwise_and supports_bitwise_or supports_bitwise_shift supports_bitwise_xor
    table_ddl_if_exists temp_table_comment_reflection tuple_in unicode_ddl unique_constraints_reflect_as_index
    unique_index_reflect_as_unique_constraints update_from uuid_data_type views window_functions window_range
    window_range_numeric
"""

# Which the suite expects of every dialect.
LACKS = """
    date_implicit_bound datetime_implicit_bound datetime_microseconds precision_generic_float_type
    sql_expression_limit_offset time_implicit_bound time_microseconds time_microseconds_implicit_bound
    timestamp_microseconds timestamp_microseconds_implicit_bound unbounded_varchar
"""


class Requirements(SuiteRequirements):
    """The class that setup.cfg names."""


def _answer(make: Callable[[], Any]) -> property:
    return property(lambda self: make())  # a new one each time: the suite adds to them


for names, make in ((HAS, exclusions.open), (LACKS, exclusions.closed)):
    for name in names.split():
        if hasattr(SuiteRequirements, name):
            setattr(Requirements, name, _answer(make))
