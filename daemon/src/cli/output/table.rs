//! Tables whose columns are as wide as what they hold.

use super::human::plain;
use super::style::{Tone, paint};

/// Spaces between columns.
const GAP: usize = 3;

/// One cell: its text and how it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub fn new(text: impl AsRef<str>, tone: Tone) -> Self {
        Self { text: plain(text.as_ref()), tone }
    }

    /// A status word in the tone of its meaning.
    pub fn status(text: impl AsRef<str>) -> Self {
        let tone = super::tone_of(text.as_ref());
        Self::new(text, tone)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::new(text, Tone::Plain)
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::new(text, Tone::Plain)
    }
}

impl From<&String> for Cell {
    fn from(text: &String) -> Self {
        Self::new(text, Tone::Plain)
    }
}

/// A header and rows of as many cells.
#[derive(Clone, Debug, Default)]
pub struct Table {
    header: Vec<Cell>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub fn new<H: AsRef<str>>(header: impl IntoIterator<Item = H>) -> Self {
        Self { header: header.into_iter().map(|name| Cell::new(name, Tone::Strong)).collect(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// One line for the header and for each row, each ending in a newline.
    pub fn render(&self, colour: bool) -> String {
        self.render_with(colour, &self.widths(&[]), true)
    }

    /// The width of each column, at least `least`.
    pub fn widths(&self, least: &[usize]) -> Vec<usize> {
        let mut widths = least.to_vec();
        for cells in std::iter::once(&self.header).chain(&self.rows) {
            widths.resize(widths.len().max(cells.len()), 0);
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = (*width).max(shown(cell).chars().count());
            }
        }
        widths
    }

    /// As `render`, with given column widths; without the header if `header` is false.
    pub fn render_with(&self, colour: bool, widths: &[usize], header: bool) -> String {
        let mut text = String::new();
        for cells in header.then_some(&self.header).into_iter().chain(&self.rows) {
            render_line(&mut text, cells, widths, colour);
        }
        text
    }
}

/// An empty cell would shift what `awk` counts.
fn shown(cell: &Cell) -> &str {
    if cell.text.is_empty() { "-" } else { &cell.text }
}

fn render_line(text: &mut String, cells: &[Cell], widths: &[usize], colour: bool) {
    let last = cells.len().saturating_sub(1);
    for (index, cell) in cells.iter().enumerate() {
        let content = shown(cell);
        text.push_str(&paint(colour, cell.tone, content));
        if index < last {
            let width = widths.get(index).copied().unwrap_or(0);
            let padding = width.saturating_sub(content.chars().count()) + GAP;
            text.extend(std::iter::repeat_n(' ', padding));
        }
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new(["NAME", "STATUS", "AGE"]);
        table.row(["web-1".into(), Cell::status("Running"), "5m".into()]);
        table.row(["a-much-longer-name".into(), Cell::status(""), "2d".into()]);
        table
    }

    #[test]
    fn columns_are_as_wide_as_their_content() {
        assert_eq!(
            sample().render(false),
            "NAME                 STATUS    AGE\n\
             web-1                Running   5m\n\
             a-much-longer-name   -         2d\n"
        );
    }

    #[test]
    fn colours_do_not_count_as_width() {
        let coloured = sample().render(true);
        assert!(coloured.contains("\x1b[32mRunning\x1b[0m   5m"), "{coloured}");
    }

    #[test]
    fn a_cell_cannot_steer_the_terminal() {
        let mut table = Table::new(["A"]);
        table.row(["x\x1b[2J\ny".into()]);
        assert_eq!(table.render(false), "A\nx\\u{1b}[2J\\ny\n");
    }
}
