//! Work that takes a while, told as it goes: one line that is redrawn on a terminal, a line a change in a pipe.

use std::io::{self, Write};

use super::human::plain;

const ERASE_LINE: &str = "\r\x1b[K";

/// The width of a line when the terminal does not tell.
const USUAL_COLUMNS: u16 = 80;

/// The line that tells how far something is.
#[derive(Debug)]
pub struct ProgressLine {
    terminal: bool,
    shown: String,
}

impl ProgressLine {
    pub fn new(terminal: bool) -> Self {
        Self { terminal, shown: String::new() }
    }

    /// Shows `text` if it differs from what is shown.
    ///
    /// # Errors
    /// If standard output is closed.
    pub fn show(&mut self, text: &str) -> io::Result<()> {
        let text = plain(text);
        if text == self.shown {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        if self.terminal {
            let columns = terminal_size().map_or(USUAL_COLUMNS, |(columns, _)| columns);
            write!(out, "{ERASE_LINE}{}", fit(&text, usize::from(columns).saturating_sub(1)))?;
            out.flush()?;
        } else {
            writeln!(out, "{text}")?;
        }
        self.shown = text;
        Ok(())
    }

    /// Leaves `text` as the last word on a line of its own.
    ///
    /// # Errors
    /// If standard output is closed.
    pub fn finish(mut self, text: &str) -> io::Result<()> {
        let text = plain(text);
        let mut out = io::stdout().lock();
        if self.terminal {
            writeln!(out, "{ERASE_LINE}{text}")?;
        } else if text != self.shown {
            writeln!(out, "{text}")?;
        }
        self.shown.clear();
        Ok(())
    }
}

impl Drop for ProgressLine {
    /// What follows, an error for one, begins on a new line.
    fn drop(&mut self) {
        if self.terminal && !self.shown.is_empty() {
            // A closed terminal has no line to end.
            let _ = io::stdout().lock().write_all(b"\n");
        }
    }
}

/// At most `columns` characters; an ellipsis stands for what is cut.
fn fit(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    text.chars().take(columns.saturating_sub(1)).chain(['…']).collect()
}

/// Columns and rows of the terminal on standard output.
pub fn terminal_size() -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, which `size` is.
    let result = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_col > 0).then_some((size.ws_col, size.ws_row))
}

#[cfg(test)]
mod tests {
    use super::fit;

    #[test]
    fn a_long_line_is_cut_to_the_terminal() {
        assert_eq!(fit("web: 2/6 running", 20), "web: 2/6 running");
        assert_eq!(fit("web: 2/6 running", 8), "web: 2/…");
        assert_eq!(fit("web", 0), "…");
    }
}
