//! Carrying out a plan: tables, segments and start information into guest memory.

use core::fmt;

use offshoot_abi::{Device, StartInfo, VERSION};

use super::memory::{GuestMemory, GuestTables, MemoryFault};
use super::{Area, AreaKind, Image, Plan};
use crate::addr::{AddrRange, Gpa, Gva};
use crate::paging::{Amd64Attr, Content, PagingError, Write, map};

/// The registers with which a loaded guest starts; every other general register is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The entry point.
    pub rip: Gva,
    /// As after a CALL: 8 below a multiple of 16, with a return address of 0 there.
    pub rsp: Gva,
    /// The root table.
    pub cr3: Gpa,
    /// The `StartInfo`.
    pub rdi: Gva,
}

/// Why a planned guest could not be written into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteError<E> {
    /// An access to guest memory failed.
    Memory(MemoryFault<E>),
    /// The tables could not be built.
    Tables(PagingError<Gva, Gpa>),
}

impl<E> From<MemoryFault<E>> for WriteError<E> {
    fn from(fault: MemoryFault<E>) -> Self {
        Self::Memory(fault)
    }
}
impl<E: fmt::Display> fmt::Display for WriteError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(fault) => {
                write!(f, "guest memory at {:#x}: {}", fault.address, fault.error)
            }
            Self::Tables(error) => write!(f, "the guest's page tables: {error}"),
        }
    }
}
impl<E: fmt::Debug + fmt::Display> core::error::Error for WriteError<E> {}

/// Writes `image` into `memory`, of which nothing has been written yet, as `plan` says.
///
/// # Errors
/// Of `memory`, or tables that have no room.
pub fn load<M: GuestMemory>(
    image: &Image<'_>,
    plan: &Plan,
    memory: &mut M,
) -> Result<Start, WriteError<M::Error>> {
    build_tables(plan, memory)?;
    for segment in image.segments() {
        put(memory, segment.range.start(), segment.file)?;
    }
    let info = StartInfo {
        magic: StartInfo::MAGIC,
        version: VERSION,
        size: size_of::<StartInfo>() as u32,
        memory: plan.memory,
        heap: plan.heap.start().as_u64(),
        heap_len: plan.heap.len(),
        stack: plan.stack.start().as_u64(),
        stack_len: plan.stack.len(),
        root: plan.tables.start().as_u64(),
        data: plan.data.map_or(0, |data| data.start().as_u64()),
        data_len: plan.data.map_or(0, AddrRange::len),
        test_device: plan.test_device.map_or(0, Gpa::as_u64),
        passthrough: plan.passthrough,
    };
    put(memory, plan.start_info, &start_info_bytes(info))?;
    Ok(Start {
        rip: identity(plan.entry),
        rsp: Gva::new(plan.stack.start().as_u64() + plan.stack.len() - 8),
        cr3: plan.tables.start(),
        rdi: identity(plan.start_info),
    })
}

fn identity(address: Gpa) -> Gva {
    Gva::new(address.as_u64())
}

fn put<M: GuestMemory>(
    memory: &mut M,
    address: Gpa,
    bytes: &[u8],
) -> Result<(), MemoryFault<M::Error>> {
    memory
        .write(address, bytes)
        .map_err(|error| MemoryFault { address, error })
}

/// Maps every area of the plan that may be read. Accessed and dirty are set from the start, so that the CPU never
/// writes to the tables.
fn build_tables<M: GuestMemory>(plan: &Plan, memory: &mut M) -> Result<(), WriteError<M::Error>> {
    let mut tables = GuestTables::new(memory, plan.tables);
    // The largest first: where there is no table yet, the walker need not look whether its entries are free.
    let mapped = || plan.areas().iter().filter(|area| area.read);
    let heap = mapped().filter(|area| area.kind == AreaKind::Heap);
    for area in heap.chain(mapped().filter(|area| area.kind != AreaKind::Heap)) {
        let start = area.range.start();
        let content = Content::Page {
            phys: start,
            attr: attributes(area),
        };
        let mapped = map(
            &mut tables,
            identity(start),
            area.range.len(),
            content,
            plan.largest_leaf,
        );
        if let Err(error) = mapped {
            return Err(tables
                .fault()
                .map_or(WriteError::Tables(error), WriteError::Memory));
        }
    }
    Ok(())
}

fn attributes(area: &Area) -> Amd64Attr {
    let write = if area.write {
        Write::Allowed
    } else {
        Write::Denied
    };
    Amd64Attr::READ.with_write(write).with_execute(area.execute)
}

fn start_info_bytes(info: StartInfo) -> [u8; size_of::<StartInfo>()] {
    let StartInfo {
        magic,
        version,
        size,
        memory,
        heap,
        heap_len,
        stack,
        stack_len,
        root,
        data,
        data_len,
        test_device,
        passthrough,
    } = info;
    let versions = u64::from(size) << 32 | u64::from(version);
    let words = [
        magic,
        versions,
        memory,
        heap,
        heap_len,
        stack,
        stack_len,
        root,
        data,
        data_len,
        test_device,
    ];
    let mut bytes = [0; size_of::<StartInfo>()];
    let devices = passthrough.into_iter().flat_map(|device| {
        let Device { start, len } = device;
        [start, len]
    });
    for (place, word) in bytes
        .chunks_exact_mut(8)
        .zip(words.into_iter().chain(devices))
    {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests;
