//! How a machine is switched off and reset, as ACPI's tables say (ACPI 6.5 "Fixed ACPI Description Table (FADT)", 5.2.9;
//! "Sleep Control and Status", 4.8.3.7).
//!
//! The layouts of the tables are those of the crate `acpi`. The tables are found here, since each address and length that one
//! claims is checked against the memory that can be read. Of the firmware's program code one value is read, without running it:
//! that of `\_S5`.

use crate::addr::{AddrRange, Hpa};
use acpi::AcpiError;
use acpi::address::{AddressSpace, GenericAddress};
use acpi::fadt::Fadt;
use acpi::rsdp::Rsdp;
use acpi::sdt::SdtHeader;
use core::fmt;
use core::mem::MaybeUninit;

/// A longer table is not believed.
const TABLE_MAX: u64 = 16 << 20;
/// Tables of which an RSDT or XSDT may list so many; the FADT is the first, mostly.
const LISTED_MAX: usize = 256;
const HEADER: u64 = size_of::<SdtHeader>() as u64;
/// In the FADT: how many bytes a PM1 control register has, and how many it may have.
const PM1_CONTROL_BYTES: usize = 89;
const PM1_CONTROL_SIZES: core::ops::RangeInclusive<u8> = 2..=4;
/// In a PM1 control register: where the type of sleep is.
const PM1_TYPE: u32 = 10;
const PM1_ENABLE: u16 = 1 << 13;
/// The same in the sleep control register of machines without PM1 registers.
const SLEEP_TYPE: u32 = 2;
const SLEEP_ENABLE: u8 = 1 << 5;

/// A value of so many bits for a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortWrite {
    /// 8 bits.
    Byte(u16, u8),
    /// 16 bits.
    Word(u16, u16),
}

/// How ACPI is turned on, where the machine is not in ACPI mode yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enable {
    /// What asks the firmware for it.
    pub request: PortWrite,
    /// The 16-bit port whose bit 0 says that it is on.
    pub control: u16,
}

/// How the machine is switched off and reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Power {
    /// What is done first.
    pub enable: Option<Enable>,
    /// What switches it off, one after the other.
    pub off: [Option<PortWrite>; 2],
    /// What resets it.
    pub reset: Option<PortWrite>,
}

/// Why nothing is known of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// A table is where it cannot be read, or longer than that.
    Unreadable(&'static str, Hpa),
    /// What is there is no such table.
    NotATable(&'static str, Hpa),
    /// There is no such table.
    Missing(&'static str),
    /// A register is no I/O port.
    NotAPort(&'static str),
    /// The DSDT has no `\_S5` of a form that is known.
    NoS5,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(what, at) => write!(f, "ACPI: the {what} at {at:?} cannot be read"),
            Self::NotATable(what, at) => write!(f, "ACPI: at {at:?} is no {what}"),
            Self::Missing(what) => write!(f, "ACPI: there is no {what}"),
            Self::NotAPort(what) => write!(f, "ACPI: the {what} register is no I/O port"),
            Self::NoS5 => write!(f, "ACPI: the DSDT has no \\_S5 that can be read"),
        }
    }
}

/// The bytes of memory at an address; `None` where so many cannot be read.
pub trait Memory {
    /// See there.
    fn bytes(&self, start: Hpa, len: u64) -> Option<&[u8]>;
}

/// The list of all tables, where the firmware's root pointer (RSDP) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// Of addresses of 32 bits.
    Rsdt(Hpa),
    /// Of addresses of 64 bits.
    Xsdt(Hpa),
}

impl Root {
    /// What a root pointer says, of which these are the bytes; those that are missing count as zero.
    pub fn of(rsdp: &[u8]) -> Option<Self> {
        let rsdp: Rsdp = layout(rsdp);
        (&rsdp.signature() == b"RSD PTR ").then(|| match rsdp.revision() {
            0 => Self::Rsdt(Hpa::new(rsdp.rsdt_address().into())),
            _ => Self::Xsdt(Hpa::new(rsdp.xsdt_address())),
        })
    }
}

