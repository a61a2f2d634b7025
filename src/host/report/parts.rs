//! Parts that are serialized: lists and texts.

use core::fmt::Display;

use serde::{Serialize, Serializer};

/// A list, each item of which is made as it is written.
pub(super) struct Each<'a, T, J>(pub &'a [T], pub fn(&'a T) -> J);

impl<T, J: Serialize> Serialize for Each<'_, T, J> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(self.1))
    }
}

/// Whatever can be displayed, as a string.
pub(super) struct Text<T>(pub T);

impl<T: Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}
