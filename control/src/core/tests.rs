//! Transactions, large ones, crashes between their parts, and forgetting.

use super::*;
use crate::rows::{Counter, Instance, Settings, Token};
use clap::Parser as _;
use std::path::Path;

fn config(dir: &Path) -> Config {
    let dir = dir.to_str().unwrap();
    let nothing = "/nonexistent";
    Config::parse_from([
        "ocs-control",
        "--state",
        dir,
        "--tls-ca",
        nothing,
        "--tls-cert",
        nothing,
        "--tls-key",
        nothing,
    ])
}

pub(crate) async fn open(dir: &Path) -> Core {
    // The writer thread of a dropped store lets go of the file a moment later.
    for _ in 0..1_000 {
        match Core::open(config(dir), Catalogue::default()).await {
            Ok(core) => return core,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
        }
    }
    panic!("the store stays locked");
}

fn counter(name: impl ToString, last: u32) -> Counter {
    Counter {
        name: name.to_string(),
        last,
    }
}

fn scope() -> Scope {
    Scope::new("us-east-1", "123456789012")
}

fn total(core: &Core) -> usize {
    core.peek(|view| view.all::<Counter>(&scope()).count())
}

#[tokio::test]
async fn a_transaction_is_all_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let core = open(dir.path()).await;
    let scope = scope();
    let refused = core.write(&scope, |tx| -> Result<(), ApiError> {
        tx.put(counter("a", 1))?;
        assert_eq!(tx.get::<Counter>(&"a".to_owned()).unwrap().last, 1);
        Err(ApiError::missing("Patience"))
    });
    assert_eq!(refused.await.unwrap_err().code, "MissingParameter");
    assert_eq!(total(&core), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_is_whole_and_can_change_later() {
    let dir = tempfile::tempdir().unwrap();
    let core = open(dir.path()).await;
    let scope = &scope();
    let all = |core: &Core, to: u32, last: u32| {
        let write = core.write(scope, |tx| {
            (0..to).try_for_each(|n| tx.put(counter(n, last)))
        });
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(write)).unwrap();
    };
    all(&core, 500, 1);
    assert_eq!(total(&core), 500);
    for n in [0, 127, 128, 499] {
        core.write(scope, |tx| tx.put(counter(n, 2))).await.unwrap();
    }
    all(&core, 400, 5);
    core.write(scope, |tx| {
        (200..400).for_each(|n| tx.delete::<Counter>(&n.to_string()));
        Ok(())
    })
    .await
    .unwrap();
    drop(core);
    let core = open(dir.path()).await;
    assert_eq!(total(&core), 300);
    let last = |n: u32| core.peek(|view| view.get::<Counter>(scope, &n.to_string()).unwrap().last);
    assert_eq!((last(0), last(199), last(499)), (5, 5, 2));
    all(&core, 500, 6);
}

#[tokio::test]
async fn a_crash_between_the_parts_is_finished_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let core = open(dir.path()).await;
    let rest: Vec<(String, String)> = (0..300)
        .map(|n| {
            let value = serde_json::to_string(&counter(n, 7)).unwrap();
            (key::<Counter>(&scope(), &n.to_string()), value)
        })
        .collect();
    let job = Write {
        key: format!("{JOBS}1"),
        value: Some(serde_json::to_vec(&rest).unwrap()),
    };
    let revision = core
        .store
        .submit(Batch {
            compares: vec![],
            writes: vec![job],
        })
        .unwrap();
    core.store.durable(revision).await.unwrap();
    drop(core);
    let core = open(dir.path()).await;
    assert_eq!(total(&core), 300);
    assert!(core.store.range(JOBS, "-/-/job0").unwrap().is_empty());
}

#[tokio::test]
async fn unknown_rows_are_refused_not_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let core = open(dir.path()).await;
    let write = Write {
        key: "-/-/teapot/1".to_owned(),
        value: Some(b"{}".to_vec()),
    };
    let revision = core
        .store
        .submit(Batch {
            compares: vec![],
            writes: vec![write],
        })
        .unwrap();
    core.store.durable(revision).await.unwrap();
    drop(core);
    let mut last = String::new();
    for _ in 0..1_000 {
        match Core::open(config(dir.path()), Catalogue::default()).await {
            Ok(_) => panic!("a row of unknown kind was taken"),
            Err(error) => last = error.to_string(),
        }
        if last.contains("teapot") {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("{last}");
}

#[tokio::test]
async fn the_janitor_forgets_after_an_hour() {
    let dir = tempfile::tempdir().unwrap();
    let core = open(dir.path()).await;
    let text = include_str!("terminated.json");
    let gone: Instance = serde_json::from_str(text).unwrap();
    let at_s = gone.terminated_at_s.unwrap();
    let token = Token {
        key: "RunInstances.00".to_owned(),
        digest: String::new(),
        answer: serde_json::Value::Null,
        instances: vec![gone.id],
        at_s,
    };
    core.write(&scope(), |tx| {
        tx.put(Settings {
            name: Settings::NAME.to_owned(),
            ..Settings::default()
        })?;
        tx.put(token.clone())?;
        tx.put(gone.clone())
    })
    .await
    .unwrap();
    let left = |core: &Core| {
        core.peek(|view| {
            (
                view.all::<Instance>(&scope()).count(),
                view.all::<Token>(&scope()).count(),
            )
        })
    };
    crate::janitor::sweep(&core, at_s + 3_600).await.unwrap();
    assert_eq!(left(&core), (1, 1));
    crate::janitor::sweep(&core, at_s + 3_601).await.unwrap();
    assert_eq!(left(&core), (0, 1), "the token is remembered for a day");
    crate::janitor::sweep(&core, at_s + 86_401).await.unwrap();
    assert_eq!(left(&core), (0, 0));
    assert_eq!(core.peek(|view| view.all::<Settings>(&scope()).count()), 1);
}
