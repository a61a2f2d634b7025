//! VPIDs: under which number the CPU caches the linear translations of a guest, and whether it may use them.
//!
//! With a VPID, a VM entry keeps what is cached (SDM "Operations that Invalidate Cached Mappings", 30.4.3.1). What a guest
//! changes in its tables it invalidates itself, and what a change of the EPT tables makes stale is dropped by INVEPT under every
//! VPID. What is left is that the number was another guest's, that the guest was brought back to an earlier state, and that the
//! hypervisor carries out for the guest what else had invalidated.

/// The VPIDs of a CPU, of which each is used again only after all others.
#[derive(Debug)]
pub struct Vpids {
    last: u16,
    most: u16,
}

impl Vpids {
    /// All that there are.
    pub const fn new() -> Self {
        Self::up_to(u16::MAX)
    }

    const fn up_to(most: u16) -> Self {
        Self { last: 0, most }
    }

    /// One for the next guest. What is cached under it may be of an earlier one.
    pub fn take(&mut self) -> Vpid {
        self.last = self.last % self.most + 1;
        Vpid {
            number: self.last,
            stale: true,
        }
    }
}

impl Default for Vpids {
    fn default() -> Self {
        Self::new()
    }
}

/// The VPID of a guest.
#[derive(Debug)]
pub struct Vpid {
    /// 0: it has none, and each VM entry drops all linear translations.
    number: u16,
    /// Whether what is cached under it may be of another guest, or of this one before it was brought back.
    stale: bool,
}

impl Vpid {
    /// Of a guest on a CPU without VPIDs.
    pub const NONE: Self = Self {
        number: 0,
        stale: false,
    };

    /// The number for the VMCS, if there is one.
    pub const fn number(&self) -> Option<u16> {
        match self.number {
            0 => None,
            number => Some(number),
        }
    }

    /// The guest was given another state: its tables may hold something else.
    pub const fn outdate(&mut self) {
        self.stale = self.number != 0;
    }

    /// To be called before the guest is entered for the first time after a change of its state: drops what is stale, by
    /// `invvpid` of the number. Once is enough.
    ///
    /// # Errors
    /// That of `invvpid`: it is owed still.
    #[inline(always)]
    pub fn make_ready<E>(&mut self, invvpid: impl FnOnce(u16) -> Result<(), E>) -> Result<(), E> {
        if self.stale {
            self.flush(invvpid)?;
        }
        Ok(())
    }

