//! Answers about the server and its tables, as Flight SQL lays them out (`FlightSql.proto`).

use crate::status::ToStatus;
use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use arrow_flight::error::FlightError;
use arrow_flight::sql::metadata::{GetTablesBuilder, XdbcTypeInfoDataBuilder};
use arrow_flight::sql::metadata::{SqlInfoData, SqlInfoDataBuilder, XdbcTypeInfo, XdbcTypeInfoData};
use arrow_flight::sql::{
    Command, CommandGetTables, Nullable, Searchable, SqlInfo, SqlNullOrdering, SqlSupportedCaseSensitivity,
    SqlSupportedTransaction, XdbcDataType,
};
use query::{Addresses, CATALOG, SCHEMA, TEXT_BYTES_MAX, TableInfo, View};
use std::sync::Arc;
use tonic::Status;

/// What tables are called; there are no views, to a client.
const TABLE_TYPE: &str = "TABLE";

/// Answers a command about the catalog. `tables` matter to `GetTables` alone.
pub(super) fn answer(command: &Command, tables: &[TableInfo], addresses: Addresses) -> Result<RecordBatch, Status> {
    let answer = match command {
        Command::CommandGetCatalogs(get) => {
            let mut catalogs = (*get).into_builder();
            catalogs.append(CATALOG);
            catalogs.build()
        }
        Command::CommandGetDbSchemas(get) => {
            let mut schemas = get.clone().into_builder();
            schemas.append(CATALOG, SCHEMA);
            schemas.build()
        }
        Command::CommandGetTables(get) => list(get, tables, addresses),
        Command::CommandGetTableTypes(get) => {
            let mut types = (*get).into_builder();
            types.append(TABLE_TYPE);
            types.build()
        }
        Command::CommandGetSqlInfo(get) => server().and_then(|info| info.record_batch(get.info.iter().copied())),
        Command::CommandGetXdbcTypeInfo(get) => types().and_then(|types| types.record_batch(get.data_type)),
        Command::CommandGetPrimaryKeys(_) => Ok(RecordBatch::new_empty(Arc::new(primary_keys()))),
        Command::CommandGetExportedKeys(_)
        | Command::CommandGetImportedKeys(_)
        | Command::CommandGetCrossReference(_) => Ok(RecordBatch::new_empty(Arc::new(foreign_keys()))),
        Command::CommandStatementSubstraitPlan(_) => {
            return Err(Status::unimplemented("Substrait plans are not read: send SQL"));
        }
        Command::CommandStatementUpdate(_)
        | Command::CommandPreparedStatementUpdate(_)
        | Command::CommandStatementIngest(_) => return Err(super::only_reads()),
        other => {
            let name = other.type_url().rsplit('.').next().unwrap_or_default();
            return Err(Status::unimplemented(format!("the Flight SQL command {name} cannot be asked for")));
        }
    };
    answer.map_err(|error| match error {
        FlightError::Arrow(error) => error.to_status(),
        other => ArrowError::ExternalError(Box::new(other)).to_status(),
    })
}

fn list(get: &CommandGetTables, tables: &[TableInfo], addresses: Addresses) -> Result<RecordBatch, FlightError> {
    let mut list: GetTablesBuilder = get.clone().into_builder();
    for table in tables {
        let columns = View::new(&table.columns, addresses).schema();
        list.append(CATALOG, SCHEMA, &table.name, TABLE_TYPE, &columns)?;
    }
    list.build()
}

fn text(name: &str, nullable: bool) -> Field {
    Field::new(name, DataType::Utf8, nullable)
}

fn primary_keys() -> Schema {
    Schema::new(vec![
        text("catalog_name", true),
        text("db_schema_name", true),
        text("table_name", false),
        text("column_name", false),
        text("key_name", true),
        Field::new("key_sequence", DataType::Int32, false),
    ])
}

fn foreign_keys() -> Schema {
    Schema::new(vec![
        text("pk_catalog_name", true),
        text("pk_db_schema_name", true),
        text("pk_table_name", false),
        text("pk_column_name", false),
        text("fk_catalog_name", true),
        text("fk_db_schema_name", true),
        text("fk_table_name", false),
        text("fk_column_name", false),
        Field::new("key_sequence", DataType::Int32, false),
        text("fk_key_name", true),
        text("pk_key_name", true),
        Field::new("update_rule", DataType::UInt8, false),
        Field::new("delete_rule", DataType::UInt8, false),
    ])
}

