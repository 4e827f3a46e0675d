//! Images from the outside: real registries, real overlays, hostile archives. Needs root.

mod archives;
mod faults;
mod garbage;
mod hostile;
mod layers;
mod peers;
mod registry;
mod support;
