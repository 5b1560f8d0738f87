//! Block devices: what the node asks of storaged.

use super::error::EffectError;
use ocs_storaged_api::{
    Client, ClientError, ErrorCode, Origin, Reply, Request, SnapshotOf, SnapshotStatus, VolumeKind,
    VolumeLimits, VolumeName, VolumeStatus,
};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// storaged answers after what was asked is durable; a first content may be copied.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A copy under a key reads and writes all that it copies: up to 16 TiB.
const COPY_TIMEOUT: Duration = Duration::from_secs(48 * 3600);

/// What a snapshot is a copy of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// A snapshot or an image.
    pub of: Origin,
    /// Its size.
    pub size_bytes: u64,
    /// All of it is encrypted at rest.
    pub encrypted: bool,
}

/// A volume's definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// Its name at storaged.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// How it keeps its bytes.
    pub kind: VolumeKind,
    /// First content, or none.
    pub image: Option<String>,
    /// First content: a snapshot.
    pub snapshot: Option<String>,
    /// Encrypted at rest.
    pub encrypted: bool,
    /// What it is held to; none: nothing is said of it.
    pub limits: Option<VolumeLimits>,
}

/// What is asked of storaged; all of it may be repeated.
pub trait Blocks: Send + Sync {
    /// The volume shall exist, grown where it is smaller.
    fn put(&self, volume: &Definition) -> Result<(), EffectError>;
    /// It shall be served on `socket`.
    fn attach(&self, name: &str, socket: &Path, read_only: bool) -> Result<(), EffectError>;
    /// It shall be served to nobody; absent is fine.
    fn detach(&self, name: &str) -> Result<(), EffectError>;
    /// It shall not exist; absent is fine.
    fn delete(&self, name: &str) -> Result<(), EffectError>;
    /// All there are.
    fn list(&self) -> Result<Vec<VolumeStatus>, EffectError>;
    /// The snapshot shall exist; if it does not, these others come to be with it.
    fn snapshot(
        &self,
        snapshot: &str,
        volume: &str,
        with: Vec<SnapshotOf>,
    ) -> Result<(), EffectError>;
    /// The snapshot shall exist, as a copy.
    fn copy(&self, snapshot: &str, copy: &Copied) -> Result<(), EffectError>;
    /// It shall not; absent is fine.
    fn delete_snapshot(&self, snapshot: &str) -> Result<(), EffectError>;
    /// All there are.
    fn snapshots(&self) -> Result<Vec<SnapshotStatus>, EffectError>;
}

/// storaged itself, over its control socket; connects again after its restarts.
pub struct Storaged {
    socket: PathBuf,
    client: Mutex<Option<Client>>,
}

impl Storaged {
    /// The storaged that listens on `socket`, now or later.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            client: Mutex::new(None),
        }
    }

    fn call(&self, request: &Request) -> Result<Reply, ClientError> {
        let mut held = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        // A connection kept from before may be to a storaged that is no more:
        // every request may be repeated, so once more on a new one.
        if let Some(client) = held.as_mut() {
            match client.call(request) {
                Err(ClientError::Transport(_) | ClientError::Protocol(_)) => *held = None,
                other => return other,
            }
        }
        let mut client = Client::connect(&self.socket, TIMEOUT)?;
        let reply = client.call(request);
        if !matches!(
            reply,
            Err(ClientError::Transport(_) | ClientError::Protocol(_))
        ) {
            *held = Some(client);
        }
        reply
    }

    fn ask(&self, request: &Request) -> Result<(), EffectError> {
        Ok(self.call(request).map(|_| ())?)
    }

    fn ask_unless_absent(&self, request: &Request) -> Result<(), EffectError> {
        match self.call(request) {
            Err(ClientError::Refused {
                code: ErrorCode::NotFound,
                ..
            }) => Ok(()),
            other => Ok(other.map(|_| ())?),
        }
    }
}

impl Blocks for Storaged {
    fn put(&self, volume: &Definition) -> Result<(), EffectError> {
        let name = VolumeName(volume.name.clone());
        let put = self.call(&Request::PutVolume {
            volume: name.clone(),
            size_bytes: volume.size_bytes,
            kind: volume.kind,
            image: volume.image.clone(),
            snapshot: volume.snapshot.clone().map(VolumeName),
            encrypted: volume.encrypted,
        });
        let put = match put {
            // Of another size perhaps: what cannot be grown so is told again.
            Err(ClientError::Refused {
                code: ErrorCode::Conflict,
                ..
            }) => self.call(&Request::ResizeVolume {
                volume: name.clone(),
                size_bytes: volume.size_bytes,
            }),
            other => other,
        };
        let limited = put.and_then(|_| match &volume.limits {
            Some(limits) => self
                .call(&Request::SetLimits {
                    volume: name,
                    limits: limits.clone(),
                })
                .map(drop),
            None => Ok(()),
        });
        limited.map_err(|e| EffectError::from(e).doing(format_args!("volume {}", volume.name)))
    }

