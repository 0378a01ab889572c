//! The table: pages of rows by id, and changes that never overwrite somebody else's.

use tokio_postgres::Client;

use super::PostgresArgs;
use super::connect::lost;
use crate::cli::exit::{Exit, Failure};

/// A row whose column has something like a ciphertext in it.
pub(super) struct Row {
    pub(super) id: String,
    pub(super) text: String,
    /// What its ciphertexts are bound to, base64, where there is a column for it.
    pub(super) associated_data: Option<String>,
    pub(super) context: Option<String>,
}

/// What is gone through. Names are quoted already; ids and values travel as text and are cast by
/// the server, so that any type will do.
pub(super) struct Table {
    name: String,
    column: String,
    column_type: String,
    id: String,
    id_type: String,
    /// The expressions that give a row's associated data and its context in base64, or null.
    associated_data: String,
    context: String,
    page: u16,
}

impl Table {
    /// Looks the table, its column and its id up in the catalogue.
    pub(super) async fn find(database: &Client, args: &PostgresArgs) -> Result<Self, Failure> {
        let table = database
            .query_opt(
                "SELECT c.oid, format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.oid = to_regclass($1::text) AND c.relkind IN ('r', 'p')",
                &[&args.table],
            )
            .await
            .map_err(|error| lost(&error))?
            .ok_or_else(|| usage(format!("the database has no table {}", args.table)))?;
        let (oid, name): (u32, String) = (table.get(0), table.get(1));
        let column = type_of(database, oid, &args.column).await?;
        let column_type = column
            .ok_or_else(|| usage(format!("the table {name} has no column {}", args.column)))?;
        let base = column_type.split('(').next().unwrap_or_default();
        if !matches!(
            base,
            "text" | "character varying" | "character" | "json" | "jsonb"
        ) {
            return Err(usage(format!(
                "the column {} is of type {column_type}; ciphertexts are text, so it must be text or JSON",
                args.column
            )));
        }
        let id = match &args.id {
            Some(id) => id.clone(),
            None => primary_key(database, oid, &name).await?,
        };
        let id_type = type_of(database, oid, &id)
            .await?
            .ok_or_else(|| usage(format!("the table {name} has no column {id}")))?;
        if args.id.is_some() && !is_unique(database, oid, &id).await? {
            return Err(usage(format!(
                "the column {id} has no unique index and may be null: rows could be passed over; name another with --id"
            )));
        }
        let bound = async |column: &Option<String>| match column {
            None => Ok("NULL::text".to_owned()),
            Some(column) => base64_of(database, oid, &name, column).await,
        };
        let associated_data = bound(&args.associated_data_column).await?;
        let context = bound(&args.context_column).await?;
        Ok(Self {
            associated_data,
            context,
            name,
            column: quote(&args.column),
            column_type,
            id: quote(&id),
            id_type,
            page: args.page,
        })
    }

    /// The id's column, quoted.
    pub(super) fn id_name(&self) -> &str {
        &self.id
    }

