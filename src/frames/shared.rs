//! Frames that end by themselves, and values in such: for what is too large for the stack, outlives a call, or is held by several.

use super::{Frame, FrameAllocator, FrameError, PhysMem};
use crate::addr::{Hpa, PAGE_SIZE};
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};

/// A frame that is given back when it is dropped, for who has the allocator at hand.
pub struct FrameGuard<'f, M: PhysMem> {
    frames: &'f FrameAllocator<M>,
    frame: ManuallyDrop<Frame>,
}

impl<'f, M: PhysMem> FrameGuard<'f, M> {
    /// Keeps the frame until the guard is dropped. It must come from `frames`.
    pub const fn new(frames: &'f FrameAllocator<M>, frame: Frame) -> Self {
        let frame = ManuallyDrop::new(frame);
        Self { frames, frame }
    }
    /// Where it came from.
    pub const fn frames(&self) -> &'f FrameAllocator<M> {
        self.frames
    }
}

impl<M: PhysMem> Deref for FrameGuard<'_, M> {
    type Target = Frame;

    #[inline(always)]
    fn deref(&self) -> &Frame {
        &self.frame
    }
}

impl<M: PhysMem> Drop for FrameGuard<'_, M> {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more.
        self.frames
            .release(unsafe { ManuallyDrop::take(&mut self.frame) });
    }
}

/// A value in a frame. It is dropped, and the frame given back, with the box.
///
/// A kernel without a heap keeps with it what there can be thousands of.
pub struct FrameBox<'f, T, M: PhysMem> {
    frame: FrameGuard<'f, M>,
    value: PhantomData<T>,
}

impl<'f, T, M: PhysMem> FrameBox<'f, T, M> {
    const FITS: () =
        assert!(size_of::<T>() as u64 <= PAGE_SIZE && align_of::<T>() as u64 <= PAGE_SIZE);

    /// Moves the value into a frame.
    ///
    /// # Errors
    /// Without a frame, it comes back.
    pub fn new(frames: &'f FrameAllocator<M>, value: T) -> Result<Self, (FrameError, T)> {
        let () = Self::FITS;
        let frame = match frames.alloc() {
            Ok(frame) => frame,
            Err(error) => return Err((error, value)),
        };
        // SAFETY: the frame is fresh, nobody else refers to it, and the value fits.
        unsafe { frames.mem().ptr(frame.address()).cast::<T>().write(value) };
        Ok(Self::of(frames, frame))
    }

    /// Moves the value out and gives the frame back.
    pub fn into_inner(self) -> T {
        let this = ManuallyDrop::new(self);
        // SAFETY: the value and the frame are there until the box is dropped, which does not happen any more.
        let (value, _frame) = unsafe { (this.pointer().read(), (&raw const this.frame).read()) };
        value
    }

    /// The frame that the value is in.
    pub fn frame(&self) -> Hpa {
        self.frame.address()
    }

    const fn of(frames: &'f FrameAllocator<M>, frame: Frame) -> Self {
        Self {
            frame: FrameGuard::new(frames, frame),
            value: PhantomData,
        }
    }

    fn pointer(&self) -> *mut T {
        self.frame.frames.mem().ptr(self.frame()).cast()
    }
}

impl<T, M: PhysMem> Deref for FrameBox<'_, T, M> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: `new` has put the value there, and the frame is this box's alone.
        unsafe { &*self.pointer() }
    }
}

impl<T, M: PhysMem> DerefMut for FrameBox<'_, T, M> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and the box is borrowed for writing.
        unsafe { &mut *self.pointer() }
    }
}

impl<T, M: PhysMem> Drop for FrameBox<'_, T, M> {
    fn drop(&mut self) {
        // SAFETY: the value is there and nobody uses it any more.
        unsafe { self.pointer().drop_in_place() };
    }
}

/// A value in a frame that several hold, by the frame's count. It changes only while one alone holds it. It is `Copy`, so that
/// none of them ends it.
pub struct FrameRc<'f, T: Copy, M: PhysMem>(FrameBox<'f, T, M>);

impl<'f, T: Copy, M: PhysMem> FrameRc<'f, T, M> {
    /// Moves the value into a frame.
    ///
    /// # Errors
    /// There is no frame for it.
    pub fn new(frames: &'f FrameAllocator<M>, value: T) -> Result<Self, FrameError> {
        FrameBox::new(frames, value)
            .map(Self)
            .map_err(|(error, _)| error)
    }

