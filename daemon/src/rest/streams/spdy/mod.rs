//! SPDY/3.1, for clients that upgrade to it: kubectl and client-go before WebSockets, and port-forwarding of any age.
//!
//! Only the server's side, after draft-mbelshe-httpbis-spdy-00: `frame` and `headers` turn bytes into frames and back,
//! `connection` runs a connection, `stream` is what those see who speak through it.
//!
//! Invariant: no frame, header block, number of streams or queue grows beyond its bound, whatever a client sends.

mod connection;
mod dictionary;
mod flow;
pub(crate) mod frame;
pub(crate) mod headers;
mod stream;
#[cfg(test)]
mod tests;

pub use connection::{Acceptor, Connection};
pub use stream::{Stream, StreamReader, StreamWriter};

/// Why a connection ends before its time.
#[derive(Debug, thiserror::Error)]
pub enum SpdyError {
    #[error("the client broke SPDY's rules: {0}")]
    Protocol(&'static str),
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
}
