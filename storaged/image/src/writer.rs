//! An image that is written, chunk by chunk, in order.

use crate::{CHUNK_BYTES, Format, ImageError, Sink, qcow2};
use std::io;

/// An image that is written; whole once [`Writer::finish`] returned.
pub struct Writer<S> {
    sink: S,
    size_bytes: u64,
    /// Where the next chunk may be at the earliest.
    next: u64,
    qcow2: Option<qcow2::Layout>,
}

impl<S: Sink> Writer<S> {
    /// An image of a disk of `size_bytes` zeros, in place of what `sink` holds.
    pub fn new(mut sink: S, format: Format, size_bytes: u64) -> Result<Self, ImageError> {
        if size_bytes > crate::MAX_BYTES {
            return Err(ImageError::Size {
                size_bytes,
                limit_bytes: crate::MAX_BYTES,
            });
        }
        sink.set_len(0)?;
        let qcow2 = match format {
            Format::Raw => {
                sink.set_len(size_bytes)?;
                None
            }
            Format::Qcow2 => Some(qcow2::Layout::new(size_bytes)),
        };
        Ok(Self {
            sink,
            size_bytes,
            next: 0,
            qcow2,
        })
    }

    /// Writes the chunk at `at`: a multiple of [`CHUNK_BYTES`], behind all before it,
    /// and whole unless the disk ends in it.
    pub fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), ImageError> {
        let chunk = CHUNK_BYTES as u64;
        let len = self.size_bytes.saturating_sub(at).min(chunk);
        if at < self.next || !at.is_multiple_of(chunk) || bytes.len() as u64 != len || len == 0 {
            let why = format!("a chunk of {} bytes at {at} is out of order", bytes.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why).into());
        }
        self.next = at + chunk;
        match &mut self.qcow2 {
            None => self.sink.write_all_at(bytes, at)?,
            Some(layout) => {
                let to = layout.place(&mut self.sink, at / chunk)?;
                self.sink.write_all_at(bytes, to)?;
            }
        }
        Ok(())
    }

    /// Ends the image: until then it is none.
    pub fn finish(mut self) -> Result<(), ImageError> {
        if let Some(layout) = self.qcow2.take() {
            layout.finish(&mut self.sink)?;
        }
        Ok(())
    }
}
