//! The shim on its own, as the tests of this crate start it. The product's is `flotilla shim`.

fn main() -> std::process::ExitCode {
    flotilla_runtime::shim_main(std::env::args_os().skip(1))
}