/// The tables that say it: one is copied, of the other it is known where it is. To go through that takes a while, so it is for
/// when somebody asks.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    fadt: Fadt,
    pm1_control_bytes: u8,
    dsdt: AddrRange<Hpa>,
}

impl Tables {
    /// Finds them.
    ///
    /// # Errors
    /// What was looked for and could not be found or read.
    pub fn find(memory: &impl Memory, root: Root) -> Result<Self, Unknown> {
        let (what, start, entry) = match root {
            Root::Rsdt(start) => ("RSDT", start, 4),
            Root::Xsdt(start) => ("XSDT", start, 8),
        };
        let list = table(memory, what, start)?;
        let entries = list[HEADER as usize..].chunks_exact(entry);
        let fadt = entries.take(LISTED_MAX).find_map(|entry| {
            let mut address = [0; 8];
            address[..entry.len()].copy_from_slice(entry);
            // Whatever else the list has in it is nobody's matter here.
            table(memory, "FACP", Hpa::new(u64::from_le_bytes(address))).ok()
        });
        let bytes = fadt.ok_or(Unknown::Missing("FADT"))?;
        let fadt: Fadt = layout(bytes);
        let dsdt = fadt
            .dsdt_address()
            .map_err(|_| Unknown::Missing("address of the DSDT"))?;
        let start = Hpa::new(dsdt as u64);
        let len = table(memory, "DSDT", start)?.len() as u64;
        let dsdt = AddrRange::new(start, len).ok_or(Unknown::Unreadable("DSDT", start))?;
        let pm1_control_bytes = bytes.get(PM1_CONTROL_BYTES).copied().unwrap_or(0);
        Ok(Self {
            fadt,
            pm1_control_bytes,
            dsdt,
        })
    }

    /// Where the DSDT is, which must still be there and readable for [`Tables::power`].
    pub const fn dsdt(&self) -> AddrRange<Hpa> {
        self.dsdt
    }

    /// What they say.
    ///
    /// # Errors
    /// What could not be found or read.
    pub fn power(&self, memory: &impl Memory) -> Result<Power, Unknown> {
        let dsdt = table(memory, "DSDT", self.dsdt.start())?;
        let types = s5(&dsdt[HEADER as usize..]).ok_or(Unknown::NoS5)?;
        Power::of(&self.fadt, self.pm1_control_bytes, types)
    }
}

impl Power {
    fn of(fadt: &Fadt, pm1_control_bytes: u8, [a, b]: [u8; 2]) -> Result<Self, Unknown> {
        let flags = fadt.flags;
        let reset = flags.supports_system_reset_via_fadt().then(|| {
            let port = port("reset", fadt.reset_register());
            port.map(|port| PortWrite::Byte(port, fadt.reset_value))
        });
        let mut power = Self {
            reset: reset.and_then(Result::ok),
            ..Self::default()
        };
        if flags.system_is_hw_reduced_acpi() {
            let control = fadt.sleep_control_register().transpose();
            let control = control.ok_or(Unknown::Missing("sleep control register"))?;
            let value = a << SLEEP_TYPE | SLEEP_ENABLE;
            power.off[0] = Some(PortWrite::Byte(port("sleep control", control)?, value));
            return Ok(power);
        }
        // The crate multiplies this by 8 as it is.
        if !PM1_CONTROL_SIZES.contains(&pm1_control_bytes) {
            return Err(Unknown::NotAPort("PM1a control"));
        }
        let sleep = |kind: u8| u16::from(kind) << PM1_TYPE | PM1_ENABLE;
        let control = port("PM1a control", fadt.pm1a_control_block())?;
        power.off[0] = Some(PortWrite::Word(control, sleep(a)));
        if let Some(second) = fadt.pm1b_control_block().transpose() {
            let second = port("PM1b control", second)?;
            power.off[1] = Some(PortWrite::Word(second, sleep(b)));
        }
        let command = u16::try_from(fadt.smi_cmd_port).ok();
        if let Some(command) = command.filter(|port| *port != 0 && fadt.acpi_enable != 0) {
            let request = PortWrite::Byte(command, fadt.acpi_enable);
            power.enable = Some(Enable { request, control });
        }
        Ok(power)
    }
}

