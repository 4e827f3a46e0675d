//! Images from the outside: real registries, real overlays, hostile archives. Needs root.

mod registry;
mod support;
