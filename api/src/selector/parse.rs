//! The text of label selectors, read as upstream reads it and refused in its words.

use std::collections::BTreeSet;
use std::iter::Peekable;
use std::vec::IntoIter;

use super::{Condition, Requirement, SelectorError};
use crate::field::{Errors, Path};
use crate::names;

/// What stands between keys and values.
const OPERATORS: &str = "in, notin, =, ==, !=, gt, lt";
const SYMBOLS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];

/// What a selector is made of; `in` and `notin` are words like others, except where an operator is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Symbol(&'a str),
    Word(&'a str),
    End,
}

impl<'a> Token<'a> {
    fn text(self) -> &'a str {
        match self {
            Self::Symbol(text) | Self::Word(text) => text,
            Self::End => "",
        }
    }

    fn begins_requirement(self) -> bool {
        matches!(self, Self::Word(_) | Self::Symbol("!"))
    }

    /// Upstream's complaint about something else than what should be here.
    fn unexpected(self, expected: &str) -> String {
        format!("found '{}', expected: {expected}", self.text())
    }
}

/// All requirements of a selector.
///
/// # Errors
/// If the text is not a selector, or a key or value in it cannot be one.
pub(super) fn requirements(text: &str) -> Result<Vec<Requirement>, SelectorError> {
    let mut parser = Parser { tokens: tokens(text).into_iter().peekable() };
    let mut requirements = Vec::new();
    match parser.peek() {
        Token::End => return Ok(requirements),
        token if token.begins_requirement() => {}
        token => return Err(SelectorError::Labels(token.unexpected("!, identifier, or 'end of string'"))),
    }
    loop {
        requirements.push(parser.requirement().map_err(SelectorError::Requirement)?);
        match parser.next() {
            Token::End => return Ok(requirements),
            Token::Symbol(",") if parser.peek().begins_requirement() => {}
            Token::Symbol(",") => {
                return Err(SelectorError::Labels(parser.peek().unexpected("identifier after ','")));
            }
            token => return Err(SelectorError::Labels(token.unexpected("',' or 'end of string'"))),
        }
    }
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let (mut tokens, mut rest) = (Vec::new(), text.trim_start_matches(is_space));
    while !rest.is_empty() {
        if let Some(symbol) = SYMBOLS.into_iter().find(|symbol| rest.starts_with(symbol)) {
            tokens.push(Token::Symbol(symbol));
            rest = &rest[symbol.len()..];
        } else {
            let end = rest.find(|c| is_space(c) || is_symbol(c)).unwrap_or(rest.len());
            tokens.push(Token::Word(&rest[..end]));
            rest = &rest[end..];
        }
        rest = rest.trim_start_matches(is_space);
    }
    tokens
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

fn is_symbol(c: char) -> bool {
    matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<')
}

struct Parser<'a> {
    tokens: Peekable<IntoIter<Token<'a>>>,
}

impl<'a> Parser<'a> {
    fn peek(&mut self) -> Token<'a> {
        self.tokens.peek().copied().unwrap_or(Token::End)
    }

    fn next(&mut self) -> Token<'a> {
        self.tokens.next().unwrap_or(Token::End)
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let absent = self.peek() == Token::Symbol("!");
        if absent {
            self.next();
        }
        let key = match self.next() {
            Token::Word(key) => key.to_owned(),
            token => return Err(token.unexpected("identifier")),
        };
        check_key(&key)?;
        if absent {
            return Ok(Requirement { key, condition: Condition::Absent });
        }
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Ok(Requirement { key, condition: Condition::Exists });
        }
        let condition = self.condition(&key)?;
        Ok(Requirement { key, condition })
    }

    fn condition(&mut self, key: &str) -> Result<Condition, String> {
        let operator = match self.next() {
            token @ (Token::Word("in" | "notin") | Token::Symbol("=" | "==" | "!=" | ">" | "<")) => token.text(),
            token => return Err(token.unexpected(OPERATORS)),
        };
        let values = if matches!(operator, "in" | "notin") { self.values()? } else { vec![self.value()?] };
        check_values(key, operator, &values)?;
        let number = || values.first().and_then(|value| value.parse().ok()).unwrap_or_default();
        Ok(match operator {
            "!=" | "notin" => Condition::NotIn(values),
            ">" => Condition::Greater(number()),
            "<" => Condition::Less(number()),
            _ => Condition::In(values),
        })
    }

    /// One value, which is empty if nothing is there.
    fn value(&mut self) -> Result<String, String> {
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Ok(String::new());
        }
        match self.next() {
            Token::Word(value) => Ok(value.to_owned()),
            token => Err(token.unexpected("identifier")),
        }
    }

    /// `(a, b)`; between two commas, and where there is nothing, is the empty value.
    fn values(&mut self) -> Result<Vec<String>, String> {
        match self.next() {
            Token::Symbol("(") => {}
            token => return Err(format!("found '{}' expected: '('", token.text())),
        }
        match self.peek() {
            Token::Word(_) | Token::Symbol("," | ")") => {}
            token => return Err(token.unexpected("',', ')' or identifier")),
        }
        let (mut values, mut is_open) = (BTreeSet::new(), true);
        loop {
            match self.next() {
                Token::Word(value) => {
                    values.insert(value.to_owned());
                    is_open = false;
                    let after = self.peek();
                    if !matches!(after, Token::Symbol("," | ")")) {
                        return Err(after.unexpected("',' or ')'"));
                    }
                }
                Token::Symbol(separator @ ("," | ")")) => {
                    if is_open {
                        values.insert(String::new());
                    }
                    is_open = true;
                    if separator == ")" {
                        return Ok(values.into_iter().collect());
                    }
                }
                token => return Err(token.unexpected("',', or identifier")),
            }
        }
    }
}

fn check_key(key: &str) -> Result<(), String> {
    let complaints = names::qualified_name(key);
    let mut errors = Errors::new();
    if !complaints.is_empty() {
        errors.invalid(&Path::new("<nil>"), key, complaints.join("; "));
    }
    told(errors)
}

fn check_values(key: &str, operator: &str, values: &[String]) -> Result<(), String> {
    let (path, mut errors) = (Path::new("values"), Errors::new());
    for (index, value) in values.iter().enumerate() {
        if matches!(operator, ">" | "<") && value.parse::<i64>().is_err() {
            let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
            errors.invalid(&path.index(index), value.as_str(), detail);
        }
    }
    for (index, value) in values.iter().enumerate() {
        let complaints = names::label_value(value);
        if !complaints.is_empty() {
            errors.invalid(&path.index(index).key(key), value.as_str(), complaints.join("; "));
        }
    }
    told(errors)
}

/// Complaints as one text.
fn told(errors: Errors) -> Result<(), String> {
    let words: Vec<String> =
        errors.into_causes().iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
    match words.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}
