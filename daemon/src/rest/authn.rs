//! Who sends a request: as the connection's handshake showed, as a token shows, or nobody.
//!
//! Invariant: whoever shows a token that does not hold is refused; they are never taken for nobody.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flotilla_api::{Reason, Status};
use http::{HeaderMap, HeaderValue, header};
use tracing::debug;

use crate::accounts::TokenError;
use crate::gate::User;
use crate::listen::Peer;
use crate::node::Node;

/// How browsers, which cannot set headers, send a token with a WebSocket.
const WEBSOCKET_PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

/// # Errors
/// `Unauthorized` if the request claims to be somebody and does not show it.
pub async fn authenticate(node: &Node, peer: &Peer, headers: &HeaderMap) -> Result<User, Status> {
    if let Some(user) = &peer.user {
        return Ok(user.clone());
    }
    let Some(token) = token(headers)? else { return Ok(User::anonymous()) };
    match node.accounts.authenticate(&token).await {
        Ok(user) => Ok(user),
        Err(TokenError::Store(status)) => Err(status),
        Err(error) => {
            debug!(%error, "refused a token");
            Err(unauthorized())
        }
    }
}

/// The token that a request carries.
fn token(headers: &HeaderMap) -> Result<Option<String>, Status> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    if let Some(value) = values.next() {
        if values.next().is_some() {
            return Err(unauthorized());
        }
        let text = value.to_str().map_err(|_| unauthorized())?;
        // As upstream: what is not understood at all, Basic for one, says nothing.
        if let Some((scheme, token)) = text.trim().split_once(' ')
            && scheme.eq_ignore_ascii_case("bearer")
        {
            return Ok(Some(token.trim().to_owned()));
        }
    }
    let is_websocket =
        headers.get(header::UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if !is_websocket {
        return Ok(None);
    }
    let mut found = None;
    for value in headers.get_all(header::SEC_WEBSOCKET_PROTOCOL) {
        let text = value.to_str().map_err(|_| unauthorized())?;
        for encoded in text.split(',').filter_map(|protocol| protocol.trim().strip_prefix(WEBSOCKET_PREFIX)) {
            let bytes = URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('=')).map_err(|_| unauthorized())?;
            let token = String::from_utf8(bytes).map_err(|_| unauthorized())?;
            if token.is_empty() || found.replace(token).is_some() {
                return Err(unauthorized());
            }
        }
    }
    Ok(found)
}

/// Takes out what says who the client is, for a request that is passed on to somebody else.
pub(super) fn remove_identity(headers: &mut HeaderMap) {
    headers.remove(header::AUTHORIZATION);
    let names = headers.keys().filter(|name| name.as_str().starts_with("impersonate-")).cloned();
    for name in names.collect::<Vec<_>>() {
        headers.remove(name);
    }
    let protocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let kept: Vec<&str> = protocols
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .filter(|protocol| !protocol.is_empty() && !protocol.starts_with(WEBSOCKET_PREFIX))
        .collect();
    match HeaderValue::try_from(kept.join(", ")) {
        Ok(kept) if !kept.is_empty() => _ = headers.insert(header::SEC_WEBSOCKET_PROTOCOL, kept),
        _ => _ = headers.remove(header::SEC_WEBSOCKET_PROTOCOL),
    }
}

fn unauthorized() -> Status {
    Status::new(Reason::Unauthorized, "Unauthorized")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(list: &[(&str, &str)]) -> Result<Option<String>, ()> {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        token(&headers).map_err(|status| assert_eq!(status.reason.code(), 401))
    }

    #[test]
    fn nothing_that_says_who_the_client_is_is_passed_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer a.b.c"),
            ("impersonate-user", "root"),
            ("impersonate-extra-scopes", "all"),
            ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.YS5iLmM, chat"),
            ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.YS5iLmM,v2"),
            ("accept", "*/*"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        remove_identity(&mut headers);
        let mut left: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        left.sort_unstable();
        assert_eq!(left, [("accept", "*/*"), ("sec-websocket-protocol", "chat, v2")]);
    }

    #[test]
    fn a_token_is_shown_in_one_place_or_not_at_all() {
        let a = || Ok(Some("a.b.c".to_owned()));
        let socket = ("upgrade", "websocket");
        let table = [
            (vec![], Ok(None)),
            (vec![("authorization", "Bearer a.b.c")], a()),
            (vec![("authorization", "bearer   a.b.c ")], a()),
            (vec![("authorization", "Bearer ")], Ok(None)),
            (vec![("authorization", "Bearer")], Ok(None)),
            (vec![("authorization", "Basic a.b.c")], Ok(None)),
            (vec![("authorization", "Bearer a"), ("authorization", "Bearer b")], Err(())),
            (
                vec![
                    socket,
                    ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.YS5iLmM, v5.channel.k8s.io"),
                ],
                a(),
            ),
            (vec![("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.YS5iLmM")], Ok(None)),
            (vec![socket, ("sec-websocket-protocol", "v5.channel.k8s.io")], Ok(None)),
            (vec![socket, ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.!")], Err(())),
            (vec![socket, ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.")], Err(())),
        ];
        for (headers, expected) in table {
            assert_eq!(of(&headers), expected, "{headers:?}");
        }
    }
}
