//! The boot modules: guests, and data that guests share. Each command line is read once.

use crate::addr::{AddrRange, Hpa};
use crate::host::cmdline::{CmdlineError, DataOptions, GuestOptions, MapOption};
use crate::vm::data::{DataError, check};
use crate::vm::name::Name;

/// A boot module and what its command line says.
#[derive(Clone, Debug)]
pub struct BootModule<'a> {
    /// Its name; where its command line gives none, after its number.
    pub name: Name,
    /// Its bytes.
    pub range: AddrRange<Hpa>,
    /// What it is.
    pub kind: ModuleKind<'a>,
}

/// What a boot module is.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)]
pub enum ModuleKind<'a> {
    /// The image of a guest.
    Guest(GuestOptions),
    /// Bytes that guests can map.
    Data,
    /// An image whose command line cannot be understood.
    BadGuest(CmdlineError<'a>),
    /// Bytes whose command line cannot be understood.
    BadData(CmdlineError<'a>),
}

impl<'a> BootModule<'a> {
    /// Module number `index`, with this command line. A guest's memory must be addressable with `address_width` bits.
    pub fn read(line: &'a str, range: AddrRange<Hpa>, index: usize, address_width: u32) -> Self {
        let named = |name, kind| Self { name, range, kind };
        let blamed = |error: &CmdlineError<'_>| error.whose.name().unwrap_or(Name::numbered(index));
        match DataOptions::parse(line) {
            Some(Ok(data)) => named(data.name, ModuleKind::Data),
            Some(Err(error)) => named(blamed(&error), ModuleKind::BadData(error)),
            None => match GuestOptions::parse(line, index, address_width) {
                Ok(guest) => named(guest.name, ModuleKind::Guest(guest)),
                Err(error) => named(blamed(&error), ModuleKind::BadGuest(error)),
            },
        }
    }

    /// Whether it is for a guest, not for data.
    pub const fn is_guest(&self) -> bool {
        matches!(self.kind, ModuleKind::Guest(_) | ModuleKind::BadGuest(_))
    }

    /// Whether it is the data with this name.
    pub fn is_data(&self, name: Name) -> bool {
        matches!(self.kind, ModuleKind::Data) && self.name == name
    }
}

/// Where the data is that a guest asks for; of several data modules of one name, the first counts.
///
/// # Errors
/// The name that no module has, or bytes that cannot be shared page by page.
pub fn find_data(modules: &[BootModule<'_>], map: &MapOption) -> Result<AddrRange<Hpa>, DataError> {
    let name = map.name;
    if let Some(data) = modules.iter().find(|module| module.is_data(name)) {
        return check(name, data.range).map(|()| data.range);
    }
    let is_guest = |module: &BootModule<'_>| module.is_guest() && module.name == name;
    Err(if modules.iter().any(is_guest) {
        DataError::IsGuest(name)
    } else {
        DataError::NoSuchData(name)
    })
}

/// Where the bytes are of the data with this name, to begin fuzzing with.
///
/// # Errors
/// The name, where no module is data of that name.
pub fn find_input(modules: &[BootModule<'_>], name: Name) -> Result<AddrRange<Hpa>, DataError> {
    let module = modules.iter().find(|module| module.is_data(name));
    module
        .map(|module| module.range)
        .ok_or(DataError::NoSuchInput(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Hpa;

    fn range(start: u64, len: u64) -> AddrRange<Hpa> {
        AddrRange::new(Hpa::new(start), len).unwrap()
    }

    #[test]
    fn data_is_found_by_its_name_wherever_it_stands() {
        let name = |name: &str| Name::new(name).unwrap();
        let modules = [
            ("web.elf map=corpus mem=64M", range(0x1000, 5)),
            ("corpus.bin data name=corpus", range(0x2000, 5000)),
            ("b.bin data name=corpus", range(0x9000, 1)),
            ("none data", range(0xa000, 0)),
            ("odd data", range(0xb010, 1)),
            ("bad data mem=1M", range(0xc000, 1)),
            ("bad.elf mem=", range(0xd000, 1)),
            // A guest and data may have one name.
            ("both.elf", range(0xe000, 1)),
            ("both data", range(0xf000, 1)),
        ];
        let read = |(index, (line, range))| BootModule::read(line, range, index, 40);
        let modules: Vec<_> = (0..).zip(modules).map(read).collect();
        let found = |asked: &str| {
            let (name, write) = (name(asked), true);
            find_data(&modules, &MapOption { name, write })
        };
        assert_eq!(found("corpus"), Ok(range(0x2000, 5000)));
        assert_eq!(found("both"), Ok(range(0xf000, 1)));
        assert_eq!(found("Corpus"), Err(DataError::NoSuchData(name("Corpus"))));
        assert_eq!(found("web"), Err(DataError::IsGuest(name("web"))));
        assert_eq!(found("bad"), Err(DataError::IsGuest(name("bad"))));
        assert_eq!(found("none"), Err(DataError::Empty(name("none"))));
        let odd = DataError::Unaligned {
            name: name("odd"),
            address: Hpa::new(0xb010),
        };
        assert_eq!(found("odd"), Err(odd));
        assert!(odd.to_string().contains("0xb010"));
    }

    #[test]
    fn each_module_is_read_once_and_has_a_name() {
        let read = |line| BootModule::read(line, range(0x1000, 1), 7, 40);
        let name = |line| read(line).name.to_string();
        assert_eq!(name("web.elf mem=64M"), "web");
        assert_eq!(name("web.elf mem=lots name=x"), "x");
        assert_eq!(name("mem=64M"), "guest7");
        assert_eq!(name("a.bin data"), "a.bin");
        assert_eq!(name("data"), "guest7");
        assert!(
            matches!(read("web.elf").kind, ModuleKind::Guest(guest) if guest.name == read("web").name)
        );
        assert!(matches!(
            read("web.elf mem=2T").kind,
            ModuleKind::BadGuest(_)
        ));
        assert!(matches!(read("a.bin data").kind, ModuleKind::Data));
        assert!(matches!(
            read("a.bin data mem=1M").kind,
            ModuleKind::BadData(_)
        ));
        assert!(read("a mem=").is_guest() && !read("a data mem=").is_guest());
    }

    #[test]
    fn inputs_are_data() {
        let modules = [("first data", 0x1000), ("first", 0x2000), ("g.elf", 0x3000)];
        let read = |(index, (line, start))| BootModule::read(line, range(start, 1), index, 40);
        let modules: Vec<_> = (0..).zip(modules).map(read).collect();
        let find = |name| find_input(&modules, Name::new(name).unwrap());
        assert_eq!(find("first"), Ok(range(0x1000, 1)));
        assert_eq!(
            find("g"),
            Err(DataError::NoSuchInput(Name::new("g").unwrap()))
        );
    }
}
