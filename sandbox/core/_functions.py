"""Names before a parenthesis that change nothing.

A function that is not here is taken to write. The built-in functions of PostgreSQL are those
its catalog (``pg_proc``, version 18) calls immutable or stable, which forbids them to modify,
without the internal ones; the volatile ones that are read-only all the same stand apart.
"""

from __future__ import annotations

__all__ = ("EFFECTS", "NOT_FUNCTIONS", "PURE_FUNCTIONS", "VOLATILE_READS", "words")


def words(text: str) -> frozenset[str]:
    """Key words written one after the other, as the set of their upper-case forms."""
    return frozenset(text.upper().split())


# Key words of expressions and clauses.
NOT_FUNCTIONS = words(
    """
    all and any array as asc between binary by case collate cross cube desc distinct else end
    escape except exists fetch filter first for force_not_null force_quote format from full glob
    group having ilike in inner intersect is isnull join lateral left like limit materialized
    minus natural not notnull null nulls offset on only operator or order outer over overlaps
    recursive regexp repeatable returning right rlike rollup row select sets similar some stdout
    symmetric table tablesample then to union using values when where window with within xor
    """
)

# Immutable and stable functions of PostgreSQL.
_POSTGRESQL = words(
    """
    abs acos acosd acosh age any_value array_agg array_append array_cat array_dims array_fill
    array_length array_lower array_ndims array_position array_positions array_prepend
    array_remove array_replace array_reverse array_sort array_to_json array_to_string
    array_to_tsvector array_upper arraycontained arraycontains arrayoverlap ascii asin asind
    asinh atan atan2 atan2d atand atanh avg bit bit_and bit_count bit_length bit_or bit_xor bool
    bool_and bool_or box bpchar bytea cardinality casefold cbrt ceil ceiling char char_length
    character_length chr cidr circle col_description concat concat_ws convert convert_from
    convert_to corr cos cosd cosh cot cotd count covar_pop covar_samp crc32 crc32c cume_dist
    current_database current_schema current_schemas current_setting current_user database_to_xml
    database_to_xml_and_xmlschema database_to_xmlschema date date_add date_bin
    date_cmp_timestamp date_cmp_timestamptz date_part date_subtract date_trunc datemultirange
    daterange decode degrees dense_rank div encode enum_first enum_last enum_range every exp
    extract factorial first_value float4 float8 floor format format_type gamma gcd
    generate_series generate_subscripts get_bit get_byte get_current_ts_config
    has_any_column_privilege has_column_privilege has_database_privilege
    has_foreign_data_wrapper_privilege has_function_privilege has_language_privilege
    has_largeobject_privilege has_parameter_privilege has_schema_privilege
    has_sequence_privilege has_server_privilege has_table_privilege has_tablespace_privilege
    has_type_privilege host hostmask icu_unicode_version inet_client_addr inet_client_port
    inet_merge inet_same_family inet_server_addr inet_server_port initcap int2 int4
    int4multirange int4range int8 int8multirange int8range interval is_normalized isempty
    isfinite json_agg json_agg_strict json_array_elements json_array_elements_text
    json_array_length json_build_array json_build_object json_each json_each_text
    json_extract_path json_extract_path_text json_object json_object_agg json_object_agg_strict
    json_object_agg_unique json_object_agg_unique_strict json_object_keys json_populate_record
    json_populate_recordset json_strip_nulls json_to_record json_to_recordset json_to_tsvector
    json_typeof jsonb_agg jsonb_agg_strict jsonb_array_elements jsonb_array_elements_text
    jsonb_array_length jsonb_build_array jsonb_build_object jsonb_concat jsonb_contained
    jsonb_contains jsonb_delete jsonb_each jsonb_each_text jsonb_exists jsonb_exists_all
    jsonb_exists_any jsonb_extract_path jsonb_extract_path_text jsonb_insert jsonb_object
    jsonb_object_agg jsonb_object_agg_strict jsonb_object_agg_unique
    jsonb_object_agg_unique_strict jsonb_object_keys jsonb_path_exists jsonb_path_exists_tz
    jsonb_path_match jsonb_path_match_tz jsonb_path_query jsonb_path_query_array
    jsonb_path_query_array_tz jsonb_path_query_first jsonb_path_query_first_tz
    jsonb_path_query_tz jsonb_populate_record jsonb_populate_record_valid
    jsonb_populate_recordset jsonb_pretty jsonb_set jsonb_set_lax jsonb_strip_nulls
    jsonb_to_record jsonb_to_recordset jsonb_to_tsvector jsonb_typeof justify_days justify_hours
    justify_interval lag last_value lcm lead left length lgamma ln log log10 lower lower_inf
    lpad ltrim macaddr macaddr8 make_date make_interval make_time make_timestamp
    make_timestamptz max md5 min min_scale mod mode money multirange name netmask network
    normalize now nth_value ntile num_nonnulls num_nulls numeric nummultirange numnode numrange
    obj_description octet_length oid overlaps overlay parse_ident percent_rank percentile_cont
    percentile_disc pg_available_extension_versions pg_available_extensions pg_backend_pid
    pg_basetype pg_client_encoding pg_collation_for pg_collation_is_visible
    pg_column_compression pg_column_is_updatable pg_column_size pg_conf_load_time pg_config
    pg_conversion_is_visible pg_current_snapshot pg_current_xact_id
    pg_current_xact_id_if_assigned pg_describe_object pg_extension_update_paths
    pg_function_is_visible pg_get_acl pg_get_catalog_foreign_keys pg_get_constraintdef
    pg_get_expr pg_get_function_arg_default pg_get_function_arguments
    pg_get_function_identity_arguments pg_get_function_result pg_get_function_sqlbody
    pg_get_functiondef pg_get_indexdef pg_get_keywords pg_get_object_address
    pg_get_partition_constraintdef pg_get_partkeydef pg_get_replica_identity_index
    pg_get_ruledef pg_get_serial_sequence pg_get_statisticsobjdef
    pg_get_statisticsobjdef_columns pg_get_statisticsobjdef_expressions pg_get_triggerdef
    pg_get_userbyid pg_get_viewdef pg_has_role pg_identify_object pg_identify_object_as_address
    pg_index_column_has_property pg_index_has_property pg_indexam_has_property
    pg_input_error_info pg_input_is_valid pg_is_other_temp_schema pg_listening_channels
    pg_my_temp_schema pg_opclass_is_visible pg_operator_is_visible pg_opfamily_is_visible
    pg_options_to_table pg_partition_root pg_postmaster_start_time pg_relation_filenode
    pg_relation_filepath pg_relation_is_publishable pg_relation_is_updatable
    pg_replication_origin_oid pg_sequence_parameters pg_settings_get_flags pg_show_all_settings
    pg_size_bytes pg_size_pretty pg_snapshot_xip pg_snapshot_xmax pg_snapshot_xmin
    pg_split_walfile_name pg_statistics_obj_is_visible pg_table_is_visible
    pg_tablespace_databases pg_tablespace_location pg_trigger_depth pg_ts_config_is_visible
    pg_ts_dict_is_visible pg_ts_parser_is_visible pg_ts_template_is_visible pg_type_is_visible
    pg_typeof pg_visible_in_snapshot pg_wal_lsn_diff pg_walfile_name pg_walfile_name_offset
    phraseto_tsquery pi plainto_tsquery point polygon position pow power querytree quote_ident
    quote_literal quote_nullable radians range_agg range_contains range_intersect_agg
    range_merge range_overlaps rank regclass regexp_count regexp_instr regexp_like regexp_match
    regexp_matches regexp_replace regexp_split_to_array regexp_split_to_table regexp_substr
    regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy
    repeat replace reverse right round row_number row_to_json rpad rtrim scale schema_to_xml
    schema_to_xml_and_xmlschema schema_to_xmlschema session_user set_bit set_byte setweight
    sha224 sha256 sha384 sha512 shobj_description sign sin sind sinh split_part sqrt
    statement_timestamp stddev stddev_pop stddev_samp string_agg string_to_array string_to_table
    strpos substr substring sum system_user table_to_xml table_to_xml_and_xmlschema
    table_to_xmlschema tan tand tanh text time timestamp timestamp_cmp_date
    timestamp_cmp_timestamptz timestamptz timestamptz_cmp_date timestamptz_cmp_timestamp timetz
    timezone to_ascii to_bin to_char to_date to_hex to_json to_jsonb to_number to_oct
    to_regclass to_regcollation to_regnamespace to_regoper to_regoperator to_regproc
    to_regprocedure to_regrole to_regtype to_regtypemod to_timestamp to_tsquery to_tsvector
    transaction_timestamp translate trim_array trim_scale trunc ts_delete ts_filter ts_headline
    ts_rank ts_rank_cd tsmultirange tsrange tstzmultirange tstzrange tsvector_to_array
    txid_current txid_current_if_assigned txid_current_snapshot txid_snapshot_xip
    txid_snapshot_xmax txid_snapshot_xmin txid_visible_in_snapshot unicode_assigned
    unicode_version unistr unnest upper upper_inf uuid_extract_timestamp uuid_extract_version
    var_pop var_samp varbit varchar variance version websearch_to_tsquery width_bucket xid xml
    xml_is_well_formed xml_is_well_formed_content xml_is_well_formed_document xmlagg xmlcomment
    xmlconcat2 xmlexists xmltext xmlvalidate
    """
)