    /// Drops all that is cached, as the guest has asked for or is to be spared.
    ///
    /// # Errors
    /// That of `invvpid`: it is owed still.
    pub fn flush<E>(&mut self, invvpid: impl FnOnce(u16) -> Result<(), E>) -> Result<(), E> {
        if let Some(number) = self.number() {
            invvpid(number)?;
            self.stale = false;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// A CPU that keeps what it has cached as long as it may. The cached translations of a page are what the tables said, by
    /// VPID and by the place of the top EPT table.
    #[derive(Default)]
    struct Cpu {
        cached: HashMap<(u16, usize, u8), u64>,
        invvpids: usize,
        skip: Option<usize>,
    }

    impl Cpu {
        fn invvpid(&mut self, number: u16) -> Result<(), ()> {
            if self.skip != Some(self.invvpids) {
                self.cached.retain(|(vpid, ..), _| *vpid != number);
            }
            self.invvpids += 1;
            Ok(())
        }
    }

    struct Guest {
        vpid: Vpid,
        /// Where its top EPT table is. A place that a guest had before is used again at once.
        root: usize,
        /// What its tables say; no two states say the same.
        tables: u64,
    }

    #[derive(Clone, Debug)]
    enum Step {
        Make,
        End(usize),
        /// Runs and uses these pages.
        Run(usize, [u8; 2]),
        /// Brings it back to an earlier state.
        Reset(usize),
        /// It loads CR3, which the hypervisor carries out for it.
        LoadRoot(usize),
    }

    /// Goes through the steps: the first page whose translation was not what the tables say.
    fn first_stale(steps: &[Step], skip: Option<usize>) -> (Option<usize>, usize) {
        let mut cpu = Cpu {
            skip,
            ..Cpu::default()
        };
        let mut vpids = Vpids::up_to(3);
        let mut guests: Vec<Guest> = vec![];
        let mut states = 0..;
        let mut next = || states.next().unwrap();
        for (at, step) in steps.iter().enumerate() {
            let alive = guests.len();
            match *step {
                Step::Make => {
                    let free = (0..).find(|root| guests.iter().all(|guest| guest.root != *root));
                    guests.push(Guest {
                        vpid: vpids.take(),
                        root: free.unwrap(),
                        tables: next(),
                    });
                }
                _ if alive == 0 => {}
                Step::End(guest) => drop(guests.remove(guest % alive)),
                Step::Run(guest, pages) => {
                    let guest = &mut guests[guest % alive];
                    guest.vpid.make_ready(|number| cpu.invvpid(number)).unwrap();
                    let number = guest.vpid.number().unwrap();
                    for page in pages {
                        let cached = cpu.cached.entry((number, guest.root, page));
                        if *cached.or_insert(guest.tables) != guest.tables {
                            return (Some(at), cpu.invvpids);
                        }
                    }
                }
                Step::Reset(guest) => {
                    let guest = &mut guests[guest % alive];
                    guest.tables = next();
                    guest.vpid.outdate();
                }
                Step::LoadRoot(guest) => {
                    let guest = &mut guests[guest % alive];
                    guest.tables = next();
                    guest.vpid.flush(|number| cpu.invvpid(number)).unwrap();
                }
            }
        }
        (None, cpu.invvpids)
    }

    #[test]
    fn each_kind_of_flush_is_needed() {
        use Step::{End, LoadRoot, Make, Reset, Run};
        let lives = |last: Step| [vec![Make, Run(0, [1, 2])], vec![last, Run(0, [2, 3])]].concat();
        // The number, and the place of the table, are used again.
        let again = [
            Make,
            Run(0, [1, 2]),
            End(0),
            Make,
            End(0),
            Make,
            End(0),
            Make,
            Run(0, [2, 3]),
        ];
        for steps in [lives(Reset(0)), lives(LoadRoot(0)), again.to_vec()] {
            assert_eq!(first_stale(&steps, None), (None, 2), "{steps:?}");
            let (stale, _) = first_stale(&steps, Some(1));
            assert_eq!(stale, Some(steps.len() - 1), "{steps:?}");
        }
    }

    #[test]
    fn nothing_is_flushed_that_is_not_stale() {
        let mut vpid = Vpids::new().take();
        let mut count = 0;
        let mut run = |vpid: &mut Vpid| {
            let counted = vpid.make_ready(|_| {
                count += 1;
                Ok::<(), ()>(())
            });
            counted.unwrap();
            count
        };
        assert_eq!([run(&mut vpid), run(&mut vpid)], [1, 1]);
        vpid.outdate();
        assert_eq!([run(&mut vpid), run(&mut vpid)], [2, 2]);
        // What failed is owed still.
        vpid.outdate();
        assert_eq!(vpid.make_ready(|_| Err(7)), Err(7));
        assert_eq!(vpid.make_ready(|_| Err(8)), Err(8));
    }

    #[test]
    fn without_vpids_nothing_is_ever_flushed() {
        let mut none = Vpid::NONE;
        none.outdate();
        assert_eq!(none.make_ready(|_| Err(())), Ok(()));
        assert_eq!(none.flush(|_| Err(())), Ok(()));
        assert_eq!(none.number(), None);
    }

    #[test]
    fn numbers_come_again_after_all_others_and_are_never_0() {
        let mut vpids = Vpids::new();
        let numbers: Vec<_> = (0..u16::MAX)
            .map(|_| vpids.take().number().unwrap())
            .collect();
        assert!(numbers.iter().copied().eq(1..=u16::MAX));
        assert_eq!(vpids.take().number(), Some(1));
    }

    fn step() -> impl Strategy<Value = Step> {
        let guest = 0..4_usize;
        prop_oneof![
            2 => Just(Step::Make),
            1 => guest.clone().prop_map(Step::End),
            8 => (guest.clone(), [0..4_u8, 0..4_u8]).prop_map(|(guest, pages)| Step::Run(guest, pages)),
            2 => guest.clone().prop_map(Step::Reset),
            2 => guest.prop_map(Step::LoadRoot),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn no_guest_uses_a_stale_translation(steps in prop::collection::vec(step(), 1..60)) {
            prop_assert_eq!(first_stale(&steps, None).0, None);
        }
    }
}
