//! A short run of what `make chaos` does for ten minutes.

use std::time::Duration;

use flotilla_tests::chaos::{self, Options};
use flotilla_tests::figure;

const SEED: u64 = 20_261_125;
const DURATION: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_machines_no_client_is_told_a_lie() {
    let outcome = chaos::run(Options { seed: SEED, duration: DURATION }).await.unwrap();
    figure("chaos", &outcome.to_string());
    assert_eq!(outcome.violations, Vec::<String>::new());
    assert!(outcome.acknowledged > 100 && outcome.recoveries.len() > 2, "{outcome}");
}