    /// One more holder of the same value.
    ///
    /// # Errors
    /// The count is the largest that there is.
    #[inline]
    pub fn share(&self) -> Result<Self, FrameError> {
        let frame = &self.0.frame;
        Ok(Self(FrameBox::of(frame.frames, frame.frames.share(frame)?)))
    }

    /// The value, to be changed: a copy of it where others hold it too.
    ///
    /// # Errors
    /// There is no frame for a copy.
    pub fn make_mut(&mut self) -> Result<&mut T, FrameError> {
        let frames = self.0.frame.frames;
        if frames.count(self.frame()) != 1 {
            *self = Self::new(frames, **self)?;
        }
        Ok(&mut self.0)
    }

    /// The frame that the value is in: two that name the same one hold the same value.
    pub fn frame(&self) -> Hpa {
        self.0.frame()
    }
}

impl<T: Copy, M: PhysMem> Deref for FrameRc<'_, T, M> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::super::arena::Arena;
    use super::*;
    use std::cell::Cell;
    use std::sync::atomic::Ordering::SeqCst;

    struct Counted<'c>(&'c Cell<u32>, [u64; 400]);
    impl Drop for Counted<'_> {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }

    #[test]
    fn a_box_drops_its_value_once_and_gives_the_frame_back() {
        let frames = Arena::allocator(0x10_0000, 8);
        let dropped = Cell::new(0);
        let mut first = FrameBox::new(&frames, Counted(&dropped, [7; 400]))
            .ok()
            .unwrap();
        let second = FrameBox::new(&frames, Counted(&dropped, [8; 400]))
            .ok()
            .unwrap();
        first.1[399] = 9;
        assert_eq!((first.1[0], first.1[399], second.1[0]), (7, 9, 8));
        assert_ne!(first.frame(), second.frame());
        assert_eq!(frames.statistics().used, 2);
        let value = first.into_inner();
        assert_eq!(
            (dropped.get(), value.1[399], frames.statistics().used),
            (0, 9, 1)
        );
        drop((value, second));
        assert_eq!((dropped.get(), frames.statistics().used), (2, 0));
    }

    #[test]
    fn without_a_frame_the_value_comes_back() {
        let frames = Arena::allocator(0x10_0000, 8);
        frames.allowance.store(0, SeqCst);
        let dropped = Cell::new(0);
        let (error, value) = FrameBox::new(&frames, Counted(&dropped, [1; 400]))
            .err()
            .unwrap();
        assert_eq!(
            (error, value.1[5], dropped.get()),
            (FrameError::OutOfFrames, 1, 0)
        );
        assert!(FrameRc::new(&frames, 5u64).is_err());
    }

    #[test]
    fn what_is_held_by_several_is_copied_before_it_changes() {
        let frames = Arena::allocator(0x10_0000, 8);
        let mut first = FrameRc::new(&frames, [1u64; 100]).unwrap();
        let mut second = first.share().unwrap();
        assert_eq!(
            (frames.statistics().used, frames.count(first.frame())),
            (1, 2)
        );
        frames.allowance.store(0, SeqCst);
        assert_eq!(second.make_mut().err(), Some(FrameError::OutOfFrames));
        assert_eq!(first.frame(), second.frame());
        frames.allowance.store(u64::MAX, SeqCst);
        second.make_mut().unwrap()[3] = 2;
        assert_eq!((first[3], second[3], frames.statistics().used), (1, 2, 2));
        // Alone, it changes in place.
        let at = first.frame();
        first.make_mut().unwrap()[3] = 4;
        assert_eq!((first.frame(), first[3]), (at, 4));
        drop((first, second));
        assert_eq!(frames.statistics().used, 0);
    }

    #[test]
    fn holders_are_counted_up_to_the_largest_count() {
        let frames = Arena::allocator(0x10_0000, 8);
        let first = FrameRc::new(&frames, 1u64).unwrap();
        frames.force_count(&first.0.frame, (1 << 31) - 1);
        assert!(matches!(first.share(), Err(FrameError::CountOverflow(_))));
        frames.force_count(&first.0.frame, 1);
    }
}
