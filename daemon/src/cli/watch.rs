//! `get --watch`: the objects there are, then each change, without a gap between the two.

use flotilla_api::{Kind, Registry};
use serde_json::Value;
use std::sync::Arc;

use super::get::{Query, document};
use super::listing::{Listing, object, table};
use super::output::Table;
use super::session::{Session, now};
use super::{DONE, INTERRUPTED};
use crate::proto::{Column, Row, WatchEvent, WatchObjectsRequest};

/// Shows `listing`, and then what changes after it, until the user or the daemon ends it.
///
/// # Errors
/// If the daemon refuses or goes away.
pub async fn watch(session: &Session, query: &Query, listing: Listing) -> anyhow::Result<u8> {
    let mut screen = Screen::new(session, query, &listing);
    let revision = listing.revision;
    screen.begin(listing)?;
    let request = WatchObjectsRequest {
        kind: query.kind.clone(),
        namespace: query.namespace.clone(),
        label_selector: query.labels.clone(),
        field_selector: query.field_selector(),
        revision,
    };
    let mut stream = session.objects().watch(request).await?.into_inner();
    loop {
        let event = tokio::select! {
            event = stream.message() => event?,
            _ = tokio::signal::ctrl_c() => return Ok(INTERRUPTED),
        };
        match event {
            Some(event) if event.r#type == "BOOKMARK" => {}
            Some(event) => screen.event(&event)?,
            None => return Ok(DONE),
        }
    }
}

/// What was shown so far.
struct Screen<'a> {
    session: &'a Session,
    query: &'a Query,
    columns: Vec<Column>,
    /// What the list says and its items need not.
    api_version: String,
    kind_name: String,
    /// Which columns the rows of events have; the daemon sends rows only with lists.
    kind: Option<Arc<Kind>>,
    widths: Vec<usize>,
    header: bool,
}

impl<'a> Screen<'a> {
    fn new(session: &'a Session, query: &'a Query, listing: &Listing) -> Self {
        let kind = Registry::builtin().by_name(&query.kind).ok();
        // Rows of our own fit only the columns that the daemon knows too.
        let kind = kind.filter(|kind| {
            let ours = kind.columns();
            ours.len() == listing.columns.len()
                && ours.iter().zip(&listing.columns).all(|(ours, theirs)| ours.name == theirs.name)
        });
        Self {
            session,
            query,
            columns: listing.columns.clone(),
            api_version: listing.api_version.clone(),
            kind_name: listing.kind.clone(),
            kind,
            widths: Vec::new(),
            header: true,
        }
    }

    fn begin(&mut self, listing: Listing) -> anyhow::Result<()> {
        if self.query.is_table() {
            if !listing.items.is_empty() {
                self.rows(&table(self.query, &listing))?;
            }
            return Ok(());
        }
        for item in listing.items {
            self.session.say(document(self.query, item)?)?;
        }
        Ok(())
    }

    fn event(&mut self, event: &WatchEvent) -> anyhow::Result<()> {
        let item = object(&event.json, &self.api_version, &self.kind_name)?;
        if !self.query.is_table() {
            return Ok(self.session.say(document(self.query, item)?)?);
        }
        let listing = self.listing_of(item, &event.r#type);
        self.rows(&table(self.query, &listing))
    }

    /// A list of one, with a row made here.
    fn listing_of(&self, item: Value, event: &str) -> Listing {
        let (columns, cells) = match &self.kind {
            Some(kind) => (self.columns.clone(), kind.row(&item, now())),
            None => {
                let column = |name: &str| Column { name: name.into(), priority: 0 };
                let name = item.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
                (vec![column("Name"), column("Event")], vec![name.to_owned(), event.to_owned()])
            }
        };
        Listing { items: vec![item], columns, rows: vec![Row { cells }], ..Listing::default() }
    }

    /// Columns may only grow, so that the rows of a watch stay below each other.
    fn rows(&mut self, table: &Table) -> anyhow::Result<()> {
        self.widths = table.widths(&self.widths);
        let text = table.render_with(self.session.out.colour, &self.widths, self.header);
        self.header = false;
        Ok(self.session.say(text.trim_end_matches('\n'))?)
    }
}
