//! What is done against the side channels of a CPU: decided once, at the start, by pure functions.
//!
//! [`Facts`] is what the CPU says, [`Affected`] what follows from that, and [`Mitigations`] what is done about it where
//! `mitigations=` does not say otherwise. Carrying it out is [`Guard`]'s, at entries and exits, and
//! [`Guest`](super::Guest)'s, where another tenant comes onto the CPU. `docs/side-channels.md` has the table.

mod affected;
mod choice;
mod facts;
#[cfg(test)]
mod tests;

pub use affected::Affected;
pub use choice::{Choice, Lacking, Mitigation};
pub use facts::{Facts, Vendor};

use crate::virt::cpu::Guard;
use core::fmt;

/// IA32_SPEC_CTRL.IBRS.
const IBRS: u32 = 1 << 0;
/// IA32_SPEC_CTRL.BHI_DIS_S.
const BHI_DIS_S: u32 = 1 << 10;

/// How the L1 data cache is flushed before an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L1dFlush {
    /// By IA32_FLUSH_CMD.
    Command,
    /// By reading 64 KiB, on a CPU without it.
    Reading,
}

/// What is done with the return stack buffer after an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returns {
    /// All of it is filled.
    Filled,
    /// One call and a barrier, where enhanced IBRS does the rest.
    OneCall,
}

/// How IBRS is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ibrs {
    /// It is set once.
    Enhanced,
    /// It is set at every exit and cleared at every entry.
    EachExit,
}

/// What is done about the branch history after an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// IA32_SPEC_CTRL.BHI_DIS_S is set once.
    Unused,
    /// It is overwritten by branches: the loop for CPUs before Alder Lake.
    Cleared,
    /// The longer loop.
    ClearedLong,
}

/// What is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mitigations {
    /// Against L1TF: the L1 data cache is flushed before entries that follow code which may have read what is not the guest's.
    pub l1tf: Option<L1dFlush>,
    /// Against MDS, TAA, MMIO stale data and RFDS: VERW before every entry.
    pub mds: bool,
    /// IBPB where another tenant comes onto the CPU.
    pub ibpb: bool,
    /// What is done with the return stack buffer after every exit.
    pub rsb: Option<Returns>,
    /// How the hypervisor's indirect branches are kept from the guests' predictions.
    pub ibrs: Option<Ibrs>,
    /// Against BHI.
    pub bhi: Option<History>,
    /// Against the machine check of iTLB multihit: no large page is executable.
    pub multihit: bool,
}

impl Mitigations {
    /// Nothing.
    pub const NONE: Self = Self {
        l1tf: None,
        mds: false,
        ibpb: false,
        rsb: None,
        ibrs: None,
        bhi: None,
        multihit: false,
    };

    /// What is to be done on this CPU, or what it lacks for what was asked for.
    ///
    /// # Errors
    /// What was asked for and this CPU lacks.
    pub fn choose(choice: Choice, facts: &Facts) -> Result<Self, Lacking> {
        let affected = Affected::by(facts);
        let asked = |mitigation, auto| match choice {
            Choice::Auto => Ok(auto),
            Choice::Off => Ok(false),
            Choice::Only(set) if !set.contains(mitigation) => Ok(false),
            Choice::Only(_) if !mitigation.can_be(facts) => Err(Lacking(mitigation)),
            Choice::Only(_) => Ok(true),
        };
        let flushes = affected.l1tf && !facts.skip_l1dfl_vmentry();
        let targets = affected.spectre_v2;
        let ibrs = match facts.enhanced_ibrs() {
            true => Ibrs::Enhanced,
            false => Ibrs::EachExit,
        };
        let returns = match ibrs {
            Ibrs::Enhanced => Returns::OneCall,
            Ibrs::EachExit => Returns::Filled,
        };
        let fills = targets && (!facts.enhanced_ibrs() || affected.pbrsb);
        let history = match (facts.bhi_ctrl() && facts.has_ibrs(), facts.serialize()) {
            (true, _) => History::Unused,
            (_, false) => History::Cleared,
            (_, true) => History::ClearedLong,
        };
        let flush = match facts.flush_cmd() {
            true => L1dFlush::Command,
            false => L1dFlush::Reading,
        };
        let (can_ibpb, can_ibrs) = (facts.has_ibpb(), facts.has_ibrs());
        Ok(Self {
            l1tf: asked(Mitigation::L1tf, flushes)?.then_some(flush),
            mds: asked(Mitigation::Mds, affected.buffers())?,
            ibpb: asked(Mitigation::Ibpb, targets && can_ibpb)?,
            rsb: asked(Mitigation::Rsb, fills)?.then_some(returns),
            ibrs: asked(Mitigation::Ibrs, targets && can_ibrs)?.then_some(ibrs),
            bhi: asked(Mitigation::Bhi, affected.bhi)?.then_some(history),
            multihit: asked(Mitigation::Multihit, affected.multihit)?,
        })
    }

