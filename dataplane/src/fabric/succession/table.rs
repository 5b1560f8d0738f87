//! A flow table's buckets, as far as a layout lets the loader at them.

use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use aya::maps::{Array, ArrayOfMaps, Map, MapData, MapError};
use ocs_dataplane_shared::flow::{BUCKET_WORDS, Bucket};
use ocs_dataplane_shared::layout::TABLE_FLAGS;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::fabric::error::{FabricError, map, system};
use crate::fabric::maps;

/// A table's buckets.
pub(super) enum Table {
    /// The memory that its programs use.
    Shared(Memory),
    /// Copies.
    Copied(Vec<Bucket>),
}

impl Table {
    /// Ours of a slot, to write to; `None`: it has none.
    pub(super) fn ours(
        tables: &ArrayOfMaps<MapData, MapData>,
        slot: u32,
        buckets: usize,
        name: &'static str,
    ) -> Result<Option<Self>, FabricError> {
        let Some((table, _)) = table_of(tables, slot, buckets, name)? else {
            return Ok(None);
        };
        let memory = Memory::of(&table, buckets, ProtFlags::READ | ProtFlags::WRITE)?;
        Ok(Some(Self::Shared(memory)))
    }

    /// A predecessor's. Before layout 7 none could be shared ([`TABLE_FLAGS`]).
    pub(super) fn theirs(
        tables: &ArrayOfMaps<MapData, MapData>,
        slot: u32,
        buckets: usize,
        name: &'static str,
    ) -> Result<Option<Self>, FabricError> {
        let Some((table, flags)) = table_of(tables, slot, buckets, name)? else {
            return Ok(None);
        };
        if flags & TABLE_FLAGS != 0 {
            let memory = Memory::of(&table, buckets, ProtFlags::READ)?;
            return Ok(Some(Self::Shared(memory)));
        }
        let table = Map::from_map_data(table).map_err(map(name))?;
        let table = Array::<_, [u64; BUCKET_WORDS]>::try_from(table).map_err(map(name))?;
        let copies = (0..table.len()).map(|index| {
            let first = table.get(&index, 0)?;
            let second = table.get(&index, 0)?;
            Ok(Bucket::of_copies(first, second))
        });
        let copies = copies.collect::<Result<_, MapError>>().map_err(map(name))?;
        Ok(Some(Self::Copied(copies)))
    }

    pub(super) fn buckets(&self) -> &[Bucket] {
        match self {
            Self::Shared(memory) => memory.buckets(),
            Self::Copied(buckets) => buckets,
        }
    }
}

/// A slot's table of so many buckets, and its flags; `None`: it has none.
fn table_of(
    tables: &ArrayOfMaps<MapData, MapData>,
    slot: u32,
    buckets: usize,
    name: &'static str,
) -> Result<Option<(MapData, u32)>, FabricError> {
    let Some(table) = maps::present(tables.get(&slot, 0)).map_err(map(name))? else {
        return Ok(None);
    };
    let info = table.info().map_err(map(name))?;
    if info.value_size() as usize != size_of::<Bucket>() || info.max_entries() as usize != buckets {
        return Err(FabricError::Object { kind: "map", name });
    }
    Ok(Some((table, info.map_flags())))
}

/// The memory of a table that is shared.
pub(super) struct Memory {
    start: NonNull<Bucket>,
    buckets: usize,
}

impl Memory {
    /// That of a table of so many buckets.
    fn of(table: &MapData, buckets: usize, access: ProtFlags) -> Result<Self, FabricError> {
        let failed = || system("map a flow table");
        let length = buckets * size_of::<Bucket>();
        // SAFETY: a new mapping, where the kernel chooses, of a map that is as long: its
        // buckets follow each other, since a bucket's size is a multiple of 8.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                access,
                MapFlags::SHARED,
                table.fd().as_fd(),
                0,
            )
        };
        let start = start.map_err(|error| failed()(error.into()))?;
        let nowhere = || failed()(io::ErrorKind::AddrNotAvailable.into());
        let start = NonNull::new(start.cast()).ok_or_else(nowhere)?;
        Ok(Self { start, buckets })
    }

    fn buckets(&self) -> &[Bucket] {
        // SAFETY: so many buckets are mapped for as long as this lives, page-aligned; they
        // are of atomic words, for which every pattern of bytes is a value, and which
        // programs share.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.buckets) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let length = self.buckets * size_of::<Bucket>();
        // SAFETY: this mapping is ours, of that length, and nothing borrows it any more.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), length) };
        debug_assert!(unmapped.is_ok());
    }
}
