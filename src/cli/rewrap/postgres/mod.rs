//! A column of a PostgreSQL table.

mod connect;
mod table;

use std::path::PathBuf;

use clap::Args;
use tokio_postgres::Client;

use super::tally::Tally;
use super::{Binding, Common, Rewrapper, scan};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::Format;
use crate::cli::remote::{Remote, block_on};

use table::Table;

/// Looks at the table, so that rows which others changed meanwhile are looked at again.
const MAX_PASSES: usize = 5;

#[derive(Args, Debug)]
pub(in crate::cli) struct PostgresArgs {
    #[command(flatten)]
    common: Common,
    /// Where the database is, as for psql, without a password: 'host=db.example dbname=app
    /// user=app', or a postgresql:// URL
    #[arg(long, value_name = "CONNECTION")]
    database: String,
    /// A file with the password
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// The CA of the database server's certificate, PEM; needed for every host but this one unless
    /// the connection says sslmode=disable
    #[arg(long, value_name = "FILE")]
    database_cacert: Option<PathBuf>,
    /// The table, with its schema if that is not on the search path
    #[arg(long)]
    table: String,
    /// The column: text or JSON, with ciphertexts anywhere in it
    #[arg(long)]
    column: String,
    /// The column that the ciphertexts of its row are bound to, as their associated data: its text
    /// in UTF-8, or the bytes of a bytea; null is none
    #[arg(long, value_name = "COLUMN", conflicts_with = "associated_data")]
    associated_data_column: Option<String>,
    /// The column that holds each row's context, for a derived key; read as
    /// --associated-data-column is
    #[arg(long, value_name = "COLUMN", conflicts_with = "context")]
    context_column: Option<String>,
    /// A unique column to go by; the primary key if not given
    #[arg(long, value_name = "COLUMN")]
    id: Option<String>,
    /// Go on after the row with this id: an interrupted command says which
    #[arg(long, value_name = "ID", conflicts_with_all = ["retire", "count"])]
    after: Option<String>,
    /// Rows in one transaction
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    page: u16,
}

pub(in crate::cli) fn run(
    args: &PostgresArgs,
    remote: &Remote,
    format: Format,
) -> Result<(), Failure> {
    block_on(async {
        let rewrapper = Rewrapper::new(&args.common, remote).await?;
        let mut database = connect::connect(args).await?;
        let table = Table::find(&database, args).await?;
        if args.common.count {
            return rewrapper.tell(format, &count(&database, &table).await?, false);
        }
        let bar = format.bar(table.rows(&database).await?, "rewrapping");
        let mut work = TableRewrap {
            rewrapper: &rewrapper,
            table: &table,
            after: args.after.clone(),
        };
        let mut tally = Tally::default();
        for pass in 0..MAX_PASSES {
            let done = tokio::select! {
                done = work.pass(&mut database, &bar) => done,
                _ = tokio::signal::ctrl_c() => Err(Failure::new(Exit::Failed, "interrupted")),
            };
            let (seen, lost) = done.map_err(|failure| match &work.after {
                Some(after) => failure.next(format!(
                    "what is done is done; go on with --after '{after}', or run it again as it was"
                )),
                None => failure,
            })?;
            if pass == 0 {
                tally = seen;
            } else {
                tally.add_rewrapped(&seen);
            }
            if lost == 0 {
                break;
            }
            work.after = None;
        }
        bar.finish_and_clear();
        if args.common.retire {
            rewrapper.retire(&count(&database, &table).await?).await?;
        }
        rewrapper.tell(format, &tally, args.common.retire)
    })
}

async fn count(database: &Client, table: &Table) -> Result<Tally, Failure> {
    let mut tally = Tally::default();
    let mut after = None;
    loop {
        let rows = table.page(database, after.as_deref()).await?;
        let Some(last) = rows.last() else {
            return Ok(tally);
        };
        after = Some(last.id.clone());
        for row in &rows {
            for found in scan::find(row.text.as_bytes()) {
                tally.current(found.version);
            }
        }
    }
}

/// One look at the table after another.
struct TableRewrap<'a> {
    rewrapper: &'a Rewrapper<'a>,
    table: &'a Table,
    /// Rows up to this id are done.
    after: Option<String>,
}

impl TableRewrap<'_> {
    /// What was found, and how many rows others changed between the reading and the writing.
    async fn pass(
        &mut self,
        database: &mut Client,
        bar: &indicatif::ProgressBar,
    ) -> Result<(Tally, u64), Failure> {
        let mut tally = Tally::default();
        let mut lost = 0;
        loop {
            let rows = self.table.page(database, self.after.as_deref()).await?;
            let Some(last) = rows.last() else {
                return Ok((tally, lost));
            };
            let all = self.rewrapper.common.bound();
            let texts: Vec<_> = rows
                .iter()
                .map(|row| {
                    let bound = Binding {
                        associated_data: row.associated_data.as_deref().or(all.associated_data),
                        context: row.context.as_deref().or(all.context),
                    };
                    (row.text.as_bytes(), bound)
                })
                .collect();
            let place = |index: usize, _| {
                let id = rows.get(index).map(|row| row.id.as_str());
                format!(
                    "the row with {} {}",
                    self.table.id_name(),
                    id.unwrap_or_default()
                )
            };
            let new = self.rewrapper.texts(&texts, &mut tally, place).await?;
            let changes: Vec<_> = rows
                .iter()
                .zip(new)
                .filter(|(row, new)| row.text.as_bytes() != new)
                // Base64 in the place of base64: what was UTF-8 still is.
                .map(|(row, new)| (row, String::from_utf8_lossy(&new).into_owned()))
                .collect();
            lost += self.table.write(database, &changes).await?;
            self.after = Some(last.id.clone());
            bar.inc(rows.len() as u64);
        }
    }
}
