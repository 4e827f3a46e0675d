//! Tokens as text: what is written is read back, and nothing else is read at all.

use std::net::SocketAddr;
use std::time::{Duration, UNIX_EPOCH};

use flotilla_net::*;
use proptest::prelude::*;

fn token(expires: Option<u64>, addresses: Vec<SocketAddr>) -> Token {
    let expires = expires.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
    Token::generate(ClusterId::generate(), [7; 32], expires, addresses).expect("a token")
}

fn address() -> impl Strategy<Value = SocketAddr> {
    any::<(std::net::IpAddr, u16)>().prop_map(SocketAddr::from)
}

fn any_token() -> impl Strategy<Value = Token> {
    let expires = proptest::option::of(1..4_000_000_000_u64);
    (expires, proptest::collection::vec(address(), 1..=MAX_TOKEN_ADDRESSES))
        .prop_map(|(expires, addresses)| token(expires, addresses))
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(token in any_token()) {
        let text = token.to_string();
        prop_assert!(text.len() <= MAX_TOKEN_BYTES);
        let read: Token = text.parse().expect("parses");
        prop_assert_eq!(read.to_string(), text);
        prop_assert_eq!(read.cluster(), token.cluster());
        prop_assert_eq!(read.authority(), token.authority());
        prop_assert_eq!(read.id(), token.id());
        prop_assert_eq!(read.expires(), token.expires());
        prop_assert_eq!(read.addresses(), token.addresses());
        prop_assert!(token.secret_hash().matches(read.id(), read.secret()));
    }

    #[test]
    fn a_token_cut_short_or_changed_is_refused(token in any_token(), at in any::<prop::sample::Index>(), with in "[A-Za-z0-9_-]") {
        let text = token.to_string();
        let at = at.index(text.len());
        prop_assert!(text[..at].parse::<Token>().is_err());
        let mut changed = text.clone();
        changed.replace_range(at..=at, &with);
        if changed != text {
            prop_assert!(changed.parse::<Token>().is_err());
        }
    }

    #[test]
    fn any_text_is_read_without_harm(text in "\\PC{0,600}") {
        let _ = text.parse::<Token>();
        let _ = format!("flt1.{text}").parse::<Token>();
    }

    #[test]
    fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        use base64::Engine;
        let text = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&bytes);
        let token = ["flt1.", &text].concat();
        prop_assert!(token.parse::<Token>().is_err());
    }
}

fn local() -> Vec<SocketAddr> {
    vec!["10.0.0.1:7400".parse().expect("an address")]
}

#[test]
fn each_fault_has_its_own_line() {
    let text = token(None, local()).to_string();
    let fault = |text: &str| text.parse::<Token>().expect_err("refused").to_string();
    assert_eq!(fault("hello"), "a token begins with flt1.");
    assert_eq!(fault(&"flt1.".repeat(200)), "the token is longer than 512 characters");
    assert!(fault(&format!("{}!", text)).contains("does not belong"));
    assert!(fault(&text[..text.len() - 8]).contains("cut short"));
    assert_eq!(format!("  {text}\n").parse::<Token>().expect("spaces around it do no harm").to_string(), text);
}

#[test]
fn a_token_has_some_addresses_and_not_too_many() {
    let many = vec![local()[0]; MAX_TOKEN_ADDRESSES + 1];
    for addresses in [vec![], many] {
        let made = Token::generate(ClusterId::generate(), [0; 32], None, addresses);
        assert_eq!(made.expect_err("refused"), TokenError::Addresses);
    }
}

#[test]
fn the_secret_is_not_shown_and_matches_only_its_own_hash() {
    let (one, two) = (token(None, local()), token(None, local()));
    assert!(one.secret_hash().matches(one.id(), one.secret()));
    assert!(!one.secret_hash().matches(one.id(), two.secret()));
    assert!(!one.secret_hash().matches(two.id(), one.secret()), "a hash is bound to its token's id");
    for shown in [format!("{one:?}"), format!("{:?}", one.secret()), format!("{:?}", one.secret_hash())] {
        assert!(shown.len() < 80 && !shown.contains("flt1"), "{shown}");
    }
    assert_eq!(one.id().to_string().parse::<TokenId>(), Ok(one.id()));
    assert_eq!("+123456789abcdef".parse::<TokenId>(), Err(TokenError::Id));
}