/// What the server is and can do.
fn server() -> Result<SqlInfoData, FlightError> {
    let mut info = SqlInfoDataBuilder::new();
    info.append(SqlInfo::FlightSqlServerName, "Taphouse");
    info.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    info.append(SqlInfo::FlightSqlServerArrowVersion, arrow::ARROW_VERSION);
    info.append(SqlInfo::FlightSqlServerTransaction, SqlSupportedTransaction::None as i32);
    for (name, yes) in [
        (SqlInfo::FlightSqlServerReadOnly, true),
        (SqlInfo::FlightSqlServerSql, true),
        (SqlInfo::FlightSqlServerSubstrait, false),
        (SqlInfo::FlightSqlServerCancel, true),
        (SqlInfo::FlightSqlServerBulkIngestion, false),
        (SqlInfo::FlightSqlServerIngestTransactionsSupported, false),
        (SqlInfo::SqlDdlCatalog, false),
        (SqlInfo::SqlDdlSchema, false),
        (SqlInfo::SqlDdlTable, false),
        (SqlInfo::SqlAllTablesAreSelectable, true),
        (SqlInfo::SqlSupportsColumnAliasing, true),
        (SqlInfo::SqlNullPlusNullIsNull, true),
        (SqlInfo::SqlSupportsTableCorrelationNames, true),
        (SqlInfo::SqlSupportsDifferentTableCorrelationNames, false),
        (SqlInfo::SqlSupportsExpressionsInOrderBy, true),
        (SqlInfo::SqlSupportsOrderByUnrelated, true),
        (SqlInfo::SqlSupportsLikeEscapeClause, true),
        (SqlInfo::SqlSupportsNonNullableColumns, true),
        (SqlInfo::SqlSupportsIntegrityEnhancementFacility, false),
        (SqlInfo::SqlCatalogAtStart, true),
        (SqlInfo::SqlSelectForUpdateSupported, false),
        (SqlInfo::SqlStoredProceduresSupported, false),
        (SqlInfo::SqlCorrelatedSubqueriesSupported, true),
        (SqlInfo::SqlTransactionsSupported, false),
        (SqlInfo::SqlBatchUpdatesSupported, false),
        (SqlInfo::SqlSavepointsSupported, false),
        (SqlInfo::SqlNamedParametersSupported, false),
    ] {
        info.append(name, yes);
    }
    for (name, word) in [
        (SqlInfo::SqlIdentifierQuoteChar, "\""),
        (SqlInfo::SqlSearchStringEscape, "\\"),
        (SqlInfo::SqlExtraNameCharacters, ""),
        (SqlInfo::SqlCatalogTerm, "catalog"),
        (SqlInfo::SqlSchemaTerm, "schema"),
        (SqlInfo::SqlProcedureTerm, "procedure"),
    ] {
        info.append(name, word);
    }
    // Names without quotes are read in small letters; NULL sorts behind all values.
    info.append(SqlInfo::SqlIdentifierCase, SqlSupportedCaseSensitivity::SqlCaseSensitivityLowercase as i64);
    info.append(SqlInfo::SqlNullOrdering, SqlNullOrdering::SqlNullsSortedHigh as i64);
    info.append(SqlInfo::SqlMaxStatementLength, TEXT_BYTES_MAX as i64);
    info.build()
}

/// The types of the stored columns, as ODBC and JDBC number them.
fn types() -> Result<XdbcTypeInfoData, FlightError> {
    let mut types = XdbcTypeInfoDataBuilder::new();
    for (name, data_type, size, quote, unsigned) in [
        ("BOOLEAN", XdbcDataType::XdbcBit, 1, None, None),
        ("TINYINT UNSIGNED", XdbcDataType::XdbcTinyint, 3, None, Some(true)),
        ("SMALLINT UNSIGNED", XdbcDataType::XdbcSmallint, 5, None, Some(true)),
        ("INTEGER UNSIGNED", XdbcDataType::XdbcInteger, 10, None, Some(true)),
        ("BIGINT", XdbcDataType::XdbcBigint, 19, None, Some(false)),
        ("DOUBLE", XdbcDataType::XdbcDouble, 15, None, Some(false)),
        ("VARCHAR", XdbcDataType::XdbcVarchar, i32::MAX, Some("'"), None),
        ("VARBINARY", XdbcDataType::XdbcVarbinary, 16, Some("'"), None),
        ("TIMESTAMP", XdbcDataType::XdbcTimestamp, 26, Some("'"), None),
    ] {
        types.append(XdbcTypeInfo {
            type_name: name.to_owned(),
            data_type,
            column_size: Some(size),
            literal_prefix: quote.map(str::to_owned),
            literal_suffix: quote.map(str::to_owned),
            nullable: Nullable::NullabilityNullable,
            case_sensitive: name == "VARCHAR",
            searchable: Searchable::Full,
            unsigned_attribute: unsigned,
            local_type_name: Some(name.to_owned()),
            sql_data_type: data_type,
            num_prec_radix: unsigned.map(|_| 10),
            ..XdbcTypeInfo::default()
        });
    }
    types.build()
}
