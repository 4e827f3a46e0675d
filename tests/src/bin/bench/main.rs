//! What Flotilla does on this machine, beside what etcd and runc do on it.
//!
//! `make bench` builds this optimized and runs it as root: `bench [SECTION …]`, every section unless some are named.
//! `docs/benchmarks.md` says how each figure is taken.
//!
//! Invariant: a figure and its peer's come from one run on one disk, through the same client code; the two never run
//! at the same time.
//! Invariant: nothing is asserted. A section that fails says so in the table, and the others go on.

mod apiserver;
mod catchup;
mod client;
mod etcd;
mod etcd_api;
mod examples;
mod failover;
mod flotilla_cluster;
mod idle;
mod load;
mod machine;
mod memory;
mod pair;
mod pods;
mod puts;
mod reads;
mod report;
mod rest;
mod watchers;

use std::process::ExitCode;

use report::Report;

const SECTIONS: [&str; 11] =
    ["starts", "pods", "idle", "puts", "reads", "ranges", "watchers", "rest", "failover", "catchup", "memory"];

#[tokio::main]
async fn main() -> ExitCode {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let asked: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = asked.iter().find(|name| !SECTIONS.contains(&name.as_str())) {
        eprintln!("there is no section {unknown:?}; there are: {}", SECTIONS.join(", "));
        return ExitCode::FAILURE;
    }
    let before = machine::load_average();
    let mut report = Report::default();
    for section in SECTIONS.into_iter().filter(|name| asked.is_empty() || asked.iter().any(|one| one == name)) {
        println!("--- {section}");
        if let Err(error) = measure(section, &mut report).await {
            report.failed(section, &error);
        }
    }
    println!("\n{}", machine::describe(&before));
    println!("{report}");
    if report.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn measure(section: &str, report: &mut Report) -> anyhow::Result<()> {
    match section {
        "starts" => examples::starts(report),
        "pods" => pods::measure(report).await,
        "idle" => idle::measure(report).await,
        "puts" => puts::measure(report).await,
        "reads" => reads::objects(report).await,
        "ranges" => reads::ranges(report).await,
        "watchers" => watchers::measure(report).await,
        "rest" => rest::measure(report).await,
        "failover" => failover::measure(report).await,
        "catchup" => catchup::measure(report).await,
        "memory" => memory::measure(report).await,
        other => anyhow::bail!("no such section: {other}"),
    }
}
