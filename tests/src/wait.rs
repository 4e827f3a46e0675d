//! Waiting for a condition, with a bound, and with the last reason why it did not hold.

use std::fmt::Display;
use std::time::{Duration, Instant};

const ASK_AGAIN: Duration = Duration::from_millis(25);

/// Asks until the answer is `Ok`, and returns it.
///
/// # Panics
/// When the time is over, with what was waited for and the last answer.
pub async fn eventually<T, E: Display, F>(limit: Duration, what: &str, attempt: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, E>>,
{
    within(limit, what, attempt).await.0
}

/// As [`eventually`], and tells how long it took.
///
/// # Panics
/// When the time is over, with what was waited for and the last answer.
pub async fn within<T, E: Display, F>(limit: Duration, what: &str, mut attempt: impl FnMut() -> F) -> (T, Duration)
where
    F: Future<Output = Result<T, E>>,
{
    let began = Instant::now();
    let mut last = String::from("no answer");
    loop {
        let left = limit.saturating_sub(began.elapsed());
        match tokio::time::timeout(left.max(ASK_AGAIN), attempt()).await {
            Ok(Ok(value)) => return (value, began.elapsed()),
            Ok(Err(reason)) => last = reason.to_string(),
            Err(_) => last = format!("no answer in time; before that: {last}"),
        }
        assert!(began.elapsed() < limit, "{what}: not within {} s: {last}", limit.as_secs_f64());
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_reason_is_told() {
        let attempt = || async { Err::<(), _>("still red") };
        let failed = tokio::spawn(eventually(Duration::from_millis(60), "the light is green", attempt));
        let panic = failed.await.unwrap_err().into_panic();
        let text = panic.downcast_ref::<String>().unwrap();
        assert!(text.contains("the light is green") && text.contains("still red"), "{text}");
    }
}
