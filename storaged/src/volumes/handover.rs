//! All attachments, from one storaged to the next ([`crate::handover`]).

use super::Volumes;
use super::credits::Past;
use super::table::Record;
use crate::handover::{Giving, Taking};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

impl Volumes {
    /// Gives everything to the storaged that asked on `stream`. On success nothing is
    /// left to do here but to exit; on an error everything is served here again.
    pub fn hand_over(
        &self,
        stream: UnixStream,
        lock: &File,
        listener: &UnixListener,
    ) -> io::Result<()> {
        self.closing.store(true, Ordering::Relaxed);
        let _closed = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        self.store.table().closed = true;
        let outcome = Giving::begin(stream, lock, listener).and_then(|giving| {
            let attachments = std::mem::take(&mut self.live().attachments);
            let mut broken = Ok(());
            for (volume, attachment) in attachments {
                if broken.is_err() {
                    attachment.stop();
                } else if let Some(moved) = attachment.freeze() {
                    broken = giving.give(&volume, moved);
                }
            }
            broken.and_then(|()| {
                self.save_credits(true);
                giving.end()
            })
        });
        if outcome.is_err() {
            self.store.table().closed = false;
            self.closing.store(false, Ordering::Relaxed);
            self.save_credits(false);
            let records = self.store.table().volumes().clone();
            self.connect_all(&records)?;
        }
        outcome
    }

    /// Serves what another storaged gives, on the connections that it gives; `past` is what
    /// its file said of credits before.
    pub(super) fn take_over(&self, mut taking: Taking, past: &Past) {
        let mut moved_count = 0;
        loop {
            match taking.receive() {
                Ok(Some((name, moved))) => {
                    let attached = self.find(&name).and_then(|(record, volume)| {
                        record.attached.map(|attached| (volume, attached))
                    });
                    let Some((volume, attached)) = attached else {
                        tracing::error!(volume = name, "given, and not attached here");
                        continue;
                    };
                    match self.connect(&name, &volume, &attached, Some(moved)) {
                        Ok(()) => moved_count += 1,
                        Err(error) => tracing::error!(volume = name, %error, "not taken over"),
                    }
                }
                Ok(None) => {
                    self.settle_credits(past);
                    break;
                }
                Err(error) => {
                    tracing::error!(%error, "the other storaged is gone");
                    return;
                }
            }
        }
        tracing::info!(volumes = moved_count, "taken over");
        if let Err(error) = taking.done() {
            tracing::error!(%error, "the other storaged was not told");
        }
    }

    /// Connects all that shall be attached and is not.
    pub(super) fn connect_all(&self, records: &BTreeMap<String, Record>) -> io::Result<()> {
        for (name, record) in records {
            if let Some(attached) = &record.attached
                && !self.live().attachments.contains_key(name)
                && let Some((_, volume)) = self.find(name)
            {
                self.connect(name, &volume, attached, None)?;
            }
        }
        Ok(())
    }
}
