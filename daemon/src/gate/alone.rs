//! Gates over a store of one replica, for tests.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flotilla_api::Registry;
use flotilla_net::SealKey;
use flotilla_raft::{NodeId, Options, Reader, Store, Transport, TransportError, Writer};

use super::{Gate, Sealer};

/// A store of one replica has nobody to talk to.
struct Alone;

#[async_trait]
impl Transport for Alone {
    async fn call(&self, _: NodeId, _: Bytes, _: Duration) -> Result<Bytes, TransportError> {
        Err(TransportError::Unreachable("there is nobody else".into()))
    }

    async fn open_stream(&self, _: NodeId) -> Result<(Reader, Writer), TransportError> {
        Err(TransportError::Unreachable("there is nobody else".into()))
    }
}

pub(crate) async fn gate(dir: &tempfile::TempDir) -> Gate {
    let options = Options { request_timeout: Duration::from_secs(30), ..Options::new(dir.path(), 1, "test") };
    let store = Store::open(options, Arc::new(Alone)).await.unwrap();
    store.bootstrap().await.unwrap();
    over(store)
}

/// Another gate over the same store, which knows nothing of the first.
pub(crate) fn twin(gate: &Gate) -> Gate {
    over(gate.store().clone())
}

fn over(store: Store) -> Gate {
    Gate::new(store, Arc::new(Registry::builtin()), Sealer::new(SealKey::generate()))
}
