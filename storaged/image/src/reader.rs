//! Any image, chunk by chunk.

use crate::qcow2::Header;
use crate::{CHUNK_BYTES, Format, ImageError, Source};

/// An image that is read.
pub struct Reader<S> {
    source: S,
    size_bytes: u64,
    qcow2: Option<Header>,
}

impl<S: Source> Reader<S> {
    /// Opens an image whose disk has at most `limit_bytes`.
    pub fn open(source: S, format: Format, limit_bytes: u64) -> Result<Self, ImageError> {
        let (size_bytes, qcow2) = match format {
            Format::Raw => (source.len()?, None),
            Format::Qcow2 => {
                let header = Header::read(&source)?;
                (header.size_bytes, Some(header))
            }
        };
        if size_bytes > limit_bytes {
            return Err(ImageError::Size {
                size_bytes,
                limit_bytes,
            });
        }
        Ok(Self {
            source,
            size_bytes,
            qcow2,
        })
    }

    /// What the file is.
    pub fn format(&self) -> Format {
        match self.qcow2 {
            Some(_) => Format::Qcow2,
            None => Format::Raw,
        }
    }

    /// The disk's size.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Calls `each` with every chunk that is not all zeros: its offset, a multiple of
    /// [`CHUNK_BYTES`], and its bytes, fewer only at the disk's end. In order.
    pub fn chunks<E: From<ImageError>>(
        &self,
        each: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut chunks = Chunks {
            size_bytes: self.size_bytes,
            at: 0,
            dirty: false,
            bytes: vec![0; CHUNK_BYTES],
            each,
        };
        match &self.qcow2 {
            Some(header) => header.clusters(&self.source, |at, bytes| chunks.take(at, bytes))?,
            None => self.raw(|at, bytes| chunks.take(at, bytes))?,
        }
        chunks.flush()
    }

    fn raw<E: From<ImageError>>(
        &self,
        mut each: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut bytes = vec![0; CHUNK_BYTES];
        let (mut at, mut end) = (0, 0);
        while at < self.size_bytes {
            if at >= end {
                let Some((start, stop)) = self.source.data(at).map_err(ImageError::from)? else {
                    break;
                };
                (at, end) = (start.max(at), stop.min(self.size_bytes));
                if at >= end {
                    break;
                }
            }
            let n = (end - at).min(CHUNK_BYTES as u64) as usize;
            let read = self.source.read_exact_at(&mut bytes[..n], at);
            read.map_err(ImageError::from)?;
            each(at, &bytes[..n])?;
            at += n as u64;
        }
        Ok(())
    }
}

/// Puts pieces together to chunks.
struct Chunks<F> {
    size_bytes: u64,
    at: u64,
    dirty: bool,
    bytes: Vec<u8>,
    each: F,
}

impl<F> Chunks<F> {
    /// The next piece; pieces are in order and do not overlap.
    fn take<E>(&mut self, mut at: u64, mut bytes: &[u8]) -> Result<(), E>
    where
        F: FnMut(u64, &[u8]) -> Result<(), E>,
    {
        while !bytes.is_empty() {
            let into = (at % CHUNK_BYTES as u64) as usize;
            let chunk = at - into as u64;
            if chunk != self.at {
                self.flush()?;
                self.at = chunk;
            }
            let (part, rest) = bytes.split_at(bytes.len().min(CHUNK_BYTES - into));
            if !is_zero(part) {
                self.bytes[into..into + part.len()].copy_from_slice(part);
                self.dirty = true;
            }
            (at, bytes) = (at + part.len() as u64, rest);
        }
        Ok(())
    }

    fn flush<E>(&mut self) -> Result<(), E>
    where
        F: FnMut(u64, &[u8]) -> Result<(), E>,
    {
        if std::mem::take(&mut self.dirty) {
            let len = (self.size_bytes - self.at).min(CHUNK_BYTES as u64) as usize;
            (self.each)(self.at, &self.bytes[..len])?;
            self.bytes.fill(0);
        }
        Ok(())
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    let words = bytes.chunks_exact(16);
    words.remainder().iter().all(|b| *b == 0) && words.into_iter().all(|w| w == [0; 16])
}