    /// Says at boot what is done.
    pub fn tell(&self, choice: Choice, facts: &Facts) {
        let (affected, gaps) = (Affected::by(facts), Listed(self.gaps(facts)));
        log::info!("mitigations={choice}: {self}; this CPU has {affected}{gaps}");
    }

    /// What is to be done at entries and exits.
    pub fn guard(&self) -> Guard {
        let mut spec_ctrl = 0;
        if self.ibrs == Some(Ibrs::Enhanced) {
            spec_ctrl |= IBRS;
        }
        if self.bhi == Some(History::Unused) {
            spec_ctrl |= BHI_DIS_S;
        }
        Guard {
            flush_by_command: self.l1tf == Some(L1dFlush::Command),
            flush_by_reading: self.l1tf == Some(L1dFlush::Reading),
            verw: self.mds,
            fill_returns: self.rsb == Some(Returns::Filled),
            one_call: self.rsb == Some(Returns::OneCall),
            ibrs_at_exits: self.ibrs == Some(Ibrs::EachExit),
            history_loops: match self.bhi {
                Some(History::Cleared) => Some((5, 5)),
                Some(History::ClearedLong) => Some((12, 7)),
                Some(History::Unused) | None => None,
            },
            spec_ctrl,
        }
    }

    /// What a CPU is affected by and nothing is done about, though it was to be decided here.
    pub fn gaps(&self, facts: &Facts) -> impl Iterator<Item = &'static str> + Clone + use<> {
        let affected = Affected::by(facts);
        let (md_clear, buffers) = (facts.md_clear() || facts.fb_clear(), affected.buffers());
        [
            (
                self.mds && buffers && !md_clear,
                "VERW clears no buffers without newer microcode",
            ),
            (
                affected.spectre_v2 && !facts.has_ibpb(),
                "no IBPB between tenants without newer microcode",
            ),
            (
                affected.spectre_v2 && !facts.has_ibrs(),
                "no IBRS for the hypervisor without newer microcode",
            ),
        ]
        .into_iter()
        .filter_map(|(gap, text)| gap.then_some(text))
    }
}

/// Each with a semicolon before it.
struct Listed<I>(I);

impl<I: Iterator<Item = &'static str> + Clone> fmt::Display for Listed<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.clone().try_for_each(|text| write!(f, "; {text}"))
    }
}

/// What is done, in the words of `mitigations=`.
impl fmt::Display for Mitigations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = [
            self.l1tf.map(|how| match how {
                L1dFlush::Command => "l1tf (IA32_FLUSH_CMD)",
                L1dFlush::Reading => "l1tf (reading 64 KiB)",
            }),
            self.mds.then_some("mds (VERW)"),
            self.ibpb.then_some("ibpb"),
            self.rsb.map(|how| match how {
                Returns::Filled => "rsb (filled)",
                Returns::OneCall => "rsb (one call)",
            }),
            self.ibrs.map(|how| match how {
                Ibrs::Enhanced => "ibrs (enhanced)",
                Ibrs::EachExit => "ibrs (at exits)",
            }),
            self.bhi.map(|how| match how {
                History::Unused => "bhi (BHI_DIS_S)",
                History::Cleared | History::ClearedLong => "bhi (cleared)",
            }),
            self.multihit.then_some("multihit"),
        ];
        let mut separator = "";
        for text in done.into_iter().flatten() {
            write!(f, "{separator}{text}")?;
            separator = ", ";
        }
        if separator.is_empty() {
            f.write_str("none")?;
        }
        Ok(())
    }
}
