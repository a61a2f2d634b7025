//! `mitigations=`: what is to be done.

use super::facts::Facts;
use core::fmt;

/// One thing that can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mitigation {
    /// The L1 data cache is flushed before entries.
    L1tf,
    /// Buffers are cleared before entries.
    Mds,
    /// A barrier between tenants.
    Ibpb,
    /// The return stack buffer is filled after exits.
    Rsb,
    /// IBRS in the hypervisor.
    Ibrs,
    /// The branch history is cleared after exits, or not used.
    Bhi,
    /// No large page is executable.
    Multihit,
}

impl Mitigation {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::L1tf,
        Self::Mds,
        Self::Ibpb,
        Self::Rsb,
        Self::Ibrs,
        Self::Bhi,
        Self::Multihit,
    ];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::L1tf => "l1tf",
            Self::Mds => "mds",
            Self::Ibpb => "ibpb",
            Self::Rsb => "rsb",
            Self::Ibrs => "ibrs",
            Self::Bhi => "bhi",
            Self::Multihit => "multihit",
        }
    }

    /// Whether a CPU can do it. An MSR that it lacks raises #GP.
    pub fn can_be(self, facts: &Facts) -> bool {
        match self {
            Self::Ibpb => facts.has_ibpb(),
            Self::Ibrs => facts.has_ibrs(),
            Self::L1tf | Self::Mds | Self::Rsb | Self::Bhi | Self::Multihit => true,
        }
    }
}

/// Some of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MitigationSet(u8);

impl MitigationSet {
    /// Whether it is among them.
    pub const fn contains(self, mitigation: Mitigation) -> bool {
        self.0 >> mitigation as u8 & 1 != 0
    }
}

/// What `mitigations=` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// What the CPU needs.
    #[default]
    Auto,
    /// Nothing.
    Off,
    /// These, whether the CPU needs them or not.
    Only(MitigationSet),
}

impl Choice {
    /// Reads `auto`, `off`, or names separated by commas.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => return Some(Self::Auto),
            "off" => return Some(Self::Off),
            _ => {}
        }
        let mut set = 0;
        for word in text.split(',') {
            let named = Mitigation::ALL.into_iter().find(|one| one.name() == word)?;
            set |= 1 << named as u8;
        }
        Some(Self::Only(MitigationSet(set)))
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::Only(set) => {
                let mut separator = "";
                for one in Mitigation::ALL.into_iter().filter(|one| set.contains(*one)) {
                    write!(f, "{separator}{}", one.name())?;
                    separator = ",";
                }
                Ok(())
            }
        }
    }
}

/// Something was asked for that the CPU cannot do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lacking(pub Mitigation);

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, lacks) = match self.0 {
            Mitigation::Ibpb => ("ibpb", "IA32_PRED_CMD"),
            other => (other.name(), "IA32_SPEC_CTRL"),
        };
        write!(
            f,
            "mitigations={name}: this CPU has no {lacks} (CPUID.(EAX=07H,ECX=0):EDX[bit 26] is 0)"
        )
    }
}

impl core::error::Error for Lacking {}
