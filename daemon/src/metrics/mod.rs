//! What a node counts, in Prometheus' text form.
//!
//! Names, labels and buckets are upstream's where upstream counts the same thing; what is Flotilla's own begins with
//! `flotilla_`.
//!
//! Invariant: what a client sends makes no series of its own: only kinds that are served, and paths from a list, are named.
//! Invariant: to count takes a shared lock and adds to numbers; what must be looked up is looked up when somebody scrapes.

mod calls;
mod node;
mod requests;

use flotilla_api::Status;
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{Encoder, Histogram, HistogramOpts, IntGauge, Opts, Registry, TextEncoder};

use crate::gate::Gate;
use crate::proto;
pub use calls::Calling;
use calls::Calls;
use node::Gauges;
pub use node::Standing;
pub use requests::{Asking, Requests, verb};

/// The content type of what [`Metrics::text`] returns.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Everything that is counted on this node.
pub struct Metrics {
    /// Requests to the REST face.
    pub requests: Requests,
    /// Calls over gRPC.
    pub calls: Calls,
    gauges: Gauges,
    registry: Registry,
}

impl Metrics {
    /// # Errors
    /// If a name or a label is none, which only a mistake in this program makes so.
    pub fn new(gate: &Gate) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        registry.register(Box::new(ProcessCollector::for_self()))?;
        registry.register(Box::new(gate.commits().clone()))?;
        let build = Opts::new("flotilla_build_info", "The version of this program; always 1.");
        register(&registry, IntGauge::with_opts(build.const_label("version", crate::VERSION))?)?.set(1);
        let descriptors = [proto::DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET];
        Ok(Self {
            requests: Requests::new(&registry)?,
            calls: Calls::new(&registry, &descriptors)?,
            gauges: Gauges::new(&registry)?,
            registry,
        })
    }

    /// Everything, with this node's standing as it is now.
    ///
    /// # Errors
    /// If it cannot be written down.
    pub fn text(&self, standing: &Standing) -> Result<Vec<u8>, Status> {
        self.gauges.set(standing);
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).map_err(Status::internal)?;
        Ok(text)
    }
}

/// How long acknowledged writes took to commit, for the gate to observe.
pub fn commits() -> Histogram {
    let buckets = vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
    let help = "From proposing a write that came to this node to its being applied.";
    let opts = HistogramOpts::new("flotilla_store_commit_duration_seconds", help).buckets(buckets);
    Histogram::with_opts(opts).expect("a name, and buckets that grow")
}

/// Adds a metric to those that are told.
fn register<M: Collector + Clone + 'static>(registry: &Registry, metric: M) -> Result<M, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
