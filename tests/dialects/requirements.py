"""What the databases can do beyond what SQLAlchemy's suite assumes of any.

Each requirement that is opened brings cases in; whether they pass plain, and are then held
against the sandbox, the plain run shows.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.testing import exclusions
from sqlalchemy.testing.requirements import SuiteRequirements

__all__ = ("Requirements",)

_BOTH = (
    "autocommit",
    "check_constraint_reflection",
    "computed_columns",
    "computed_columns_reflect_persisted",
    "computed_columns_stored",
    "create_table_as",
    "create_temp_table_as",
    "cross_schema_fk_reflection",
    "ctes",
    "ctes_with_update_delete",
    "date_historic",
    "datetime_historic",
    "expression_server_defaults",
    "foreign_key_constraint_name_reflection",
    "foreign_key_constraint_option_reflection_ondelete",
    "foreign_key_constraint_option_reflection_onupdate",
    "fk_constraint_option_reflection_ondelete_noaction",
    "fk_constraint_option_reflection_ondelete_restrict",
    "fk_constraint_option_reflection_onupdate_restrict",
    "has_temp_table",
    "index_ddl_if_exists",
    "indexes_with_expressions",
    "inline_check_constraint_reflection",
    "isolation_level",
    "json_type",
    "reflects_pk_names",
    "regexp_match",
    "savepoints",
    "server_defaults",
    "skip_autocommit_rollback",
    "supports_bitwise_and",
    "supports_bitwise_not",
    "supports_bitwise_or",
    "supports_bitwise_shift",
    "table_ddl_if_exists",
    "temp_table_names",
    "temporary_views",
    "tuple_in",
    "unicode_ddl",
    "update_from",
    "views",
    "window_functions",
    "window_range",
    "window_range_numeric",
)
_POSTGRESQL = (
    "array_type",
    "column_collation_reflection",
    "comment_reflection",
    "comment_reflection_full_unicode",
    "constraint_comment_reflection",
    "create_or_replace_view",
    "ctes_with_values",
    "datetime_interval",
    "datetime_timezone",
    "datetime_timezone_historic",
    "default_schema_name_switch",
    "delete_from",
    "fetch_expression",
    "fetch_first",
    "fetch_no_order_by",
    "fetch_ties",
    "float_or_double_precision_behaves_generically",
    "identity_columns",
    "identity_columns_standard",
    "index_reflects_included_columns",
    "infinity_floats",
    "materialized_views",
    "percent_schema_names",
    "precision_numerics_many_significant_digits",
    "precision_numerics_retains_significant_digits",
    "reflect_indexes_with_expressions",
    "reflect_table_options",
    "reflect_tables_no_columns",
    "regexp_replace",
    "repeated_column_foreign_keys",
    "schema_create_delete",
    "supports_bitwise_xor",
    "supports_distinct_on",
    "table_value_constructor",
    "temp_table_comment_reflection",
    "time_timezone",
    "timestamp_microseconds",
    "unique_constraints_reflect_as_index",
    "uuid_data_type",
    "window_range_non_numeric",
)
_SQLITE = (
    "dbapi_lastrowid",
    "legacy_unconditional_json_extract",
)
_NOT_SQLITE = (
    # Temporary tables and attached files are a connection's, and the suite would use several.
    "independent_connections",
    "parens_in_union_contained_select_w_limit_offset",
    "parens_in_union_contained_select_wo_limit_offset",
    "symbol_names_w_double_quote",
)


def _opened(name: str, only: str | None) -> property:
    def requirement(self: SuiteRequirements) -> Any:
        del self
        return exclusions.only_on(only) if only is not None else exclusions.open()

    requirement.__name__ = name
    return property(requirement)


class Requirements(SuiteRequirements):
    """The suite's own, widened."""

    @property
    def order_by_collation(self) -> Any:
        """Collations that the suite looks for by name."""
        return exclusions.only_on("postgresql")

    def get_order_by_collation(self, config: Any) -> str:
        """One that every PostgreSQL has."""
        del config
        return "POSIX"


for _names, _only in (
    (_BOTH, None),
    (_POSTGRESQL + _NOT_SQLITE, "postgresql"),
    (_SQLITE, "sqlite"),
):
    for _name in _names:
        setattr(Requirements, _name, _opened(_name, _only))
