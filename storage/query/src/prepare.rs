//! What a client may ask about a statement before it runs, and about the tables there are.

use crate::engine::{CATALOG, Request, SCHEMA, Session, failed, physical};
use crate::{Engine, Parameters, QueryError, parse};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::DataFusionError;
use std::collections::HashMap;
use std::sync::Arc;

/// A statement that was planned and not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// The columns of its answer. With parameters they may yet change their types (`SELECT $1`); those of
    /// [`Engine::describe`] do not.
    pub columns: SchemaRef,
    /// Its parameters, `$1`, `$2`, ..., each with the type that it is compared with: an address beside an address
    /// column. Text where the place of a parameter tells no type.
    pub parameters: SchemaRef,
}

/// A table that can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableInfo {
    /// Its name in SQL.
    pub name: String,
    /// Its columns, computed ones included.
    pub columns: SchemaRef,
}

impl Engine {
    /// The columns that [`Engine::sql_with`] answers with, found out by planning.
    ///
    /// # Errors
    /// As [`Engine::sql_with`].
    pub async fn describe(&self, text: &str, parameters: Parameters) -> Result<SchemaRef, QueryError> {
        let request = Request::Sql(text.to_owned(), parameters);
        self.on_query_thread(async move |shared| {
            let session = Session::open(&shared).await?;
            Ok(physical(&session, &request, None).await?.schema())
        })
        .await
    }

    /// Plans a statement whose parameters have no values yet.
    ///
    /// # Errors
    /// As [`Engine::sql_with`].
    pub async fn prepare(&self, text: &str) -> Result<Prepared, QueryError> {
        let text = text.to_owned();
        self.on_query_thread(async move |shared| {
            let (statement, count) = parse::open_statement(&text)?;
            let session = Session::open(&shared).await?;
            // Most statements can be planned as they stand, and types of parameters come of it. What cannot, such as a
            // parameter of a function that takes several types, is planned with NULL for each; and what fails then
            // is wrong otherwise.
            let open = match count {
                0 => None,
                _ => session.plan(statement).await.ok(),
            };
            let request = Request::Sql(text, Parameters::nulls(count));
            let (columns, known) = match (physical(&session, &request, None).await, open) {
                (_, Some(plan)) => {
                    (Arc::new(plan.schema().as_arrow().clone()), plan.get_parameter_fields().map_err(|e| failed(&e))?)
                }
                (Ok(plan), None) => (plan.schema(), HashMap::new()),
                (Err(error), None) => return Err(error),
            };
            Ok(Prepared { columns, parameters: parameters(count, &known) })
        })
        .await
    }

    /// All tables, by name.
    ///
    /// # Errors
    /// [`QueryError::Busy`], and what goes wrong in reading the data folder.
    pub async fn tables(&self) -> Result<Vec<TableInfo>, QueryError> {
        self.on_query_thread(async move |shared| {
            let session = Session::open(&shared).await?;
            tables(&session).await.map_err(|e| failed(&e))
        })
        .await
    }
}

/// `$1` to `$count`.
fn parameters(count: usize, known: &HashMap<String, Option<FieldRef>>) -> SchemaRef {
    let field = |number| {
        let name = format!("${number}");
        match known.get(&name) {
            Some(Some(field)) => Field::clone(field).with_name(name).with_nullable(true),
            _ => Field::new(name, DataType::Utf8, true),
        }
    };
    Arc::new(Schema::new((1..=count).map(field).collect::<Vec<_>>()))
}

async fn tables(session: &Session) -> Result<Vec<TableInfo>, DataFusionError> {
    let catalog = session.state.catalog_list().catalog(CATALOG);
    let Some(schema) = catalog.and_then(|catalog| catalog.schema(SCHEMA)) else { return Ok(Vec::new()) };
    let mut names = schema.table_names();
    names.sort();
    let mut tables = Vec::with_capacity(names.len());
    for name in names {
        if let Some(table) = schema.table(&name).await? {
            tables.push(TableInfo { name, columns: table.schema() });
        }
    }
    Ok(tables)
}