# Volatile there because their answer changes, or session-local: they modify nothing.
VOLATILE_READS = words(
    """
    array_sample array_shuffle clock_timestamp current_query currval gen_random_uuid lastval
    pg_blocking_pids pg_collation_actual_version pg_current_wal_insert_lsn pg_current_wal_lsn
    pg_database_size pg_indexes_size pg_is_in_recovery pg_jit_available pg_lock_status
    pg_partition_ancestors pg_partition_tree pg_relation_size pg_safe_snapshot_blocking_pids
    pg_sequence_last_value pg_sleep pg_sleep_for pg_sleep_until pg_stat_get_activity
    pg_table_size pg_tablespace_size pg_total_relation_size pg_xact_status random random_normal
    timeofday txid_status uuidv4 uuidv7
    """
)

# They change no data. What they do change is an effect of the statement, undone by other means.
EFFECTS = words(
    """
    pg_advisory_lock pg_advisory_lock_shared pg_advisory_unlock pg_advisory_unlock_all
    pg_advisory_unlock_shared pg_advisory_xact_lock pg_advisory_xact_lock_shared
    pg_try_advisory_lock pg_try_advisory_lock_shared pg_try_advisory_xact_lock
    pg_try_advisory_xact_lock_shared set_config
    """
)

# Expressions of the SQL grammar that are written like functions.
_GRAMMAR = words(
    """
    cast coalesce current_catalog current_date current_role current_time current_timestamp
    greatest grouping json json_array json_arrayagg json_exists json_objectagg json_query
    json_scalar json_serialize json_table json_value least localtime localtimestamp nullif treat
    trim xmlconcat xmlelement xmlforest xmlparse xmlpi xmlroot xmlserialize xmltable
    """
)

