//! `make chaos`: ten minutes of faults, or `CHAOS_SECONDS`, by `CHAOS_SEED` or one that is drawn and told.

use std::time::Duration;

use flotilla_tests::chaos::{self, Options};

const SECONDS: u64 = 600;
const WRITABLE_LIMIT: Duration = Duration::from_secs(2);
const MAX_TOLD: usize = 20;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let seed = number("CHAOS_SEED")?.unwrap_or_else(rand::random);
    let seconds = number("CHAOS_SECONDS")?.unwrap_or(SECONDS);
    println!("again with CHAOS_SEED={seed} CHAOS_SECONDS={seconds} make chaos");
    let outcome = chaos::run(Options { seed, duration: Duration::from_secs(seconds) }).await?;
    for violation in outcome.violations.iter().take(MAX_TOLD) {
        println!("violation: {violation}");
    }
    println!("{outcome}");
    anyhow::ensure!(outcome.violations.is_empty(), "{} violations", outcome.violations.len());
    let slowest = outcome.slowest_recovery();
    anyhow::ensure!(slowest <= WRITABLE_LIMIT, "writable again only after {:.2} s", slowest.as_secs_f64());
    Ok(())
}

fn number(name: &str) -> anyhow::Result<Option<u64>> {
    let Some(text) = std::env::var_os(name) else { return Ok(None) };
    let parsed = text.to_str().and_then(|text| text.parse().ok());
    parsed.map(Some).ok_or_else(|| anyhow::anyhow!("{name}: {} is not a number", text.display()))
}
