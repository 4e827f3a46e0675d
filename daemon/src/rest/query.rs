//! The query of a request.

use std::num::{IntErrorKind, ParseIntError};

use flotilla_api::Status;

#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: &str) -> Self {
        Self(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// The first value under a name; empty if there is none.
    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    /// Every value under a name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.0.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key == name)
    }

    /// As upstream reads booleans: there, and neither `false` nor `0`.
    pub fn flag(&self, name: &str) -> bool {
        self.has(name) && !matches!(self.get(name).to_ascii_lowercase().as_str(), "false" | "0")
    }

    /// A whole number; `None` if there is none.
    ///
    /// # Errors
    /// `BadRequest` if it is something else.
    pub fn number(&self, name: &str) -> Result<Option<i64>, Status> {
        match self.get(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|error| Status::bad_request(no_number("ParseInt", text, &error))),
        }
    }
}

/// What Go's `strconv` says of a text that is no number.
pub fn no_number(function: &str, text: &str, error: &ParseIntError) -> String {
    let why = match error.kind() {
        IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "value out of range",
        _ => "invalid syntax",
    };
    format!("strconv.{function}: parsing {text:?}: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_upstream_does() {
        let query = Query::parse("watch&labelSelector=a%3Db%2Cc&limit=5&x=0&y=True&x2=a&x2=b+c");
        assert!(query.flag("watch") && !query.flag("x") && query.flag("y") && !query.flag("z"));
        assert_eq!(query.get("labelSelector"), "a=b,c");
        assert_eq!(query.all("x2"), ["a", "b c"]);
        assert_eq!(query.number("limit").unwrap(), Some(5));
        assert_eq!(query.number("none").unwrap(), None);
        assert_eq!(
            query.number("labelSelector").unwrap_err().message,
            "strconv.ParseInt: parsing \"a=b,c\": invalid syntax"
        );
        let large = Query::parse("limit=9223372036854775808").number("limit").unwrap_err();
        assert!(large.message.ends_with(": value out of range"), "{large:?}");
    }
}
