//! The whole replica, simulated: openraft and this crate's own code on one thread, under a seed.
//!
//! Machines crash, pause and come back, disks lose what was not synced, the network does what networks do, and
//! clients and watchers write down what they were told. At the end everything is healed, and must agree.
//!
//! Invariant: a seed decides everything, so that what it found is found again.

mod clients;
mod cluster;
mod database;
mod disk;
mod faults;
mod invariants;
mod linear;
mod net;
mod runs;
pub(crate) mod runtime;
mod scenario;
pub(crate) mod signal;
mod watchers;
mod world;

pub(crate) use world::host;

/// A random number of this thread's world.
pub(crate) fn random() -> u64 {
    world::world().random()
}
