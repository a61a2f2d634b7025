//! What the boot loader says, copied out of its own structures: memory, command line, modules.

use core::ffi::CStr;
use multiboot2::{BootInformation, BootInformationHeader};
use offshoot::addr::{AddrRange, Hpa};
use offshoot::ept::Mtrrs;
use offshoot::frames::MemoryMap;
use offshoot::host::acpi::{self, Root, Tables};
use offshoot::virt::cpu::ThisCpu;
use offshoot::virt::cpuid::address_bits;

use super::firmware::{Firmware, Screen, ScreenKind, acpi_tables, screen};
use super::layout::{self, BOOT_MAPPED, DIRECT_MAPPED};

/// The most modules; one more ends the boot with an error.
pub const MAX_MODULES: usize = 128;
/// The most structures of the boot loader's own and the firmware's: the text of each module, the command line, a table, and one
/// to spare.
const KEEP_MAX: usize = MAX_MODULES + 3;

const MULTIBOOT2_MAGIC: u32 = multiboot2::MAGIC;
/// Bytes of a root pointer of ACPI 2 and later; what is behind an older one does not count.
const RSDP_BYTES: u64 = 36;
const PVH_MAGIC: u32 = 0x336e_c578;
/// Stands for a module's command line that is not text: no guest takes this option, so just this one is refused.
const NOT_TEXT: &str = "cmdline=not-utf-8";
/// The longest text that is read.
const TEXT_MAX: u64 = 4096;

/// A boot module: where it is, and its command line.
#[derive(Clone, Copy)]
pub struct Module {
    pub range: AddrRange<Hpa>,
    pub cmdline: &'static str,
}

/// What the boot loader said. The texts stay where it put them: those ranges are listed in `keep`.
pub struct BootInfo {
    pub protocol: &'static str,
    pub cmdline: &'static str,
    /// Usable memory as the firmware reports it; the image, modules and kept ranges are still inside.
    pub memory: MemoryMap,
    /// What the MTRRs say, where they say something.
    pub mtrrs: Option<Mtrrs>,
    /// What the firmware reports as anything else, which counts where the two overlap: rather too much than too little.
    other: MemoryMap,
    /// All memory, of the firmware too, which is none of a device's addresses: rather too much than too little.
    pub ram: MemoryMap,
    /// Bytes of usable memory at addresses that the CPU does not have.
    pub beyond: u64,
    modules: [Option<Module>; MAX_MODULES],
    /// The boot loader's own structures, with the texts, and a table of the firmware's.
    pub keep: [Option<AddrRange<Hpa>>; KEEP_MAX],
    pub screen: Option<Screen>,
    /// ACPI's tables that say how the machine is switched off.
    pub acpi: Result<Tables, acpi::Unknown>,
}

/// Why the boot information cannot be used.
#[derive(Debug)]
pub enum BootError {
    UnknownMagic(u32),
    Unreadable(&'static str),
    NotMapped {
        what: &'static str,
        address: u64,
        limit: u64,
    },
    TooManyModules,
    TooManyTexts,
    NoMemoryMap,
}

impl core::fmt::Display for BootError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::UnknownMagic(magic) => {
                write!(
                    f,
                    "started by neither Multiboot2 nor PVH: unknown magic {magic:#x}"
                )
            }
            Self::Unreadable(what) => {
                write!(f, "the boot loader's information cannot be read: {what}")
            }
            Self::NotMapped {
                what,
                address,
                limit,
            } => {
                write!(
                    f,
                    "the boot loader put the {what} at {address:#x}, above {} GiB",
                    limit >> 30
                )
            }
            Self::TooManyModules => write!(f, "more than {MAX_MODULES} boot modules"),
            Self::TooManyTexts => {
                write!(f, "the boot loader left more than {KEEP_MAX} structures")
            }
            Self::NoMemoryMap => write!(f, "the boot loader gave no memory map"),
        }
    }
}

impl BootInfo {
    const EMPTY: Self = Self {
        protocol: "",
        cmdline: "",
        memory: MemoryMap::new(),
        mtrrs: None,
        other: MemoryMap::new(),
        ram: MemoryMap::new(),
        beyond: 0,
        modules: [None; MAX_MODULES],
        keep: [None; KEEP_MAX],
        screen: None,
        acpi: Err(acpi::Unknown::Missing("RSDP")),
    };

