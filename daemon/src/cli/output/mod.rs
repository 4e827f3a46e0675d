//! How results reach people and scripts: tables with colours on a terminal, stable plain text in a pipe, JSON or YAML.
//!
//! Invariant: nothing that came over the wire moves the cursor or colours the terminal: control characters in a
//! cell or a message are shown, not obeyed.

mod human;
mod progress;
mod style;
mod table;

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

pub use human::{age, age_of, bytes, cores, duration_seconds, parse_duration, parse_lifetime, plain};
pub use progress::{ProgressLine, terminal_size};
pub use style::{Tone, paint, tone_of};
pub use table::{Cell, Table};

/// How a listing is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Json,
    Yaml,
}

/// The way out of a command.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    /// Standard output is a terminal: lines may be redrawn.
    pub terminal: bool,
    pub colour: bool,
}

impl Out {
    /// Colours only on a terminal that wants them (<https://no-color.org>).
    pub fn detect() -> Self {
        let terminal = io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { terminal, colour: terminal && !refused }
    }

    /// # Errors
    /// If standard output is closed.
    pub fn line(&self, text: impl AsRef<str>) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_ref().as_bytes())?;
        out.write_all(b"\n")
    }

    /// # Errors
    /// If standard output is closed.
    pub fn table(&self, table: &Table) -> io::Result<()> {
        io::stdout().lock().write_all(table.render(self.colour).as_bytes())
    }

    /// Text in a colour, where colours are shown.
    pub fn paint(&self, tone: Tone, text: &str) -> String {
        paint(self.colour, tone, text)
    }

    /// Writes `value` as data, or has `table` draw it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn show<T: Serialize + ?Sized>(
        &self,
        format: Format,
        value: &T,
        table: impl FnOnce() -> Table,
    ) -> anyhow::Result<()> {
        match format {
            Format::Table => self.table(&table())?,
            Format::Json => self.line(json(value)?)?,
            Format::Yaml => io::stdout().lock().write_all(yaml(value)?.as_bytes())?,
        }
        Ok(())
    }
}

/// # Errors
/// If the value has no JSON form.
pub fn json<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)?)
}

/// # Errors
/// If the value has no YAML form.
pub fn yaml<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<String> {
    let mut text = serde_saphyr::to_string(&value)?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    #[test]
    fn yaml_reads_back_as_what_it_was() {
        let value = json!({
            "version": "1.10", "yes": "yes", "null": "null", "number": 7, "octal": "0755", "colon": "a: b", "empty": "",
            "lines": "first\nsecond\n", "list": ["- x", "#no comment", "~", "1e3", true, null], "map": {}, "none": [],
            "date": "2026-11-23T14:00:00Z", "quote": "it's \"so\"", "space": " padded ", "tab": "a\tb", "nested": [[1, 2], {"a": [{"b": "c"}]}],
        });
        let text = super::yaml(&value).unwrap();
        let back: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(back, value, "{text}");
        // As manifests are read: YAML 1.1, in which `yes` and `0755` would be something else.
        assert_eq!(flotilla_api::admit::documents(text.as_bytes()).unwrap(), [value], "{text}");
    }
}
