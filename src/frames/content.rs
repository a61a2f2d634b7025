//! What frames hold: copied whole, and bytes in and out.

use super::{Frame, FrameAllocator, FrameError, PhysMem, bytes};
use crate::addr::{Address, Hpa, PAGE_SIZE};
use crate::counting::{Counted, add};

impl<M: PhysMem> FrameAllocator<M> {
    /// A new frame with the content of the one at `from`.
    #[inline]
    pub fn alloc_copy(&self, from: Hpa) -> Result<Frame, FrameError> {
        let number = self.counts.number(from)?;
        if self.counts.count(&self.mem, number) == 0 {
            return Err(FrameError::NotAllocated(from));
        }
        let frame = self.alloc()?;
        // SAFETY: both frames are managed and allocated, the new one to us alone, so they differ. A guest that still
        // writes the old one on another CPU can only spoil bytes of its own.
        unsafe { bytes::copy(&self.mem, from, frame.address()) };
        Ok(frame)
    }

    /// A new frame with a whole one's bytes from memory that is not managed.
    ///
    /// # Safety
    /// As for [`FrameAllocator::copy_host_into`].
    #[inline(always)]
    pub unsafe fn alloc_host_copy(&self, from: Hpa) -> Result<Frame, FrameError> {
        let frame = self.alloc_inline()?;
        // SAFETY: as in `copy_host_into`; the frame is fresh.
        unsafe { bytes::copy(&self.mem, from, frame.address()) };
        Ok(frame)
    }

    /// Copies the frame at `from` into a frame that nobody else refers to.
    #[inline]
    pub fn copy_into(&self, frame: &Frame, from: Hpa) -> Result<(), FrameError> {
        if self.count(from) == 0 {
            return Err(FrameError::NotAllocated(from));
        }
        if from == frame.address() {
            return Err(FrameError::NotExclusive(from));
        }
        self.check_exclusive(frame)?;
        // SAFETY: both frames are managed and allocated, `frame` to the caller alone, so that the other, which an entry
        // refers to, is another one. A guest that still writes that one can only spoil bytes of its own.
        unsafe { bytes::copy(&self.mem, from, frame.address()) };
        Ok(())
    }

    /// Fills a frame that nobody else refers to with `len` bytes (at most a frame's) from memory that is not managed, and
    /// the rest of it with zeroes.
    ///
    /// # Safety
    /// The source must be one that `mem` reaches as it does managed frames, and nobody may write there meanwhile.
    pub unsafe fn copy_host_into(
        &self,
        frame: &Frame,
        from: Hpa,
        len: u64,
    ) -> Result<(), FrameError> {
        self.check_exclusive(frame)?;
        let len = len.min(PAGE_SIZE) as usize;
        add(Counted::Bytes, PAGE_SIZE);
        // SAFETY: the frame is managed and the caller's alone; the source is what the caller vouches for, and cannot be
        // the frame, as that is managed.
        unsafe {
            let to = self.mem.ptr(frame.address());
            self.mem.ptr(from).copy_to_nonoverlapping(to, len);
            to.add(len).write_bytes(0, PAGE_SIZE as usize - len);
        }
        Ok(())
    }

    /// Fills the frame that one entry, and nobody else, refers to with `len` bytes (at most a frame's) and zeroes behind
    /// them.
    ///
    /// # Safety
    /// The frame must hold plain bytes. The source must be one that `mem` reaches as it does managed frames, another frame
    /// than the one to be filled, and nobody may write there meanwhile.
    #[inline]
    pub unsafe fn overwrite(&self, to: Hpa, from: Hpa, len: u64) -> Result<(), FrameError> {
        self.check_alone(to)?;
        let len = len.min(PAGE_SIZE) as usize;
        add(Counted::Bytes, PAGE_SIZE);
        // SAFETY: the frame is managed and referred to by the one entry; the rest is what the caller vouches for.
        unsafe {
            let to = self.mem.ptr(to);
            self.mem.ptr(from).copy_to_nonoverlapping(to, len);
            if len < PAGE_SIZE as usize {
                to.add(len).write_bytes(0, PAGE_SIZE as usize - len);
            }
        }
        Ok(())
    }

