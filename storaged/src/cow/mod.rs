//! Copy-on-write: between a request and the files that hold a volume's bytes.
//!
//! ```text
//!   slot ──Op──▶ head ──▶ map: where does this grain lie?
//!                 │
//!      top layer  ├──▶ the same READV/WRITEV, the same offset, another file
//!      below      ├──▶ read: from there.  write: claim the grain, then as above
//!      nowhere    └──▶ read: zeros.       write: claim the grain
//! ```
//! A volume is a list of *layers*, sparse files in which every grain (64 KiB) lies at
//! its own offset, and a *map* that says in which one each grain is ([`map`]). The
//! last layer is the volume's own and takes all writes; the others are shared with
//! snapshots, images and other volumes, and never change. Nothing is ever moved, so
//! the file system does all allocation, and the hot path (a grain that the volume has
//! already) is one look-up and one operation of the ring, without a copy.
//!
//! **Claiming** a grain makes it the volume's own: all 64 KiB of it are written to the
//! last layer, merged from the guest's bytes and what it held, and then the map's log
//! ([`log`]) says so. Until then the grain is where it was. A change only ever goes
//! from a lower layer to *nowhere* (discard) or to the last layer, so a grain changes
//! at most twice in a checkpoint's life and the log needs no compaction while it runs.
//!
//! **Ordering**, which is all that crash consistency rests on:
//!
//! 1. The log's frame is written after the grain's data was, and a request completes
//!    after its frame. storaged's death therefore loses no completed write: the page
//!    cache has both.
//! 2. A flush syncs the last layer, then writes a commit for the frames that were
//!    there before that sync began, then syncs the log. After the host's death only
//!    what was committed counts; the data that it speaks of was durable before.
//! 3. Opening syncs the last layer, then writes a new checkpoint under the present
//!    boot id and renames it over the old file. A reader finds the old or the new.
//! 4. A layer is frozen (snapshot) only after such an opening.
//! 5. A frozen layer's grain is freed only when no map's *committed* state has it.
//!
//! Claims are for whole grains, so no state depends on a hole of a file being there,
//! and bytes that a reverted claim left behind are never read.

mod claim;
pub mod detour;
pub mod head;
pub mod log;
pub mod map;
mod read;
pub mod store;
mod writer;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod sim;
