//! Builds the program of the built-in image, see `hello/main.rs`: one small static file for the target.
//!
//! It becomes a library first, since rustc itself would link a program without `std` dynamically.

use std::path::Path;
use std::process::{Command, exit};

const SIZE_BYTES_MAX: u64 = 1 << 20;

fn main() {
    println!("cargo::rerun-if-changed=hello/main.rs");
    println!("cargo::rerun-if-changed=build.rs");
    let directory = variable("OUT_DIR");
    let library = Path::new(&directory).join("libhello.a");
    let program = Path::new(&directory).join("hello");
    compile(&library);
    link(&library, &program);
    match std::fs::metadata(&program) {
        Ok(file) if file.len() <= SIZE_BYTES_MAX => {}
        Ok(file) => fail(&format!("hello has {} bytes, more than {SIZE_BYTES_MAX}", file.len())),
        Err(error) => fail(&format!("hello is not there: {error}")),
    }
}

fn compile(library: &Path) {
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["hello/main.rs", "--crate-name", "hello", "--crate-type", "staticlib", "--edition", "2024"]);
    rustc.args(["--target", &variable("TARGET")]);
    for option in ["relocation-model=static", "opt-level=s", "panic=abort", "lto=fat", "codegen-units=1"] {
        rustc.args(["-C", option]);
    }
    run(rustc.arg("-o").arg(library));
}

fn link(library: &Path, program: &Path) {
    let linker = std::env::var("RUSTC_LINKER").unwrap_or_else(|_| "cc".into());
    let mut linker = Command::new(linker);
    run(linker
        .args(["-static", "-no-pie", "-s", "-Wl,--gc-sections", "-Wl,--build-id=none", "-o"])
        .arg(program)
        .arg(library));
}

fn run(command: &mut Command) {
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!("{command:?}: {status}")),
        Err(error) => fail(&format!("{command:?}: {error}")),
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| fail(&format!("{name} is not set")))
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1)
}
