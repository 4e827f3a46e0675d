//! A gate over a replica that is alone, for tests.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flotilla_api::Registry;
use flotilla_net::SealKey;
use flotilla_raft::{NodeId, Options, Reader, Store, Transport, TransportError, Writer};
use tempfile::TempDir;

use super::{Gate, Sealer};

/// There is nobody else.
struct Alone;

#[async_trait]
impl Transport for Alone {
    async fn call(&self, _: NodeId, _: Bytes, _: Duration) -> Result<Bytes, TransportError> {
        Err(TransportError::Timeout)
    }

    async fn open_stream(&self, _: NodeId) -> Result<(Reader, Writer), TransportError> {
        Err(TransportError::Timeout)
    }
}

/// With nothing stored yet, in a directory that goes with the test.
pub(crate) async fn alone() -> (Gate, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { request_timeout: Duration::from_secs(30), ..Options::new(dir.path(), 1, "test") };
    let store = Store::open(options, Arc::new(Alone)).await.unwrap();
    store.bootstrap().await.unwrap();
    (Gate::new(store, Arc::new(Registry::builtin()), Sealer::new(SealKey::generate())), dir)
}
