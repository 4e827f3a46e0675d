//! Functions of texts: the strings and regex libraries.

use regex::{Regex, RegexBuilder};

use super::super::eval::{Budget, Error, error, no_overload};
use super::super::text;
use super::super::value::Val;
use super::{Evaluated, size};

/// What a compiled pattern may take.
const MAX_PATTERN_MEMORY_BYTES: usize = 256 * 1024;
/// What compiling a pattern costs: far more than matching one, for those that take all of the memory.
const COMPILE_COST: u64 = 5_000;

pub(super) fn of_text<'a>(
    name: &str,
    this: &str,
    target: &Val<'a>,
    arguments: &[Val<'a>],
    budget: &mut Budget,
) -> Evaluated<'a> {
    budget.pay(1 + this.len() as u64 / 10)?;
    let texts: Vec<Option<&str>> = arguments.iter().map(Val::as_text).collect();
    let numbers: Vec<Option<i64>> = arguments
        .iter()
        .map(|value| match value {
            Val::Int(number) => Some(*number),
            _ => None,
        })
        .collect();
    match (name, texts.as_slice(), numbers.as_slice()) {
        ("size", [], _) => size(target, budget),
        ("startsWith", [Some(other)], _) => Ok(Val::Bool(this.starts_with(other))),
        ("endsWith", [Some(other)], _) => Ok(Val::Bool(this.ends_with(other))),
        ("contains", [Some(other)], _) => Ok(Val::Bool(this.contains(other))),
        ("matches", [Some(pattern)], _) => Ok(Val::Bool(compiled(pattern, this, budget)?.is_match(this))),
        ("find", [Some(pattern)], _) => {
            Ok(Val::text(compiled(pattern, this, budget)?.find(this).map_or("", |found| found.as_str())))
        }
        ("findAll", [Some(pattern)], _) => find_all(pattern, this, -1, budget),
        ("findAll", [Some(pattern), _], [_, Some(limit)]) => find_all(pattern, this, *limit, budget),
        ("lowerAscii", [], _) => made(this.to_ascii_lowercase(), budget),
        ("upperAscii", [], _) => made(this.to_ascii_uppercase(), budget),
        ("trim", [], _) => made(this.trim().to_owned(), budget),
        ("reverse", [], _) => made(this.chars().rev().collect(), budget),
        ("charAt", [_], [Some(index)]) => match usize::try_from(*index).ok().filter(|at| *at <= this.chars().count()) {
            Some(at) => Ok(Val::text(this.chars().nth(at).map(String::from).unwrap_or_default())),
            None => error(format!("index out of range: {index}")),
        },
        ("indexOf" | "lastIndexOf", [Some(other)], _) => {
            budget.pay(this.len() as u64 / 10)?;
            let found = if name == "indexOf" { this.find(other) } else { this.rfind(other) };
            Ok(Val::Int(found.map_or(-1, |at| this[..at].chars().count() as i64)))
        }
        ("indexOf", [Some(other), _], [_, Some(from)]) => {
            let Some((at, _)) = usize::try_from(*from).ok().and_then(|from| this.char_indices().nth(from)) else {
                return error(format!("index out of range: {from}"));
            };
            Ok(Val::Int(this[at..].find(other).map_or(-1, |found| this[..at + found].chars().count() as i64)))
        }
        ("replace", [Some(old), Some(new)], _) => replace(this, old, new, -1, budget),
        ("replace", [Some(old), Some(new), _], [_, _, Some(limit)]) => replace(this, old, new, *limit, budget),
        ("split", [Some(separator)], _) => split(this, separator, -1, budget),
        ("split", [Some(separator), _], [_, Some(limit)]) => split(this, separator, *limit, budget),
        ("substring", [_], [Some(from)]) => substring(this, *from, this.chars().count() as i64, budget),
        ("substring", [_, _], [Some(from), Some(to)]) => substring(this, *from, *to, budget),
        ("format", [None], _) => format(this, &arguments[0], budget),
        _ => no_overload(),
    }
}

fn made<'a>(text: String, budget: &mut Budget) -> Evaluated<'a> {
    budget.pay(text.len() as u64)?;
    Ok(Val::text(text))
}

fn compiled(pattern: &str, over: &str, budget: &mut Budget) -> Result<Regex, Error> {
    // Matching is linear in the text.
    budget.pay(1 + (pattern.len() as u64) * (1 + over.len() as u64 / 16))?;
    budget.pattern(pattern, COMPILE_COST, || {
        let built = RegexBuilder::new(pattern)
            .size_limit(MAX_PATTERN_MEMORY_BYTES)
            .dfa_size_limit(MAX_PATTERN_MEMORY_BYTES)
            .nest_limit(50)
            .build();
        built.map_err(|_| Error::Other(format!("invalid regular expression: {pattern:?}")))
    })
}

