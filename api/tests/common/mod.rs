//! What the stories share: a manifest that works, and ways to send one in.
#![allow(dead_code, reason = "each story uses its part")]

use std::sync::Arc;

use flotilla_api::admit::{self, Create, Prepared, UnknownFields};
use flotilla_api::{Kind, Registry, Status};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::Value;

pub const NGINX: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: nginx
        image: nginx
        ports: [{containerPort: 80}]
        resources: {limits: {cpu: 0.5, memory: 64Mi}}
";

pub const NOW: &str = "2026-01-02T03:04:05Z";

pub fn rng() -> StdRng {
    StdRng::seed_from_u64(7)
}

pub fn request(rng: &mut StdRng) -> Create<'_> {
    Create { namespace: "", now: NOW.parse().unwrap(), rng, unknown_fields: UnknownFields::Refuse }
}

/// The first object of a manifest, with its kind.
pub fn object(manifest: &str) -> (Arc<Kind>, Value) {
    let parsed = admit::parse(manifest.as_bytes(), &Registry::builtin()).unwrap().remove(0);
    (parsed.kind, parsed.object)
}

pub fn create(manifest: &str) -> Result<Prepared, Status> {
    let parsed = admit::parse(manifest.as_bytes(), &Registry::builtin())?.remove(0);
    admit::prepare_create(&parsed.kind, parsed.object, request(&mut rng()))
}

pub fn refusal(manifest: &str) -> String {
    create(manifest).unwrap_err().message
}
