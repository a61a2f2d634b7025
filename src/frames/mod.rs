//! Physical frames: the way to their bytes, the allocator, counts and owned handles.

mod phys;

pub use phys::PhysMem;
