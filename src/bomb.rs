//! What must be ended rather than dropped says so in a test that drops it.
//!
//! A frame, or what holds some, is given back by a call that takes it and what it came from; Rust cannot demand such a call.
//! So in tests a drop without one panics. In all other builds nothing of this is there.

/// A part of what must not be dropped: it goes by [`Bomb::defuse`] alone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bomb(#[cfg(test)] &'static str);

impl Bomb {
    /// `what` is dropped is what the panic says.
    #[cfg_attr(not(test), allow(unused_variables))]
    #[inline(always)]
    pub const fn new(what: &'static str) -> Self {
        Self(
            #[cfg(test)]
            what,
        )
    }

    /// What it is part of is being ended.
    #[inline(always)]
    pub const fn defuse(self) {
        let _ = core::mem::ManuallyDrop::new(self);
    }
}

#[cfg(test)]
impl Drop for Bomb {
    fn drop(&mut self) {
        dropped(self.0);
    }
}

#[cfg(test)]
std::thread_local! {
    static ABANDONED: core::cell::Cell<bool> = const { core::cell::Cell::new(false) };
}

/// `what` was dropped. A panic on the way out of another one would hide that.
#[cfg(test)]
pub(crate) fn dropped(what: &str) {
    let right = std::thread::panicking() || ABANDONED.get();
    assert!(right, "{what} was dropped, not ended");
}

/// Runs what may stop half-way because something was found wrong, when nobody ends anything any more.
#[cfg(test)]
pub(crate) fn abandon<T>(run: impl FnOnce() -> T) -> T {
    ABANDONED.set(true);
    let result = run();
    ABANDONED.set(false);
    result
}