/// A table of the firmware's, whole, that has this signature.
fn table<'m>(memory: &'m impl Memory, what: &'static str, start: Hpa) -> Result<&'m [u8], Unknown> {
    let unreadable = Unknown::Unreadable(what, start);
    let head = memory.bytes(start, HEADER).ok_or(unreadable)?;
    if !head.starts_with(what.as_bytes()) {
        return Err(Unknown::NotATable(what, start));
    }
    let header: SdtHeader = layout(head);
    let len = u64::from(header.length);
    let fits = (HEADER..=TABLE_MAX).contains(&len);
    let bytes = fits.then(|| memory.bytes(start, len)).flatten();
    bytes.ok_or(unreadable)
}

/// A structure of ACPI's out of its bytes. What is behind their end is zero, as it would be if it said nothing.
fn layout<T: Layout>(bytes: &[u8]) -> T {
    let mut value = MaybeUninit::<T>::zeroed();
    let len = bytes.len().min(size_of::<T>());
    // SAFETY: so many bytes are there, and so many the value has, which are not those.
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), value.as_mut_ptr().cast(), len) };
    // SAFETY: all its bytes are written, and any make one.
    unsafe { value.assume_init() }
}

/// What any bytes make.
///
/// # Safety
/// Any bytes make one, and dropping it does nothing.
unsafe trait Layout: Copy {}
// SAFETY: integers and bytes, one after the other.
unsafe impl Layout for Rsdp {}
// SAFETY: as above.
unsafe impl Layout for SdtHeader {}
// SAFETY: as above.
unsafe impl Layout for Fadt {}

/// The port that a register is at.
fn port(what: &'static str, register: Result<GenericAddress, AcpiError>) -> Result<u16, Unknown> {
    let address = register.map_err(|_| Unknown::NotAPort(what))?;
    let number = u16::try_from(address.address).ok();
    match (address.address_space, number) {
        (AddressSpace::SystemIo, Some(port)) if port != 0 => Ok(port),
        _ => Err(Unknown::NotAPort(what)),
    }
}

const S5: &[u8; 4] = b"_S5_";

/// Where its name stands. Of four bytes the last says how far the next look can be away, as some machines have a hundred
/// thousand of them (Horspool's search).
fn occurrences(code: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let mut next = 0;
    core::iter::from_fn(move || {
        while let Some(bytes) = code.get(next..next + S5.len()) {
            let at = next;
            next += match bytes[3] {
                b'_' => 3,
                b'S' => 2,
                b'5' => 1,
                _ => 4,
            };
            if bytes == S5 {
                return Some(at);
            }
        }
        None
    })
}

/// The types of sleep for the two PM1 registers, out of `\_S5`: a name with a package of integers (ACPI 6.5 "AML Grammar
/// Definition", 20.2).
fn s5(code: &[u8]) -> Option<[u8; 2]> {
    const NAME: u8 = 0x08;
    const ROOT: u8 = b'\\';
    const PACKAGE: u8 = 0x12;
    occurrences(code).find_map(|at| {
        let named = matches!(
            (
                at.checked_sub(1).map(|i| code[i]),
                at.checked_sub(2).map(|i| code[i])
            ),
            (Some(NAME), _) | (Some(ROOT), Some(NAME))
        );
        let rest = named.then(|| code[at + S5.len()..].strip_prefix(&[PACKAGE]))??;
        // The two high bits of its length say how many bytes follow.
        let more = usize::from(rest.first()? >> 6);
        let (count, elements) = rest.get(1 + more..)?.split_first()?;
        let (a, elements) = integer(elements).filter(|_| *count >= 1)?;
        let b = integer(elements).filter(|_| *count >= 2);
        Some([a, b.map_or(a, |(b, _)| b)])
    })
}