    /// Fills a frame with the page at `from`.
    ///
    /// # Safety
    /// The frame must be managed, hold plain bytes, and be referred to by one entry of the caller's and nobody else. The
    /// source must be one that `mem` reaches as it does managed frames, another page, and nobody may write there
    /// meanwhile.
    #[inline(always)]
    pub unsafe fn overwrite_page(&self, to: Hpa, from: Hpa) {
        debug_assert!(self.count(to) == 1 && from != to);
        // SAFETY: the caller's.
        unsafe { bytes::copy(&self.mem, from, to) };
    }

    #[inline]
    fn check_alone(&self, at: Hpa) -> Result<(), FrameError> {
        match self.count(at) {
            1 => Ok(()),
            _ => Err(FrameError::NotExclusive(at)),
        }
    }

    /// Copies bytes out of memory that is not managed, from `at` up to the end of its page at most.
    ///
    /// # Safety
    /// As for [`FrameAllocator::copy_host_into`].
    pub unsafe fn read_host(&self, at: Hpa, into: &mut [u8]) -> Result<(), FrameError> {
        if into.len() as u64 > PAGE_SIZE - at.page_offset() {
            return Err(FrameError::NotManaged(at));
        }
        // SAFETY: the bytes do not pass the end of the page, and the caller vouches for the page.
        unsafe { bytes::read(&self.mem, at, into) };
        Ok(())
    }

    /// Copies bytes out of an allocated frame, from `at` on. They must not pass the end of that 4 KiB frame.
    pub fn read(&self, at: Hpa, into: &mut [u8]) -> Result<(), FrameError> {
        self.check_bytes(at, into.len())?;
        // SAFETY: just checked.
        unsafe { bytes::read(&self.mem, at, into) };
        Ok(())
    }

    /// Copies bytes into an allocated frame, from `at` on. They must not pass the end of that 4 KiB frame.
    ///
    /// # Safety
    /// The frame must hold plain bytes (a guest's memory, an image): nothing that the hypervisor or the CPU keeps its own
    /// data in, such as tables or a VMCS.
    pub unsafe fn write(&self, at: Hpa, from: &[u8]) -> Result<(), FrameError> {
        self.check_bytes(at, from.len())?;
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
        debug_assert!(self.check_bytes(at, 8).is_ok());
        // SAFETY: what an entry refers to is managed and allocated.
        unsafe { bytes::words(&self.mem, at) }
    }

    /// Puts `new` at `at`, a multiple of 8, if `old` stands there, in one step, also for CPUs. Yields whether it did.
    ///
    /// # Safety
    /// As for [`FrameAllocator::write`].
    pub unsafe fn exchange(&self, at: Hpa, old: u64, new: u64) -> Result<bool, FrameError> {
        self.check_bytes(at, 8)?;
        // SAFETY: the bounds are just checked, and the caller vouches for the frame.
        Ok(unsafe { bytes::exchange(&self.mem, at, old, new) })
    }

    fn check_exclusive(&self, frame: &Frame) -> Result<(), FrameError> {
        match self.count(frame.address()) {
            1 => Ok(()),
            _ => Err(FrameError::NotExclusive(frame.address())),
        }
    }

    fn check_bytes(&self, at: Hpa, len: usize) -> Result<(), FrameError> {
        let frame = at.align_down(PAGE_SIZE);
        match self.counts.count(&self.mem, self.counts.number(frame)?) {
            0 => Err(FrameError::NotAllocated(frame)),
            _ if len as u64 > PAGE_SIZE - at.page_offset() => Err(FrameError::NotManaged(at)),
            _ => Ok(()),
        }
    }
}
