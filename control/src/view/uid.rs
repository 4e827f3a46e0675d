//! Uids as the View keeps them: one for each object there is, so that they have to be small.

/// Equal if and only if the texts are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Uid {
    /// Written as all uids are that are minted.
    Uuid([u8; 16]),
    Text(Box<str>),
}

impl Uid {
    pub fn of(text: &str) -> Self {
        uuid(text).map_or_else(|| Self::Text(text.into()), Self::Uuid)
    }
}

/// The bytes of a UUID in lower case, which nothing else is written as.
fn uuid(text: &str) -> Option<[u8; 16]> {
    let groups = [8, 13, 18, 23];
    let digit = |byte: &u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != 36 || groups.iter().any(|at| text.as_bytes()[*at] != b'-') {
        return None;
    }
    let mut digits = text.bytes().enumerate().filter(|(at, _)| !groups.contains(at)).map(|(_, byte)| byte);
    let mut bytes = [0; 16];
    for byte in &mut bytes {
        *byte = digit(&digits.next()?)? << 4 | digit(&digits.next()?)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_are_equal_as_their_texts_are() {
        let one = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9";
        assert_eq!(size_of::<Uid>(), 24);
        assert!(matches!(Uid::of(one), Uid::Uuid([0x0a, .., 0xf9])));
        for other in [
            "0A1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9",
            "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f8",
            "0a1b2c3d4e5f-4071-8293-a4b5c6d7e8f9-",
            "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8fg",
            "ä1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9",
            "u1",
            "",
        ] {
            assert_ne!(Uid::of(one), Uid::of(other), "{other}");
            assert_eq!(Uid::of(other), Uid::of(other));
        }
    }
}