/// A small integer, and what follows it.
fn integer(code: &[u8]) -> Option<(u8, &[u8])> {
    const ZERO: u8 = 0x00;
    const ONE: u8 = 0x01;
    const BYTE: u8 = 0x0a;
    const TYPES: u8 = 8;
    let (value, rest) = match code {
        [kind @ (ZERO | ONE), rest @ ..] => (*kind, rest),
        [BYTE, value, rest @ ..] => (*value, rest),
        _ => return None,
    };
    (value < TYPES).then_some((value, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: usize = 0x1000;

    struct Machine(Vec<u8>);

    impl Memory for Machine {
        fn bytes(&self, start: Hpa, len: u64) -> Option<&[u8]> {
            let start = usize::try_from(start.as_u64()).ok()?;
            self.0.get(start..start.checked_add(len as usize)?)
        }
    }

    fn header(signature: &[u8; 4], len: u32) -> Vec<u8> {
        let mut bytes = vec![0; HEADER as usize];
        bytes[..4].copy_from_slice(signature);
        bytes[4..8].copy_from_slice(&len.to_le_bytes());
        bytes[8] = 1;
        bytes
    }

    /// `Name (\_S5, Package () { 5, 0, 0, 0 })`, as QEMU has it, in the middle of something else.
    const CODE: [u8; 20] = [
        0x10, 0x40, 0x08, b'\\', b'_', b'S', b'5', b'_', 0x12, 0x07, 0x04, 0x0a, 0x05, 0x00, 0x00,
        0x00, 0x08, b'_', b'S', b'3',
    ];

    /// A machine as QEMU's, with the tables in their places.
    fn machine() -> (Machine, Vec<u8>) {
        let mut memory = vec![0_u8; SIZE];
        let mut put = |at: usize, bytes: &[u8]| memory[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x100, &header(b"RSDT", 36 + 8));
        put(0x124, &0x200_u32.to_le_bytes());
        put(0x128, &0x300_u32.to_le_bytes());
        put(0x200, &header(b"APIC", 50));
        put(0x300, &header(b"FACP", 116));
        put(0x300 + 40, &0x400_u32.to_le_bytes());
        put(0x300 + 48, &[0xb2, 0, 0, 0, 2, 3]);
        put(0x300 + 64, &0x604_u32.to_le_bytes());
        put(0x300 + 89, &[2]);
        put(0x400, &header(b"DSDT", 36 + CODE.len() as u32));
        put(0x424, &CODE);
        let mut rsdp = b"RSD PTR ".to_vec();
        rsdp.resize(16, 0);
        rsdp.extend(0x100_u32.to_le_bytes());
        (Machine(memory), rsdp)
    }

    fn find(machine: &Machine, rsdp: &[u8]) -> Result<Power, Unknown> {
        let root = Root::of(rsdp).ok_or(Unknown::Missing("RSDP"))?;
        Tables::find(machine, root)?.power(machine)
    }

    #[test]
    fn a_machine_with_pm1_registers_is_switched_off() {
        let (machine, rsdp) = machine();
        let expected = Power {
            enable: Some(Enable {
                request: PortWrite::Byte(0xb2, 2),
                control: 0x604,
            }),
            off: [Some(PortWrite::Word(0x604, 5 << 10 | 1 << 13)), None],
            reset: None,
        };
        assert_eq!(find(&machine, &rsdp), Ok(expected));
    }

    #[test]
    fn newer_tables_have_wider_addresses_and_a_reset_register() {
        let (mut machine, mut rsdp) = machine();
        let mut put =
            |at: usize, bytes: &[u8]| machine.0[at..at + bytes.len()].copy_from_slice(bytes);
        // An XSDT, whose first entry leads nowhere.
        rsdp[15] = 2;
        rsdp.extend([0; 4]);
        rsdp.extend(0x500_u64.to_le_bytes());
        put(0x500, &header(b"XSDT", 36 + 16));
        put(0x524, &u64::MAX.to_le_bytes());
        put(0x52c, &0x300_u64.to_le_bytes());
        put(0x300, &header(b"FACP", 276));
        put(0x308, &[6]);
        put(0x300 + 40, &0_u32.to_le_bytes());
        put(0x300 + 140, &0x400_u64.to_le_bytes());
        put(0x300 + 112, &(1_u32 << 10).to_le_bytes());
        put(
            0x300 + 116,
            &[1, 8, 0, 1, 0xf9, 0x0c, 0, 0, 0, 0, 0, 0, 0x0f],
        );
        let power = find(&machine, &rsdp).unwrap();
        assert_eq!(power.reset, Some(PortWrite::Byte(0xcf9, 0xf)));
        assert_eq!(
            power.off[0],
            Some(PortWrite::Word(0x604, 5 << 10 | 1 << 13))
        );

        // Without PM1 registers at all.
        let mut put =
            |at: usize, bytes: &[u8]| machine.0[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x300 + 112, &(1_u32 << 20).to_le_bytes());
        put(0x300 + 244, &[1, 8, 0, 1, 0x00, 0x0a, 0, 0, 0, 0, 0, 0]);
        let power = find(&machine, &rsdp).unwrap();
        assert_eq!(
            power.off,
            [Some(PortWrite::Byte(0xa00, 5 << 2 | 1 << 5)), None]
        );
        assert_eq!((power.enable, power.reset), (None, None));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |change: &dyn Fn(&mut [u8], &mut [u8])| {
            let (mut machine, mut rsdp) = machine();
            change(&mut machine.0, &mut rsdp);
            find(&machine, &rsdp).unwrap_err()
        };
        assert_eq!(wrong(&|_, rsdp| rsdp[0] = 0), Unknown::Missing("RSDP"));
        let list = Hpa::new(0x100);
        assert_eq!(
            wrong(&|memory, _| memory[0x100] = 0),
            Unknown::NotATable("RSDT", list)
        );
        for len in [0_u32, 35, SIZE as u32, u32::MAX] {
            let error =
                wrong(&|memory, _| memory[0x104..0x108].copy_from_slice(&len.to_le_bytes()));
            assert_eq!(error, Unknown::Unreadable("RSDT", list));
        }
        assert_eq!(
            wrong(&|memory, _| memory[0x300] = 0),
            Unknown::Missing("FADT")
        );
        assert_eq!(
            wrong(&|memory, _| memory[0x328..0x32c].fill(0xff)),
            Unknown::Unreadable("DSDT", Hpa::new(0xffff_ffff))
        );
        assert_eq!(
            wrong(&|memory, _| memory[0x342] = 1),
            Unknown::NotAPort("PM1a control")
        );
        for bytes in [0, 1, 5, 0xff] {
            let error = wrong(&|memory, _| memory[0x359] = bytes);
            assert_eq!(error, Unknown::NotAPort("PM1a control"));
        }
        assert_eq!(wrong(&|memory, _| memory[0x42f] = 0x0b), Unknown::NoS5);
        assert_eq!(wrong(&|memory, _| memory[0x430] = 8), Unknown::NoS5);
        assert_eq!(
            Unknown::Unreadable("DSDT", Hpa::new(16)).to_string(),
            "ACPI: the DSDT at HPA 0x10 cannot be read"
        );
    }

    #[test]
    fn sleep_types_are_small_integers() {
        let package = |elements: &[u8]| [b"\x08_S5_\x12\x46\x00", elements].concat();
        assert_eq!(s5(&package(&[2, 0x01, 0x00])), Some([1, 0]));
        assert_eq!(s5(&package(&[1, 0x0a, 7])), Some([7, 7]));
        assert_eq!(s5(&package(&[0, 0x0a, 7])), None);
        assert_eq!(s5(b"_S5_\x12\x04\x02\x01\x01"), None, "not a name");
        assert_eq!(s5(b"\x08_S5_"), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(crate::testing::cases(300)))]

        #[test]
        fn no_occurrence_is_passed_over(code in prop::collection::vec(prop::sample::select(b"_S5x".to_vec()), 0..60)) {
            let all = (0..code.len()).filter(|at| code[*at..].starts_with(S5));
            prop_assert_eq!(occurrences(&code).collect::<Vec<_>>(), all.collect::<Vec<_>>());
        }

        #[test]
        fn no_tables_panic(
            changes in prop::collection::vec((0x100..0x440usize, any::<u8>()), 0..8),
            root in prop::collection::vec(any::<u8>(), 0..40),
            keep in any::<bool>(),
        ) {
            let (mut machine, rsdp) = machine();
            for (at, byte) in changes {
                machine.0[at] = byte;
            }
            let _ = find(&machine, if keep { &rsdp } else { &root });
        }
    }
}
