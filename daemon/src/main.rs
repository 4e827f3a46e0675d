//! The `flotilla` binary: the daemon, the command line and the shim in one.

fn main() {}
