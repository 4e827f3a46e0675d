//! The documentation says what the code says, where that can be compared: bounds, configuration keys, protocols, links.

use std::fs;
use std::path::{Path, PathBuf};

/// A bound, in its smallest unit: bytes, milliseconds, or a count.
#[derive(Debug, PartialEq, Eq)]
enum Bound {
    Bytes(u64),
    Millis(u64),
    Count(u64),
}

#[test]
fn every_listed_limit_is_the_codes() {
    let text = read("docs/limits.md");
    let rows: Vec<[&str; 2]> = text.lines().filter_map(row).collect();
    assert!(rows.len() > 100, "the tables cannot be read: {} rows", rows.len());
    let wrong: Vec<String> = rows.into_iter().filter_map(|[bound, place]| complaint(bound, place)).collect();
    assert!(wrong.is_empty(), "docs/limits.md:\n{}", wrong.join("\n"));
}

#[test]
fn every_configuration_key_is_documented() {
    let (source, text) = (read("daemon/src/config.rs"), read("docs/configuration.md"));
    for name in ["pub struct Layer {", "pub struct Registry {"] {
        let body = source.split_once(name).expect(name).1.split_once("\n}").expect("its end").0;
        let keys: Vec<&str> = body
            .lines()
            .filter_map(|line| line.trim().strip_prefix("pub "))
            .filter_map(|line| Some(line.split_once(':')?.0))
            .collect();
        assert!(keys.len() > 4, "{name}: its keys cannot be read");
        for key in keys {
            assert!(text.contains(&format!("`{key}`")), "docs/configuration.md does not name {key:?}");
        }
    }
}

#[test]
fn every_protocol_of_the_port_is_documented() {
    let text = read("docs/ports.md");
    for alpn in flotilla_net::Alpn::ALL {
        assert!(text.contains(&format!("| `{alpn}` |")), "docs/ports.md does not name {alpn}");
    }
}

#[test]
fn every_link_leads_to_a_file() {
    let mut pages = vec![root().join("README.md")];
    for folder in ["docs", "docs/adr"] {
        let entries = fs::read_dir(root().join(folder)).expect(folder);
        let paths = entries.map(|entry| entry.expect("an entry").path());
        pages.extend(paths.filter(|path| path.extension().is_some_and(|ending| ending == "md")));
    }
    for page in pages {
        let text = fs::read_to_string(&page).expect("a page");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            if file.is_empty() || link.contains("://") {
                continue;
            }
            let target = page.parent().expect("a folder").join(file);
            assert!(target.exists(), "{}: {link} leads nowhere", page.display());
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The bound and the place of a table's row.
fn row(line: &str) -> Option<[&str; 2]> {
    let mut cells = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ");
    let (_, bound, place) = (cells.next()?, cells.next()?, cells.next()?);
    place.starts_with('`').then_some([bound, place])
}

fn complaint(bound: &str, place: &str) -> Option<String> {
    let mut words = place.split('`');
    let (name, path) = (words.nth(1)?, words.nth(1)?);
    let said = parse(bound);
    let found = value_of(name, &read(path));
    (said.is_none() || said != found).then(|| format!("{name} in {path}: {bound} is said, {found:?} found"))
}

/// `64 KiB`, `5 s`, `4,096`.
fn parse(text: &str) -> Option<Bound> {
    let (number, unit) = text.split_once(' ').unwrap_or((text, ""));
    let number: u64 = number.replace(',', "").parse().ok()?;
    Some(match unit {
        "" => Bound::Count(number),
        "B" => Bound::Bytes(number),
        "KiB" => Bound::Bytes(number << 10),
        "MiB" => Bound::Bytes(number << 20),
        "GiB" => Bound::Bytes(number << 30),
        "ms" => Bound::Millis(number),
        "s" => Bound::Millis(number * 1_000),
        "min" => Bound::Millis(number * 60_000),
        "h" => Bound::Millis(number * 3_600_000),
        "days" => Bound::Millis(number * 86_400_000),
        _ => return None,
    })
}

/// The value of a constant, or the default of a field; the unit is in the name or the type.
fn value_of(name: &str, source: &str) -> Option<Bound> {
    expressions(name, source).find_map(|expression| {
        for (constructor, millis) in [("Duration::from_secs(", 1_000), ("Duration::from_millis(", 1)] {
            if let Some(inside) = expression.trim_start_matches("Signed").strip_prefix(constructor) {
                return Some(Bound::Millis(number(inside.trim_end_matches(')'), source)? * millis));
            }
        }
        let (value, name) = (number(expression, source)?, name.to_lowercase());
        Some(match () {
            () if name.ends_with("_ms") => Bound::Millis(value),
            () if name.ends_with("_seconds") => Bound::Millis(value * 1_000),
            () if name.contains("bytes") => Bound::Bytes(value),
            () => Bound::Count(value),
        })
    })
}

/// What stands behind `const NAME: TYPE =` or `name:`, wherever the name does.
fn expressions<'a>(name: &'a str, source: &'a str) -> impl Iterator<Item = &'a str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    source.match_indices(name).filter_map(move |(at, _)| {
        let rest = source[at + name.len()..].strip_prefix(": ")?;
        let line = rest.split(['\n', ';']).next()?;
        let whole = !source[..at].ends_with(is_word);
        let expression = match line.split_once(" = ") {
            Some((_, value)) => value,
            None => line.split([',', '}']).next()?,
        };
        whole.then(|| expression.trim())
    })
}

/// A product or a shift of numbers and of the source's own constants.
fn number(expression: &str, source: &str) -> Option<u64> {
    let mut shifted = expression.split("<<").map(|part| product(part, source));
    let first = shifted.next()??;
    shifted.try_fold(first, |value, by| Some(value << by?))
}

fn product(expression: &str, source: &str) -> Option<u64> {
    expression.split('*').map(|factor| factor_of(factor.trim(), source)).product()
}

fn factor_of(factor: &str, source: &str) -> Option<u64> {
    if factor.starts_with(|c: char| c.is_ascii_digit()) {
        return factor.replace('_', "").parse().ok();
    }
    let constant = source.split_once(&format!("const {factor}: "))?.1;
    number(constant.split_once(" = ")?.1.split_once(';')?.0, source)
}
