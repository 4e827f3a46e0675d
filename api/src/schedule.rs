//! The times of the calendar that a CronJob names: five fields, or a word such as `@daily`.
//!
//! Defined by the Kubernetes API concepts, "CronJob, schedule syntax"; the words of complaints are those of the library
//! that upstream reads schedules with.

const FIELDS: [Field; 5] = [
    Field { min: 0, max: 59, names: &[] },
    Field { min: 0, max: 23, names: &[] },
    Field { min: 1, max: 31, names: &[] },
    Field {
        min: 1,
        max: 12,
        names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    },
    Field { min: 0, max: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] },
];
const WORDS: [&str; 7] = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
/// Longer schedules are refused unread.
const MAX_BYTES: usize = 1_024;

struct Field {
    min: u32,
    max: u32,
    /// What the numbers from `min` on may be called.
    names: &'static [&'static str],
}

/// Whether a text is a schedule.
///
/// # Errors
/// What is wrong with it.
pub fn check(text: &str) -> Result<(), String> {
    if text.len() > MAX_BYTES {
        return Err(format!("must be no more than {MAX_BYTES} bytes"));
    }
    if text.starts_with('@') {
        return match WORDS.contains(&text) || is_interval(text) {
            true => Ok(()),
            false => Err(format!("unrecognized descriptor: {text}")),
        };
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    let mut ranges = fields.iter().zip(&FIELDS).flat_map(|(text, field)| text.split(',').map(move |one| (one, field)));
    ranges.try_for_each(|(one, field)| check_range(one, field))
}

/// `@every 1h30m`.
fn is_interval(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("@every ") else { return false };
    let mut rest = rest;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |length| digits + length);
        if digits == 0 || !["ns", "us", "ms", "s", "m", "h"].contains(&&rest[digits..unit]) {
            return false;
        }
        rest = &rest[unit..];
    }
    text.len() > "@every ".len()
}

/// `*`, `5`, `1-5`, `*/15`, `mon-fri/2`.
fn check_range(text: &str, field: &Field) -> Result<(), String> {
    let (range, step) = match text.split_once('/') {
        Some((_, step)) if step.contains('/') => return Err(format!("too many slashes: {text}")),
        Some((range, step)) => (range, number(step)?),
        None => (text, 1),
    };
    if step == 0 {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    if matches!(range, "*" | "?") {
        return Ok(());
    }
    let (start, end) = match range.split_once('-') {
        Some((_, end)) if end.contains('-') => return Err(format!("too many hyphens: {text}")),
        Some((start, end)) => (value(start, field)?, value(end, field)?),
        None => {
            let start = value(range, field)?;
            (start, if text.contains('/') { field.max } else { start })
        }
    };
    if start < field.min {
        return Err(format!("beginning of range ({start}) below minimum ({}): {text}", field.min));
    }
    if end > field.max {
        return Err(format!("end of range ({end}) above maximum ({}): {text}", field.max));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
    }
    Ok(())
}

fn value(text: &str, field: &Field) -> Result<u32, String> {
    match field.names.iter().zip(field.min..).find(|(name, _)| name.eq_ignore_ascii_case(text)) {
        Some((_, number)) => Ok(number),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u32, String> {
    text.parse()
        .map_err(|_| format!("failed to parse int from {text}: strconv.Atoi: parsing \"{text}\": invalid syntax"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_and_what_is_none() {
        for good in ["* * * * *", "*/15 0-5,22 1 jan-mar MON", "@daily", "@every 1h30m", "0 0 ? * 1/2"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let table = [
            ("", "expected exactly 5 fields, found 0: []"),
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-2 * * * *", "beginning of range (5) beyond end of range (2): 5-2"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax"),
            ("@never", "unrecognized descriptor: @never"),
            ("@every ", "unrecognized descriptor: @every "),
        ];
        for (bad, words) in table {
            assert_eq!(check(bad), Err(words.to_owned()), "{bad}");
        }
    }
}
