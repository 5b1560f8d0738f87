//! Which layer holds which grain of a volume.

/// Bytes of one grain, the unit in which layers share and take over.
pub const GRAIN_BYTES: u64 = 64 * 1024;
/// Grains that a map answers for as one while they lie in one place (256 MiB).
pub const CHUNK_GRAINS: usize = 4096;
/// Most layers of one volume.
pub const MAX_LAYERS: usize = 255;

/// Where a grain lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(pub u8);

impl Place {
    /// Nowhere: it reads as zeros.
    pub const ZERO: Self = Self(0);

    /// The layer of this index in the volume's list.
    ///
    /// # Panics
    /// Past [`MAX_LAYERS`].
    #[must_use]
    pub fn layer(index: usize) -> Self {
        assert!(index < MAX_LAYERS);
        Self(index as u8 + 1)
    }

    /// Index of the layer, if there is one.
    #[must_use]
    pub fn index(self) -> Option<usize> {
        usize::from(self.0).checked_sub(1)
    }
}

#[derive(Clone)]
enum Chunk {
    Uniform(Place),
    Mixed(Box<[Place; CHUNK_GRAINS]>),
}

/// The places of all grains. Memory: at most one byte a grain, and none for chunks
/// that lie in one place.
#[derive(Clone)]
pub struct Map {
    grains: u64,
    chunks: Vec<Chunk>,
}

/// Grains of a volume of `size_bytes`; the last may be cut.
#[must_use]
pub fn grains(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(GRAIN_BYTES)
}

fn split(grain: u64) -> (usize, usize) {
    let chunk = CHUNK_GRAINS as u64;
    ((grain / chunk) as usize, (grain % chunk) as usize)
}

