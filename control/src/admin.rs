//! The operator's socket: accounts and access keys, for root on this host alone.
//!
//! One JSON object a line in, one out: `{"create_account": {"limits": "ec2"}}`,
//! `{"create_key": {"account": "…"}}`, `{"delete_key": {"key": "…"}}`,
//! `{"list_accounts": {}}`, `{"list_hosts": {}}`, `{"remove_host": {"name": "…", …}}`,
//! `{"verify_audit": {}}`; an answer is the
//! object asked for, or `{"error": "…"}`. `ocs account`, `ocs key` and `ocs host` speak it.

use crate::accounts::{self, Sealer};
use crate::audit;
use crate::core::Core;
use crate::gateway::removal::{self, Held};
use crate::rows::{AccessKey, Account, Limits, Node, Scope};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// Longest request.
const MAX_REQUEST_BYTES: u64 = 4_096;
/// Longest time that a request may take.
const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Request {
    CreateAccount {
        #[serde(default)]
        limits: Limits,
    },
    CreateKey {
        account: String,
    },
    DeleteKey {
        key: String,
    },
    ListAccounts {},
    ListHosts {},
    RemoveHost {
        name: String,
        /// What it holds is lost.
        #[serde(default)]
        force: bool,
        /// Its certificates that begin no later are void; Unix seconds.
        void_until_s: i64,
    },
    VerifyAudit {},
}

/// Listens on a socket that only its owner and root can reach.
///
/// # Errors
/// Where the socket cannot be made.
pub fn bind(path: &Path) -> Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| path.display().to_string());
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until the process ends.
pub async fn serve(listener: UnixListener, core: Arc<Core>, sealer: Arc<Sealer>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (core, sealer) = (Arc::clone(&core), Arc::clone(&sealer));
        tokio::spawn(async move {
            let served = tokio::time::timeout(TIMEOUT, one(stream, &core, &sealer)).await;
            if let Ok(Err(error)) = served {
                tracing::warn!(error = format!("{error:#}"), "operator's socket");
            }
        });
    }
}

async fn one(stream: UnixStream, core: &Core, sealer: &Sealer) -> Result<()> {
    let uid = stream.peer_cred()?.uid();
    if uid != 0 && uid != rustix::process::geteuid().as_raw() {
        bail!("user {uid} may not ask");
    }
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    BufReader::new(reader.take(MAX_REQUEST_BYTES))
        .read_line(&mut line)
        .await?;
    let answer = match serde_json::from_str::<Request>(&line) {
        Ok(request) => act(request, core, sealer).await,
        Err(error) => Err(error.into()),
    };
    let answer = answer.unwrap_or_else(|error| json!({"error": format!("{error:#}")}));
    writer.write_all(format!("{answer}\n").as_bytes()).await?;
    Ok(())
}

async fn act(request: Request, core: &Core, sealer: &Sealer) -> Result<Value> {
    let global = Scope::global();
    match request {
        Request::CreateAccount { limits } => {
            let account = accounts::new_account(limits)?;
            let (key, secret) = accounts::new_key(sealer, &account.id)?;
            core.write(&global, |tx| {
                tx.put(account.clone())?;
                tx.put(key.clone())
            })
            .await?;
            Ok(credentials(&key, &secret))
        }
        Request::CreateKey { account } => {
            let (key, secret) = accounts::new_key(sealer, &account)?;
            let known = core
                .write(&global, |tx| match tx.get::<Account>(&account) {
                    Some(_) => tx.put(key.clone()).map(|()| true),
                    None => Ok(false),
                })
                .await?;
            anyhow::ensure!(known, "there is no account {account:?}");
            Ok(credentials(&key, &secret))
        }
        Request::DeleteKey { key } => {
            let known = core
                .write(&global, |tx| {
                    let known = tx.get::<AccessKey>(&key).is_some();
                    tx.delete::<AccessKey>(&key);
                    Ok(known)
                })
                .await?;
            anyhow::ensure!(known, "there is no key {key:?}");
            Ok(json!({"access_key_id": key}))
        }
        Request::VerifyAudit {} => {
            let folder = core.config.state.clone();
            let summary = tokio::task::spawn_blocking(move || audit::verify(&folder)).await??;
            Ok(json!({
                "entries": summary.entries,
                "first": summary.first,
                "last_hash": summary.last_hash,
            }))
        }
        Request::RemoveHost {
            name,
            force,
            void_until_s,
        } => {
            let held = removal::remove(core, &name, force, void_until_s).await?;
            let had_joined = held.is_some();
            let held = held.unwrap_or_default();
            Ok(json!({"removed": name, "had_joined": had_joined, "held": held}))
        }
        Request::ListHosts {} => core.peek(|view| {
            let mut held = Held::by_node(view);
            let host = |row: &Arc<Node>| {
                json!({
                    "name": row.name,
                    "reachable": core.fleet.reachable(&row.name),
                    "underlay": row.underlay,
                    "guest_mtu": row.guest_mtu,
                    "vcpus": row.vcpus,
                    "used_vcpus": row.used_vcpus,
                    "memory_mib": row.memory_mib,
                    "used_memory_mib": row.used_memory_mib,
                    "holds": held.remove(row.name.as_str()).unwrap_or_default(),
                })
            };
            let hosts: Vec<Value> = view.all::<Node>(&global).map(host).collect();
            Ok(json!({"hosts": hosts}))
        }),
        Request::ListAccounts {} => core.peek(|view| {
            let keys: Vec<_> = view.all::<AccessKey>(&global).collect();
            let account = |row: &Arc<Account>| {
                let keys = keys.iter().filter(|key| key.account == row.id);
                let keys: Vec<&str> = keys.map(|key| key.id.as_str()).collect();
                json!({"account_id": row.id, "limits": row.limits, "access_keys": keys})
            };
            let accounts: Vec<Value> = view.all::<Account>(&global).map(account).collect();
            Ok(json!({"accounts": accounts}))
        }),
    }
}

fn credentials(key: &AccessKey, secret: &str) -> Value {
    json!({
        "account_id": key.account,
        "access_key_id": key.id,
        "secret_access_key": secret,
    })
}