fn find_all<'a>(pattern: &str, this: &str, limit: i64, budget: &mut Budget) -> Evaluated<'a> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let compiled = compiled(pattern, this, budget)?;
    let mut found = Vec::new();
    for one in compiled.find_iter(this).take(limit) {
        budget.pay(1 + one.len() as u64)?;
        found.push(Val::text(one.as_str()));
    }
    Ok(Val::list(found))
}

fn replace<'a>(this: &str, old: &str, new: &str, limit: i64, budget: &mut Budget) -> Evaluated<'a> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let count = this.matches(old).take(limit).count() as u64;
    budget.pay(this.len() as u64 + count.saturating_mul(new.len() as u64))?;
    Ok(Val::text(this.replacen(old, new, limit)))
}

fn split<'a>(this: &str, separator: &str, limit: i64, budget: &mut Budget) -> Evaluated<'a> {
    budget.pay(2 * this.len() as u64)?;
    let parts: Vec<Val<'a>> = match (separator, limit) {
        (_, 0) => Vec::new(),
        ("", limit) => {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            this.chars().take(limit).map(|c| Val::text(c.to_string())).collect()
        }
        (separator, limit) if limit > 0 => this.splitn(limit as usize, separator).map(Val::text).collect(),
        (separator, _) => this.split(separator).map(Val::text).collect(),
    };
    Ok(Val::list(parts))
}

fn substring<'a>(this: &str, from: i64, to: i64, budget: &mut Budget) -> Evaluated<'a> {
    let length = this.chars().count() as i64;
    if from < 0 || from > length {
        return error(format!("index out of range: {from}"));
    }
    if to < 0 || to > length {
        return error(format!("index out of range: {to}"));
    }
    if from > to {
        return error(format!("invalid substring range. start: {from}, end: {to}"));
    }
    made(this.chars().skip(from as usize).take((to - from) as usize).collect(), budget)
}

/// `'%s is %d'.format([…])`
fn format<'a>(template: &str, arguments: &Val<'a>, budget: &mut Budget) -> Evaluated<'a> {
    if !arguments.is_list() {
        return no_overload();
    }
    let mut values = arguments.items().into_iter();
    let mut out = String::new();
    let mut rest = template;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let end = rest
            .find(|c: char| c.is_ascii_alphabetic())
            .ok_or_else(|| Error::Other("could not parse formatting clause".into()))?;
        let (precision, verb) = (&rest[..end], rest.as_bytes()[end]);
        rest = &rest[end + 1..];
        let Some(value) = values.next() else { return error("index out of range: not enough arguments to format") };
        let precision: Option<usize> =
            precision.strip_prefix('.').and_then(|digits| digits.parse().ok()).filter(|n| *n <= 100);
        let words = formatted(verb, precision, &value).ok_or_else(|| {
            Error::Other(format!("error during formatting: unrecognized formatting clause \"{}\"", char::from(verb)))
        })?;
        budget.pay(words.len() as u64)?;
        out.push_str(&words);
    }
    out.push_str(rest);
    made(out, budget)
}

fn formatted(verb: u8, precision: Option<usize>, value: &Val<'_>) -> Option<String> {
    Some(match (verb, value) {
        (b's', Val::Null) => "null".to_owned(),
        (b's', value) => match text::words(value) {
            Some(words) => words,
            None => value.to_json().to_string(),
        },
        (b'd', Val::Int(value)) => value.to_string(),
        (b'd', Val::UInt(value)) => value.to_string(),
        (b'd', Val::Double(value)) if value.fract() == 0.0 => value.to_string(),
        (b'f', Val::Double(value)) => format!("{value:.*}", precision.unwrap_or(6)),
        (b'f', Val::Int(value)) => format!("{:.*}", precision.unwrap_or(6), *value as f64),
        (b'e', Val::Double(value)) => format!("{value:.*e}", precision.unwrap_or(6)),
        (b'b', Val::Int(value)) => format!("{}{:b}", if *value < 0 { "-" } else { "" }, value.unsigned_abs()),
        (b'b', Val::Bool(value)) => u8::from(*value).to_string(),
        (b'o', Val::Int(value)) => format!("{}{:o}", if *value < 0 { "-" } else { "" }, value.unsigned_abs()),
        (b'x', Val::Int(value)) => format!("{}{:x}", if *value < 0 { "-" } else { "" }, value.unsigned_abs()),
        (b'X', Val::Int(value)) => format!("{}{:X}", if *value < 0 { "-" } else { "" }, value.unsigned_abs()),
        _ => return None,
    })
}
