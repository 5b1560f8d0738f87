//! What images are read from and written to: files, and memory for tests and fuzzers.

use rustix::fs::{SeekFrom, seek};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes at rest.
pub trait Source {
    /// How many.
    fn len(&self) -> io::Result<u64>;
    /// Fills `into` from `at` on.
    fn read_exact_at(&self, into: &mut [u8], at: u64) -> io::Result<()>;
    /// The next range of data at or behind `at`, start and end; what lies outside of
    /// such ranges reads as zeros. `None` if there is no more.
    fn data(&self, at: u64) -> io::Result<Option<(u64, u64)>> {
        let len = self.len()?;
        Ok((at < len).then_some((at, len)))
    }
    /// Are there none?
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

impl Source for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
    fn read_exact_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, into, at)
    }
    fn data(&self, at: u64) -> io::Result<Option<(u64, u64)>> {
        let start = match seek(self, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Ok(Some((start, seek(self, SeekFrom::Hole(start))?)))
    }
}

impl Source for [u8] {
    fn len(&self) -> io::Result<u64> {
        Ok(<[u8]>::len(self) as u64)
    }
    fn read_exact_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        let from = usize::try_from(at).ok().and_then(|at| self.get(at..));
        let part = from.and_then(|rest| rest.get(..into.len()));
        into.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl<S: Source + ?Sized> Source for &S {
    fn len(&self) -> io::Result<u64> {
        (**self).len()
    }
    fn read_exact_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        (**self).read_exact_at(into, at)
    }
    fn data(&self, at: u64) -> io::Result<Option<(u64, u64)>> {
        (**self).data(at)
    }
}

/// Where an image is written.
pub trait Sink {
    /// Writes all of `bytes` from `at` on.
    fn write_all_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Has this length from now on; what is new reads as zeros.
    fn set_len(&mut self, len: u64) -> io::Result<()>;
}

impl Sink for &File {
    fn write_all_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        FileExt::write_all_at(*self, bytes, at)
    }
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }
}

impl Sink for &mut Vec<u8> {
    fn write_all_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        let at = usize::try_from(at).map_err(io::Error::other)?;
        let end = at + bytes.len();
        if self.len() < end {
            self.resize(end, 0);
        }
        self[at..end].copy_from_slice(bytes);
        Ok(())
    }
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.resize(usize::try_from(len).map_err(io::Error::other)?, 0);
        Ok(())
    }
}
