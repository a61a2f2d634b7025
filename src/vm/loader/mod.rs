//! From an ELF image to a guest that can start: check the image, plan its memory, write both into guest memory.

mod error;
mod image;
mod plan;
#[cfg(test)]
mod testing;

pub use error::LoadError;
pub use image::{Image, SEGMENTS_MAX, Segment, Warning};
pub use plan::{Plan, Region, RegionKind, STACK_SIZE};
