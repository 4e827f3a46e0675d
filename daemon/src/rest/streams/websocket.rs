//! WebSockets (RFC 6455): the handshake, and the bounds under which frames are read.
//!
//! Frames themselves are `tungstenite`'s. The handshake is ours, since the HTTP server has read the request already.
//!
//! Invariant: a message is at most `MAX_MESSAGE_BYTES`, and what waits to be written at most `MAX_WRITE_BYTES`.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderValue};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

/// The largest message of a client.
pub const MAX_MESSAGE_BYTES: usize = 1024 * 1024;
/// What may wait to be written to a client.
const MAX_WRITE_BYTES: usize = 1024 * 1024;
const READ_BUFFER_BYTES: usize = 16 * 1024;
/// A client that is sent nothing for so long is asked whether it lives.
pub const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long a client may take to hang up once all is said.
pub const LINGER: Duration = Duration::from_secs(5);
/// A client takes so long at most to take what it is sent.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// Whether a request asks to become a WebSocket.
pub fn is_asked(headers: &HeaderMap) -> bool {
    has_token(headers, CONNECTION, "upgrade") && has_token(headers, UPGRADE, "websocket")
}

/// Whether a header that is a list has this word.
pub fn has_token(headers: &HeaderMap, name: http::HeaderName, token: &str) -> bool {
    let lines = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|word| word.trim().eq_ignore_ascii_case(token))
}

/// The protocols that a client offers, as it prefers them.
pub fn offered(headers: &HeaderMap) -> Vec<&str> {
    let lines = headers.get_all(SEC_WEBSOCKET_PROTOCOL).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|word| !word.is_empty()).collect()
}

/// Why a request is no handshake.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    #[error("Sec-WebSocket-Version must be 13")]
    Version,
    #[error("Sec-WebSocket-Key must be 16 bytes in base64")]
    Key,
}

/// The headers of the answer that begins a WebSocket.
///
/// # Errors
/// If the request is not as section 4.2.1 wants it.
pub fn accept(headers: &HeaderMap, protocol: &str) -> Result<HeaderMap, HandshakeError> {
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(HandshakeError::Version);
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
    if STANDARD.decode(key).map_or(0, |key| key.len()) != 16 {
        return Err(HandshakeError::Key);
    }
    let mut answer = HeaderMap::new();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(SEC_WEBSOCKET_ACCEPT, accept_key(key));
    if let Some(protocol) = HeaderValue::from_str(protocol).ok().filter(|_| !protocol.is_empty()) {
        answer.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    Ok(answer)
}

/// Shows that the request was understood; SHA-1 is the RFC's, and protects nothing.
fn accept_key(key: &[u8]) -> HeaderValue {
    use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
    let mut digest = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key);
    digest.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let text = STANDARD.encode(digest.finish());
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The WebSocket on a connection whose handshake is done.
pub async fn server<S: AsyncRead + AsyncWrite + Unpin>(io: S) -> WebSocketStream<S> {
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config())).await
}

pub fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(MAX_WRITE_BYTES)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn the_handshake_of_the_rfc() {
        let asked = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", "v5.channel.k8s.io, v4.channel.k8s.io"),
        ]);
        assert!(is_asked(&asked));
        assert_eq!(offered(&asked), ["v5.channel.k8s.io", "v4.channel.k8s.io"]);
        let answer = accept(&asked, "v4.channel.k8s.io").unwrap();
        assert_eq!(answer["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(answer["sec-websocket-protocol"], "v4.channel.k8s.io");
        assert!(!accept(&asked, "").unwrap().contains_key("sec-websocket-protocol"));
    }

    #[test]
    fn what_is_no_handshake_is_refused() {
        assert!(!is_asked(&headers(&[("upgrade", "websocket")])));
        assert!(!is_asked(&headers(&[("connection", "upgrade"), ("upgrade", "SPDY/3.1")])));
        let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&headers(&[key]), ""), Err(HandshakeError::Version));
        for wrong in ["", "short", "dGhlIHNhbXBsZSBub25jZQ==AA"] {
            let asked = headers(&[("sec-websocket-version", "13"), ("sec-websocket-key", wrong)]);
            assert_eq!(accept(&asked, ""), Err(HandshakeError::Key), "{wrong:?}");
        }
    }
}
