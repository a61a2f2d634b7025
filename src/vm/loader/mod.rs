//! From an ELF image to a guest that can start: check the image, plan its memory, write both into guest memory.

mod error;
mod image;
mod memory;
mod plan;
#[cfg(test)]
pub(crate) mod testing;
mod write;

pub use error::LoadError;
pub use image::{Image, LoadSegment, SEGMENTS_MAX, Warning};
pub use memory::{GuestMemory, MemoryFault};
pub use plan::{Area, AreaKind, MappedData, Plan, STACK_SIZE};
pub use write::{Start, WriteError, load};