impl Map {
    /// A map of a volume of `size_bytes` that is all zeros.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        let mut map = Self {
            grains: 0,
            chunks: Vec::new(),
        };
        map.grow(size_bytes);
        map
    }

    /// Covers `size_bytes` from now on, if it covered less; what is new is zeros.
    pub fn grow(&mut self, size_bytes: u64) {
        self.grains = self.grains.max(grains(size_bytes));
        let chunks = self.grains.div_ceil(CHUNK_GRAINS as u64) as usize;
        self.chunks
            .resize_with(chunks, || Chunk::Uniform(Place::ZERO));
    }

    /// How many grains it covers.
    #[must_use]
    pub fn grains(&self) -> u64 {
        self.grains
    }

    /// Where `grain` lies; past the end: nowhere.
    #[must_use]
    pub fn get(&self, grain: u64) -> Place {
        let (chunk, at) = split(grain);
        match self.chunks.get(chunk) {
            Some(Chunk::Uniform(place)) => *place,
            Some(Chunk::Mixed(places)) => places[at],
            None => Place::ZERO,
        }
    }

    /// `count` grains from `first` on lie in `place`; what is past the end is ignored.
    pub fn set(&mut self, first: u64, count: u64, place: Place) {
        let mut grain = first;
        let end = first.saturating_add(count).min(self.grains);
        while grain < end {
            let (index, at) = split(grain);
            let n = (CHUNK_GRAINS - at).min((end - grain) as usize);
            let whole = n == CHUNK_GRAINS || (at == 0 && end == self.grains);
            match &mut self.chunks[index] {
                chunk if whole => *chunk = Chunk::Uniform(place),
                Chunk::Uniform(same) if *same == place => {}
                Chunk::Mixed(places) => places[at..at + n].fill(place),
                chunk => {
                    let Chunk::Uniform(old) = *chunk else {
                        return;
                    };
                    let mut places = Box::new([old; CHUNK_GRAINS]);
                    places[at..at + n].fill(place);
                    *chunk = Chunk::Mixed(places);
                }
            }
            grain += n as u64;
        }
    }

    /// Where the byte at `offset` lies, and how many of `len` bytes from there on lie
    /// in the same place (at least one grain's rest is looked at, at most `len`).
    #[must_use]
    pub fn extent(&self, offset: u64, len: u64) -> (Place, u64) {
        let first = offset / GRAIN_BYTES;
        let place = self.get(first);
        let end = offset + len;
        let mut grain = first + 1;
        while grain * GRAIN_BYTES < end {
            let (index, at) = split(grain);
            if at == 0
                && let Some(Chunk::Uniform(whole)) = self.chunks.get(index)
                && *whole == place
            {
                grain += CHUNK_GRAINS as u64;
            } else if self.get(grain) == place {
                grain += 1;
            } else {
                break;
            }
        }
        (place, (grain * GRAIN_BYTES).min(end) - offset)
    }

    /// Runs of grains in one place: first grain, count, place; in order, all covered.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64, Place)> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let left = self.grains.checked_sub(at).filter(|left| *left > 0)?;
            let (place, len) = self.extent(at * GRAIN_BYTES, left * GRAIN_BYTES);
            let run = (at, len / GRAIN_BYTES, place);
            at += run.1;
            Some(run)
        })
    }

    /// How many grains lie in `place`.
    #[must_use]
    pub fn count(&self, place: Place) -> u64 {
        self.runs().filter(|r| r.2 == place).map(|r| r.1).sum()
    }

    /// Appends the chunks' bytes: a tag, then one place or all of them.
    pub fn encode(&self, into: &mut Vec<u8>) {
        for chunk in &self.chunks {
            match chunk {
                Chunk::Uniform(place) => into.extend([0, place.0]),
                Chunk::Mixed(places) => {
                    into.push(1);
                    into.extend(places.iter().map(|place| place.0));
                }
            }
        }
    }

    /// From what [`Self::encode`] wrote of a volume of `size_bytes` with `layers`
    /// layers; `None` if the bytes are anything else.
    #[must_use]
    pub fn decode(size_bytes: u64, layers: usize, mut bytes: &[u8]) -> Option<Self> {
        let good = |places: &[u8]| places.iter().all(|place| usize::from(*place) <= layers);
        let grains = grains(size_bytes);
        let count = grains.div_ceil(CHUNK_GRAINS as u64);
        // A chunk is two bytes at least, so a lie about the size costs no memory.
        if count > bytes.len() as u64 / 2 {
            return None;
        }
        let mut chunks = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let (tag, rest) = bytes.split_first()?;
            let n = match tag {
                0 => 1,
                1 => CHUNK_GRAINS,
                _ => return None,
            };
            let places = rest.get(..n).filter(|places| good(places))?;
            chunks.push(if n == 1 {
                Chunk::Uniform(Place(places[0]))
            } else {
                let mut all = Box::new([Place::ZERO; CHUNK_GRAINS]);
                for (to, from) in all.iter_mut().zip(places) {
                    *to = Place(*from);
                }
                Chunk::Mixed(all)
            });
            bytes = &rest[n..];
        }
        bytes.is_empty().then_some(Self { grains, chunks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const G: u64 = GRAIN_BYTES;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn it_equals_a_plain_array(
            grains in 1u64..10_000,
            sets in prop::collection::vec((0u64..10_000, 1u64..6_000, 0u8..4), 0..12),
            asks in prop::collection::vec((0u64..10_000 * G, 1u64..5_000 * G), 1..20),
        ) {
            let size = grains * G - 4096;
            let mut map = Map::new(size);
            let mut naive = vec![Place::ZERO; grains as usize];
            for (first, count, place) in sets {
                map.set(first, count, Place(place));
                let range = (first as usize).min(naive.len())..((first + count) as usize).min(naive.len());
                naive[range].fill(Place(place));
            }
            let mut bytes = Vec::new();
            map.encode(&mut bytes);
            prop_assert!(Map::decode(size, 2, &bytes).is_none() || !naive.contains(&Place(3)));
            let map = Map::decode(size, 3, &bytes).unwrap();
            for (offset, len) in asks {
                let offset = offset % (grains * G);
                let len = len.min(grains * G - offset);
                let (place, got) = map.extent(offset, len);
                let expected = (offset..).step_by(G as usize / 4).take_while(|at| {
                    at < &(offset + len) && naive[(at / G) as usize] == place
                }).last().unwrap();
                prop_assert_eq!(naive[(offset / G) as usize], place);
                prop_assert!(got > expected - offset && got <= len);
                let end = offset + got;
                prop_assert!(got == len || (end.is_multiple_of(G) && naive[(end / G) as usize] != place));
            }
            let mut at = 0;
            for (first, count, place) in map.runs() {
                prop_assert_eq!(first, at);
                at += count;
                prop_assert!(naive[first as usize..at as usize].iter().all(|p| *p == place));
            }
            prop_assert_eq!(at, grains);
        }
    }

    #[test]
    fn what_is_no_map_is_none() {
        let mut bytes = Vec::new();
        Map::new(5000 * G).encode(&mut bytes);
        assert_eq!(bytes.len(), 4);
        assert!(Map::decode(5000 * G, 1, &bytes).is_some());
        assert!(Map::decode(5000 * G, 1, &bytes[..3]).is_none());
        assert!(Map::decode(4000 * G, 1, &bytes).is_none());
        assert!(Map::decode(u64::MAX, 1, &bytes).is_none());
        assert!(Map::decode(5000 * G, 1, &[0, 0, 2, 0]).is_none());
        assert!(Map::decode(5000 * G, 1, &[0, 2, 0, 0]).is_none());
    }
}