    /// Rows that may have something to be done.
    pub(super) async fn rows(&self, database: &Client) -> Result<u64, Failure> {
        let Self { name, column, .. } = self;
        let row = database
            .query_one(
                &format!(
                    "SELECT count(*) FROM {name} WHERE position('vault:v' IN {column}::text) > 0"
                ),
                &[],
            )
            .await
            .map_err(|error| lost(&error))?;
        Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or_default())
    }

    /// The next rows after an id, in its order.
    pub(super) async fn page(
        &self,
        database: &Client,
        after: Option<&str>,
    ) -> Result<Vec<Row>, Failure> {
        let Self {
            name,
            column,
            id,
            id_type,
            associated_data,
            context,
            page,
            ..
        } = self;
        let rows = database
            .query(
                &format!(
                    // A bare name after ORDER BY would be that of the output column, which is text.
                    "SELECT t.{id}::text, t.{column}::text, {associated_data}, {context} FROM {name} t \
                     WHERE position('vault:v' IN t.{column}::text) > 0 AND ($1::text IS NULL OR t.{id} > ($1::text)::{id_type}) \
                     ORDER BY t.{id} LIMIT {page}"
                ),
                &[&after],
            )
            .await
            .map_err(|error| lost(&error))?;
        Ok(rows
            .iter()
            .map(|row| Row {
                id: row.get(0),
                text: row.get(1),
                associated_data: row.get(2),
                context: row.get(3),
            })
            .collect())
    }

    /// Writes changed texts in one transaction. A row that somebody else changed since it was read
    /// is left alone; how many, is returned.
    pub(super) async fn write(
        &self,
        database: &mut Client,
        changes: &[(&Row, String)],
    ) -> Result<u64, Failure> {
        let Self {
            name,
            column,
            column_type,
            id,
            id_type,
            associated_data,
            context,
            ..
        } = self;
        if changes.is_empty() {
            return Ok(0);
        }
        let transaction = database.transaction().await.map_err(|error| lost(&error))?;
        let update = transaction
            .prepare(&format!(
                "UPDATE {name} t SET {column} = ($1::text)::{column_type} WHERE t.{id} = ($2::text)::{id_type} AND t.{column}::text = $3::text \
                 AND {associated_data} IS NOT DISTINCT FROM $4::text AND {context} IS NOT DISTINCT FROM $5::text"
            ))
            .await
            .map_err(|error| lost(&error))?;
        let mut changed_by_others = 0;
        for (row, new) in changes {
            let written = transaction
                .execute(
                    &update,
                    &[new, &row.id, &row.text, &row.associated_data, &row.context],
                )
                .await
                .map_err(|error| lost(&error))?;
            if written == 0 {
                changed_by_others += 1;
            }
        }
        transaction.commit().await.map_err(|error| lost(&error))?;
        Ok(changed_by_others)
    }
}

/// The expression that gives what stands in a column of the row in base64, or null.
async fn base64_of(
    database: &Client,
    table: u32,
    name: &str,
    column: &str,
) -> Result<String, Failure> {
    let kind = type_of(database, table, column)
        .await?
        .ok_or_else(|| usage(format!("the table {name} has no column {column}")))?;
    let column = quote(column);
    // PostgreSQL breaks base64 into lines, and Vault's decoder skips them.
    Ok(if kind == "bytea" {
        format!("encode(t.{column}, 'base64')")
    } else {
        format!("encode(convert_to(t.{column}::text, 'UTF8'), 'base64')")
    })
}

async fn type_of(database: &Client, table: u32, column: &str) -> Result<Option<String>, Failure> {
    let row = database
        .query_opt(
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = $1 AND attname = $2 AND attnum > 0 AND NOT attisdropped",
            &[&table, &column],
        )
        .await
        .map_err(|error| lost(&error))?;
    Ok(row.map(|row| row.get(0)))
}

async fn primary_key(database: &Client, table: u32, name: &str) -> Result<String, Failure> {
    let rows = database
        .query(
            "SELECT a.attname::text FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) \
             WHERE i.indrelid = $1 AND i.indisprimary",
            &[&table],
        )
        .await
        .map_err(|error| lost(&error))?;
    match rows.as_slice() {
        [one] => Ok(one.get(0)),
        _ => Err(usage(format!(
            "the table {name} has no primary key of one column: name a unique column with --id"
        ))),
    }
}

async fn is_unique(database: &Client, table: u32, column: &str) -> Result<bool, Failure> {
    let row = database
        .query_one(
            "SELECT EXISTS (SELECT 1 FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid \
             WHERE i.indrelid = $1 AND i.indisunique AND i.indpred IS NULL AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum \
             AND a.attname = $2 AND a.attnotnull)",
            &[&table, &column],
        )
        .await
        .map_err(|error| lost(&error))?;
    Ok(row.get(0))
}

/// A name as SQL takes it, whatever is in it.
fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn usage(problem: String) -> Failure {
    Failure::new(Exit::Usage, problem)
}