# Types with a length or precision.
_TYPES = words(
    """
    bigint binary boolean character datetime dec decimal double float geography geometry halfvec
    int integer jsonb nchar precision real signed smallint unsigned uuid varying vector year
    """
)

# Functions of the common extensions.
_EXTENSIONS = words(
    """
    akeys avals cosine_distance crypt difference digest dmetaphone gen_salt hmac hstore
    inner_product l1_distance l2_distance levenshtein metaphone show_trgm similarity soundex
    strict_word_similarity unaccent uuid_generate_v1 uuid_generate_v4 uuid_generate_v5
    vector_dims vector_norm word_similarity
    """
)

# Functions of SQLite, with those that Django adds to it.
_SQLITE = words(
    """
    bm25 changes datetime django_date_extract django_date_trunc django_datetime_cast_date
    django_datetime_cast_time django_datetime_extract django_datetime_trunc
    django_format_dtdelta django_time_diff django_time_extract django_time_trunc
    django_timestamp_diff glob group_concat hex highlight ifnull iif instr json_error_position
    json_extract json_group_array json_group_object json_insert json_patch json_pretty
    json_quote json_remove json_replace json_set json_tree json_type json_valid jsonb
    jsonb_array jsonb_extract jsonb_group_array jsonb_group_object jsonb_patch jsonb_remove
    jsonb_replace julianday last_insert_rowid likelihood likely pragma_database_list
    pragma_foreign_key_list pragma_function_list pragma_index_info pragma_index_list
    pragma_index_xinfo pragma_table_info pragma_table_list pragma_table_xinfo printf quote
    randomblob rtreecheck snippet sqlite_compileoption_used sqlite_source_id sqlite_version
    strftime timediff total total_changes typeof unhex unicode unixepoch unlikely zeroblob
    """
)

# Functions of MySQL and MariaDB.
_MYSQL = words(
    """
    adddate addtime bin bin_to_uuid charset coercibility collation connection_id conv convert_tz
    curdate curtime database date_format date_sub datediff day dayname dayofmonth dayofweek
    dayofyear elt field find_in_set found_rows from_days from_unixtime hour if inet6_aton
    inet6_ntoa inet_aton inet_ntoa is_uuid isnull json_contains json_contains_path json_depth
    json_keys json_length json_merge_patch json_merge_preserve json_overlaps json_schema_valid
    json_search json_unquote last_day lcase locate makedate maketime member_of microsecond mid
    minute month monthname oct period_add period_diff quarter rand row_count schema sec_to_time
    second sha sha1 sha2 space st_astext st_geomfromtext std str_to_date strcmp subdate
    substring_index subtime sysdate time_format time_to_sec timestampadd timestampdiff to_days
    to_seconds ucase unix_timestamp utc_date utc_time utc_timestamp uuid_short uuid_to_bin week
    weekday weekofyear yearweek
    """
)

PURE_FUNCTIONS = (
    _POSTGRESQL | VOLATILE_READS | EFFECTS | _GRAMMAR | _TYPES | _EXTENSIONS | _SQLITE | _MYSQL
)
