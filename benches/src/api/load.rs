//! A closed loop: each connection calls again as soon as it is answered.

use anyhow::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Runs `request` on `connections` tasks until `time` is over and what is under way
/// has been answered; answers per second. A request gets its number; the first that
/// fails ends the run.
pub async fn per_second<R, F>(connections: usize, time: Duration, request: R) -> Result<f64>
where
    R: Fn(u64) -> F + Send + Sync + 'static,
    F: Future<Output = Result<()>> + Send,
{
    let (request, number) = (Arc::new(request), Arc::new(AtomicU64::new(0)));
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let (request, number) = (Arc::clone(&request), Arc::clone(&number));
        tasks.spawn(async move {
            while start.elapsed() < time {
                request(number.fetch_add(1, Ordering::Relaxed)).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(number.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[tokio::test]
    async fn what_was_begun_counts_once_answered() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&seen);
        let rate = per_second(2, Duration::from_millis(50), move |number| {
            let kept = Arc::clone(&kept);
            async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                kept.lock().unwrap().push(number);
                Ok(())
            }
        });
        assert!(rate.await.unwrap() > 0.0);
        let mut seen = seen.lock().unwrap().clone();
        seen.sort_unstable();
        let expected: Vec<u64> = (0..seen.len() as u64).collect();
        assert_eq!(seen, expected);
    }

    #[tokio::test]
    async fn a_failed_request_ends_the_run() {
        let refuse = |_| async { anyhow::bail!("no") };
        assert!(
            per_second(4, Duration::from_secs(60), refuse)
                .await
                .is_err()
        );
    }
}
