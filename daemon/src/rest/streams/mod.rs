//! Streams of bytes through the API: commands, attaching, forwarded ports.
//!
//! What a client and a node say to each other is carried in one of two ways, WebSockets or SPDY, each in several versions.
//! The modules here know these; what lies behind (which pod, who may) is the subresources' business.
//!
//! Invariant: every frame, message, queue and wait is bounded, and a client that breaks the rules loses its connection and
//! nothing else.

pub(crate) mod channel;
pub(crate) mod forward;
pub(crate) mod over_spdy;
pub(crate) mod over_websocket;
pub(crate) mod remote;
pub(crate) mod spdy;
pub(crate) mod tunnel;
pub(crate) mod websocket;
