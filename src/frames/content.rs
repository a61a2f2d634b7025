//! What frames hold: copied whole, and bytes in and out.

use super::{Frame, FrameAllocator, FrameError, PhysMem, bytes};
use crate::addr::{Address, Hpa, PAGE_SIZE};
use crate::counting::{Counted, add};

impl<M: PhysMem> FrameAllocator<M> {
    /// A new frame with the content of another.
    ///
    /// # Errors
    /// [`FrameError::OutOfFrames`] where none is free.
    #[inline(always)]
    pub fn alloc_copy(&self, from: &Frame) -> Result<Frame, FrameError> {
        let frame = self.alloc()?;
        // SAFETY: both frames are allocated, the new one to us alone, so they differ. A guest that still writes the old one
        // on another CPU can only spoil bytes of its own.
        unsafe { bytes::copy(&self.mem, from.address(), frame.address()) };
        Ok(frame)
    }

    /// A new frame with a whole one's bytes from memory that is not managed.
    ///
    /// # Errors
    /// [`FrameError::OutOfFrames`] where none is free.
    ///
    /// # Safety
    /// As for [`FrameAllocator::overwrite`].
    #[inline(always)]
    pub unsafe fn alloc_host_copy(&self, from: Hpa) -> Result<Frame, FrameError> {
        let frame = self.alloc()?;
        // SAFETY: as in `overwrite`; the frame is fresh.
        unsafe { bytes::copy(&self.mem, from, frame.address()) };
        Ok(frame)
    }

    /// Copies a frame into one that nobody else refers to.
    ///
    /// # Errors
    /// [`FrameError::NotExclusive`] where somebody does.
    #[inline]
    pub fn copy_into(&self, frame: &mut Frame, from: &Frame) -> Result<(), FrameError> {
        self.exclusive(frame)?;
        // SAFETY: both frames are allocated, `frame` to the caller alone, so that the other is another one. A guest that
        // still writes that one can only spoil bytes of its own.
        unsafe { bytes::copy(&self.mem, from.address(), frame.address()) };
        Ok(())
    }

    /// Fills a frame that nobody else refers to with `len` bytes (at most a frame's), and zeroes behind them.
    ///
    /// # Errors
    /// [`FrameError::NotExclusive`] where somebody does.
    ///
    /// # Safety
    /// The frame must hold plain bytes. The source must be one that `mem` reaches as it does managed frames, another frame
    /// than the one to be filled, and nobody may write there meanwhile.
    pub unsafe fn overwrite(&self, frame: &Frame, from: Hpa, len: u64) -> Result<(), FrameError> {
        self.exclusive(frame)?;
        let len = len.min(PAGE_SIZE) as usize;
        add(Counted::Bytes, PAGE_SIZE);
        // SAFETY: the frame is referred to by its holder alone; the rest is what the caller vouches for.
        unsafe {
            let to = self.mem.ptr(frame.address());
            self.mem.ptr(from).copy_to_nonoverlapping(to, len);
            to.add(len).write_bytes(0, PAGE_SIZE as usize - len);
        }
        Ok(())
    }

    /// Fills a frame with the page at `from`.
    ///
    /// # Safety
    /// As for [`FrameAllocator::overwrite`], and nobody else may refer to the frame.
    #[inline(always)]
    pub unsafe fn overwrite_page(&self, frame: &Frame, from: Hpa) {
        let to = frame.address();
        debug_assert!(self.count(to) == 1 && from != to);
        // SAFETY: the caller's.
        unsafe { bytes::copy(&self.mem, from, to) };
    }

    /// Copies bytes out of memory that is not managed, from `at` up to the end of its page at most.
    ///
    /// # Errors
    /// [`FrameError::OutOfFrame`] where they would pass it.
    ///
    /// # Safety
    /// As for [`FrameAllocator::overwrite`].
    pub unsafe fn read_host(&self, at: Hpa, into: &mut [u8]) -> Result<(), FrameError> {
        in_page(at, into.len())?;
        // SAFETY: the bytes do not pass the end of the page, and the caller vouches for the page.
        unsafe { bytes::read(&self.mem, at, into) };
        Ok(())
    }

    /// Copies bytes out of a frame, from `offset` on.
    ///
    /// # Errors
    /// [`FrameError::OutOfFrame`] where they would pass its end.
    pub fn read(&self, frame: &Frame, offset: u64, into: &mut [u8]) -> Result<(), FrameError> {
        let at = inside(frame, offset, into.len())?;
        // SAFETY: just checked.
        unsafe { bytes::read(&self.mem, at, into) };
        Ok(())
    }

    /// Copies bytes into a frame, from `offset` on.
    ///
    /// # Errors
    /// [`FrameError::OutOfFrame`] where they would pass its end.
    ///
    /// # Safety
    /// The frame must hold plain bytes (a guest's memory, an image): nothing that the hypervisor or the CPU keeps its own
    /// data in, such as tables or a VMCS.
    pub unsafe fn write(&self, frame: &Frame, offset: u64, from: &[u8]) -> Result<(), FrameError> {
        let at = inside(frame, offset, from.len())?;
        // SAFETY: the bounds are just checked, and the caller vouches for the frame.
        unsafe { bytes::write(&self.mem, at, from) };
        Ok(())
    }

    /// The words from `at` on, which must be a multiple of 8; those behind its frame are 0.
    ///
    /// # Safety
    /// An entry must refer to the frame.
    #[inline(always)]
    pub unsafe fn words<const N: usize>(&self, at: Hpa) -> [u64; N] {
        debug_assert!(self.count(at.align_down(PAGE_SIZE)) != 0);
        // SAFETY: what an entry refers to is managed and allocated.
        unsafe { bytes::words(&self.mem, at) }
    }

    /// Puts `new` at `offset`, a multiple of 8, if `old` stands there, in one step, also for CPUs. Returns whether it did.
    ///
    /// # Errors
    /// [`FrameError::OutOfFrame`] where that passes the end of the frame.
    ///
    /// # Safety
    /// As for [`FrameAllocator::write`].
    pub unsafe fn exchange(
        &self,
        frame: &Frame,
        offset: u64,
        old: u64,
        new: u64,
    ) -> Result<bool, FrameError> {
        let at = inside(frame, offset, 8)?;
        // SAFETY: the bounds are just checked, and the caller vouches for the frame.
        Ok(unsafe { bytes::exchange(&self.mem, at, old, new) })
    }
}

/// Where `len` bytes from `offset` of a frame on are, if they are in it.
fn inside(frame: &Frame, offset: u64, len: usize) -> Result<Hpa, FrameError> {
    let at = frame.address().as_u64().checked_add(offset.min(PAGE_SIZE));
    let at = Hpa::new(at.unwrap_or(u64::MAX));
    match offset {
        0..PAGE_SIZE => in_page(at, len).map(|()| at),
        _ => Err(FrameError::OutOfFrame(at)),
    }
}

/// Whether `len` bytes from `at` on do not pass the end of its page.
fn in_page(at: Hpa, len: usize) -> Result<(), FrameError> {
    if len as u64 > PAGE_SIZE - at.page_offset() {
        return Err(FrameError::OutOfFrame(at));
    }
    Ok(())
}