    /// The boot modules, in order.
    pub fn modules(&self) -> impl Iterator<Item = Module> + Clone + '_ {
        self.modules.iter().flatten().copied()
    }

    /// The screen, and where the boot tables map its memory, if they do.
    pub fn screen_at_boot(&self) -> Option<(ScreenKind, *mut u8)> {
        let Screen { memory, kind } = self.screen?;
        let last = memory.last()?;
        (last.as_u64() < BOOT_MAPPED).then(|| (kind, layout::direct(memory.start())))
    }

    /// Takes one range of the firmware's memory map over: a number for each kind, the same in all protocols. What lies past
    /// the direct map is left unused.
    fn add_memory(&mut self, start: u64, len: u64, kind: u32) {
        const USABLE: u32 = 1;
        const ACPI_TABLES: u32 = 3;
        const ACPI_NVS: u32 = 4;
        const DEFECTIVE: u32 = 5;
        // What claims to pass the last address ends there.
        let all = AddrRange::new(Hpa::new(start), len.min(u64::MAX - start));
        if let (USABLE | ACPI_TABLES | ACPI_NVS | DEFECTIVE, Some(range)) = (kind, all) {
            self.ram.add_touched(range);
        }
        let len = len.min(DIRECT_MAPPED.saturating_sub(start));
        match AddrRange::new(Hpa::new(start), len) {
            Some(range) if kind == USABLE => self.memory.add(range),
            Some(range) => self.other.add_touched(range),
            None => {}
        }
    }
    /// The firmware's memory map is complete.
    fn end_memory(&mut self) {
        for range in self.other.ranges() {
            self.memory.remove(range);
        }
        self.beyond = self.memory.keep_below(Hpa::new(addressable()));
    }
    fn add_module(&mut self, start: u64, len: u64, cmdline: &'static str) -> Result<(), BootError> {
        // Read only once the kernel's own tables are there, so it may lie higher than what the boot tables map.
        let range = within("module", start, len, DIRECT_MAPPED.min(addressable()))?;
        let slot = self
            .modules
            .iter_mut()
            .find(|slot| slot.is_none())
            .ok_or(BootError::TooManyModules)?;
        *slot = Some(Module { range, cmdline });
        Ok(())
    }
    fn add_keep(&mut self, range: AddrRange<Hpa>) -> Result<(), BootError> {
        let mut slots = self.keep.iter_mut();
        let slot = slots.find(|slot| slot.is_none());
        *slot.ok_or(BootError::TooManyTexts)? = Some(range);
        Ok(())
    }
    fn add_acpi(&mut self, root: Option<Root>) -> Result<(), BootError> {
        self.acpi = acpi_tables(root);
        self.acpi
            .map_or(Ok(()), |tables| self.add_keep(tables.dsdt()))
    }
    /// Says what of the firmware's memory map there was no room for.
    pub fn log_lost(&self) {
        let lost = self.memory.given_up().saturating_add(self.other.joined());
        if lost != 0 {
            log::warn!(
                "up to {} KiB of memory are not used: the firmware reports too many separate ranges",
                lost >> 10
            );
        }
        if self.ram.joined() != 0 {
            log::warn!(
                "{} KiB between ranges of memory count as memory, not as devices: there are too many separate ranges",
                self.ram.joined() >> 10
            );
        }
    }
}

/// The first physical address that the CPU does not have.
fn addressable() -> u64 {
    let (physical_bits, _) = address_bits(&ThisCpu);
    1 << physical_bits.min(52)
}

/// The range, if the boot tables map all of it.
fn mapped(what: &'static str, start: u64, len: u64) -> Result<AddrRange<Hpa>, BootError> {
    within(what, start, len, BOOT_MAPPED)
}

fn within(
    what: &'static str,
    start: u64,
    len: u64,
    limit: u64,
) -> Result<AddrRange<Hpa>, BootError> {
    AddrRange::new(Hpa::new(start), len)
        .filter(|range| range.last().map_or(start, Hpa::as_u64) < limit)
        .ok_or(BootError::NotMapped {
            what,
            address: start,
            limit,
        })
}

/// Reads what the boot loader left at the physical address `info`.
///
/// # Safety
/// `magic` and `info` must be what the boot loader entered with, and the boot tables must still be in use.
pub unsafe fn read(magic: u32, info: u32) -> Result<BootInfo, BootError> {
    match magic {
        // SAFETY: by the magic, `info` is the address of Multiboot2 information; the caller vouches for the tables.
        MULTIBOOT2_MAGIC => unsafe { multiboot2(info) },
        // SAFETY: likewise of a PVH start structure.
        PVH_MAGIC => unsafe { pvh(info) },
        _ => Err(BootError::UnknownMagic(magic)),
    }
}