    fn attach(&self, name: &str, socket: &Path, read_only: bool) -> Result<(), EffectError> {
        self.ask(&Request::Attach {
            volume: VolumeName(name.to_owned()),
            socket: socket.to_owned(),
            read_only,
        })
        .map_err(|e| e.doing(format_args!("attaching {name}")))
    }

    fn detach(&self, name: &str) -> Result<(), EffectError> {
        self.ask_unless_absent(&Request::Detach {
            volume: VolumeName(name.to_owned()),
        })
        .map_err(|e| e.doing(format_args!("detaching {name}")))
    }

    fn delete(&self, name: &str) -> Result<(), EffectError> {
        self.ask_unless_absent(&Request::DeleteVolume {
            volume: VolumeName(name.to_owned()),
        })
        .map_err(|e| e.doing(format_args!("deleting {name}")))
    }

    fn list(&self) -> Result<Vec<VolumeStatus>, EffectError> {
        match self.call(&Request::List)? {
            Reply::Volumes { volumes } => Ok(volumes),
            other => Err(EffectError::Transient(format!(
                "storaged answered a list with {other:?}"
            ))),
        }
    }

    fn snapshot(
        &self,
        snapshot: &str,
        volume: &str,
        with: Vec<SnapshotOf>,
    ) -> Result<(), EffectError> {
        self.ask(&Request::PutSnapshot {
            snapshot: VolumeName(snapshot.to_owned()),
            volume: VolumeName(volume.to_owned()),
            with,
        })
        .map_err(|e| e.doing(format_args!("snapshot {snapshot}")))
    }

    fn copy(&self, snapshot: &str, copy: &Copied) -> Result<(), EffectError> {
        let request = Request::CopySnapshot {
            snapshot: VolumeName(snapshot.to_owned()),
            of: copy.of.clone(),
            size_bytes: copy.size_bytes,
            encrypted: copy.encrypted,
        };
        // Nobody else waits for its end, so it has a connection of its own.
        let copied = Client::connect(&self.socket, COPY_TIMEOUT)
            .and_then(|mut client| client.call(&request));
        let copied = copied.map(drop).map_err(EffectError::from);
        copied.map_err(|e| e.doing(format_args!("copy {snapshot}")))
    }

    fn delete_snapshot(&self, snapshot: &str) -> Result<(), EffectError> {
        self.ask(&Request::DeleteSnapshot {
            snapshot: VolumeName(snapshot.to_owned()),
        })
        .map_err(|e| e.doing(format_args!("deleting {snapshot}")))
    }

    fn snapshots(&self) -> Result<Vec<SnapshotStatus>, EffectError> {
        match self.call(&Request::ListSnapshots)? {
            Reply::Snapshots { snapshots } => Ok(snapshots),
            other => Err(EffectError::Transient(format!(
                "storaged answered a list with {other:?}"
            ))),
        }
    }
}

/// storaged, or nobody where it has died: for the end of the host, which must come
/// all the same. What it was not told, the next node's sweep makes good.
pub struct Perhaps(pub Storaged);

impl Perhaps {
    fn forgive(result: Result<(), EffectError>) -> Result<(), EffectError> {
        match result {
            Err(EffectError::Transient(why)) => {
                tracing::warn!(why, "left for the next start");
                Ok(())
            }
            other => other,
        }
    }
}

impl Blocks for Perhaps {
    fn put(&self, volume: &Definition) -> Result<(), EffectError> {
        self.0.put(volume)
    }

    fn attach(&self, name: &str, socket: &Path, read_only: bool) -> Result<(), EffectError> {
        self.0.attach(name, socket, read_only)
    }

    fn detach(&self, name: &str) -> Result<(), EffectError> {
        Self::forgive(self.0.detach(name))
    }

    fn delete(&self, name: &str) -> Result<(), EffectError> {
        Self::forgive(self.0.delete(name))
    }

    fn list(&self) -> Result<Vec<VolumeStatus>, EffectError> {
        Ok(self.0.list().unwrap_or_default())
    }

    fn snapshot(
        &self,
        snapshot: &str,
        volume: &str,
        with: Vec<SnapshotOf>,
    ) -> Result<(), EffectError> {
        self.0.snapshot(snapshot, volume, with)
    }

    fn copy(&self, snapshot: &str, copy: &Copied) -> Result<(), EffectError> {
        self.0.copy(snapshot, copy)
    }

    fn delete_snapshot(&self, snapshot: &str) -> Result<(), EffectError> {
        self.0.delete_snapshot(snapshot)
    }

    fn snapshots(&self) -> Result<Vec<SnapshotStatus>, EffectError> {
        self.0.snapshots()
    }
}