unsafe fn multiboot2(info: u32) -> Result<BootInfo, BootError> {
    let header = layout::direct(Hpa::new(info.into())) as *const BootInformationHeader;
    // SAFETY: the boot loader put its information here; nothing has written to it since.
    let boot: BootInformation<'static> = unsafe { BootInformation::load(header) }
        .map_err(|_| BootError::Unreadable("Multiboot2 header"))?;
    let mut out = BootInfo {
        protocol: "Multiboot2",
        ..BootInfo::EMPTY
    };
    out.add_keep(mapped(
        "boot information",
        info.into(),
        (boot.end_address() - boot.start_address()) as u64,
    )?)?;

    // A borrow of the tags lasts no longer than that of `boot`, which therefore gets a place for ever.
    let boot: &'static BootInformation<'static> = {
        static LOADED: spin::Once<SharedInfo> = spin::Once::new();
        &LOADED.call_once(|| SharedInfo(boot)).0
    };
    if let Some(tag) = boot.command_line_tag() {
        out.cmdline = tag
            .cmdline()
            .map_err(|_| BootError::Unreadable("command line"))?;
    }
    let map = boot.memory_map_tag().ok_or(BootError::NoMemoryMap)?;
    for area in map.memory_areas() {
        out.add_memory(area.start_address(), area.size(), area.typ().into());
    }
    out.end_memory();
    for module in boot.module_tags() {
        let (start, end) = (
            u64::from(module.start_address()),
            u64::from(module.end_address()),
        );
        let len = end
            .checked_sub(start)
            .ok_or(BootError::Unreadable("module range"))?;
        out.add_module(start, len, module.cmdline().unwrap_or(NOT_TEXT))?;
    }
    let framebuffer = boot.framebuffer_tag().and_then(Result::ok);
    out.screen = framebuffer.and_then(screen).filter(|screen| {
        !out.memory
            .ranges()
            .any(|usable| usable.overlaps(screen.memory))
    });
    let xsdt = boot
        .rsdp_v2_tag()
        .map(|rsdp| Root::Xsdt(Hpa::new(rsdp.xsdt_address() as u64)));
    let rsdt = || {
        boot.rsdp_v1_tag()
            .map(|rsdp| Root::Rsdt(Hpa::new(rsdp.rsdt_address() as u64)))
    };
    out.add_acpi(xsdt.or_else(rsdt))?;
    Ok(out)
}

struct SharedInfo(BootInformation<'static>);
// SAFETY: it is only ever read, and by one CPU.
unsafe impl Sync for SharedInfo {}
// SAFETY: as above.
unsafe impl Send for SharedInfo {}

/// `hvm_start_info` of the PVH boot protocol, version 1.
#[repr(C)]
#[derive(Clone, Copy)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    nr_modules: u32,
    modlist: u64,
    cmdline: u64,
    rsdp: u64,
    memmap: u64,
    memmap_entries: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ModlistEntry {
    address: u64,
    size: u64,
    cmdline: u64,
    reserved: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct MemmapEntry {
    address: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

unsafe fn pvh(info: u32) -> Result<BootInfo, BootError> {
    // SAFETY: the caller vouches that the boot loader put the structure here.
    let start: StartInfo = unsafe { copy(info.into(), "start information")? };
    if start.magic != PVH_MAGIC {
        return Err(BootError::Unreadable("PVH start information"));
    }
    let mut out = BootInfo {
        protocol: "PVH",
        ..BootInfo::EMPTY
    };
    if start.version < 1 || start.memmap == 0 {
        return Err(BootError::NoMemoryMap);
    }
    // SAFETY: the addresses are those of the structure, in each case below.
    unsafe {
        out.cmdline = text(&mut out, start.cmdline)?;
        for i in 0..u64::from(start.memmap_entries) {
            let entry: MemmapEntry = copy(
                start.memmap + i * size_of::<MemmapEntry>() as u64,
                "memory map",
            )?;
            out.add_memory(entry.address, entry.size, entry.kind);
        }
        out.end_memory();
        for i in 0..u64::from(start.nr_modules) {
            let entry: ModlistEntry = copy(
                start.modlist + i * size_of::<ModlistEntry>() as u64,
                "module list",
            )?;
            let cmdline = text(&mut out, entry.cmdline)?;
            out.add_module(entry.address, entry.size, cmdline)?;
        }
    }
    let rsdp = acpi::Memory::bytes(&Firmware, Hpa::new(start.rsdp), RSDP_BYTES);
    out.add_acpi(rsdp.filter(|_| start.rsdp != 0).and_then(Root::of))?;
    Ok(out)
}

/// The value at a physical address.
///
/// # Safety
/// The boot loader must have put a `T` there.
unsafe fn copy<T: Copy>(address: u64, what: &'static str) -> Result<T, BootError> {
    let range = mapped(what, address, size_of::<T>() as u64)?;
    // SAFETY: mapped, and by the caller's word a `T`.
    Ok(unsafe { (layout::direct(range.start()) as *const T).read_unaligned() })
}

/// The text that ends with a zero byte at a physical address; none at address 0.
///
/// # Safety
/// The boot loader must have put such a text there.
unsafe fn text(out: &mut BootInfo, address: u64) -> Result<&'static str, BootError> {
    if address == 0 {
        return Ok("");
    }
    let window = mapped(
        "text",
        address,
        TEXT_MAX.min(BOOT_MAPPED.saturating_sub(address)),
    )?;
    // SAFETY: mapped, and by the caller's word a text; nothing writes to what the boot loader left.
    let bytes = unsafe {
        core::slice::from_raw_parts(layout::direct(window.start()), window.len() as usize)
    };
    let text =
        CStr::from_bytes_until_nul(bytes).map_err(|_| BootError::Unreadable("text without end"))?;
    out.add_keep(mapped("text", address, text.count_bytes() as u64 + 1)?)?;
    text.to_str()
        .map_err(|_| BootError::Unreadable("text is not UTF-8"))
}
