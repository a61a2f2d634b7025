//! The time that a guest may take on SVM: the timer of the local APIC interrupts it once, whatever it does. And what else the
//! kernel does for guests there.

use super::failed::Failed;
use super::guest::Guest;
use super::memory::permission_maps;
use crate::boot::clock::now;
use crate::boot::console::say;
use crate::boot::{apic, traps};
use offshoot::addr::Hpa;
use offshoot::svm::cpu::{Platform, Svm};
use offshoot::svm::loaded::Taken;
use offshoot::svm::{Exit, MsrMap, Reason};
use spin::Once;

/// By which vector it interrupts.
const VECTOR: u8 = 0xe0;
/// For how many ticks of the time-stamp counter it is measured.
const MEASURED: u64 = 1 << 22;

/// The timer, and how fast it is.
struct Budget {
    timer: apic::Timer,
    /// How far it counts in [`MEASURED`] ticks.
    counts: u64,
}

static BUDGET: Once<Option<Budget>> = Once::new();

fn budget() -> Option<&'static Budget> {
    BUDGET.call_once(measure).as_ref()
}

fn measure() -> Option<Budget> {
    let timer = apic::Timer::find()?;
    timer.start(VECTOR, u32::MAX);
    let begin = now();
    let before = timer.left();
    let mut end = begin;
    while end - begin < MEASURED {
        end = now();
    }
    let counts = u64::from(before - timer.left());
    timer.start(VECTOR, 0);
    let counts = u128::from(counts) * u128::from(MEASURED) / u128::from(end - begin);
    (counts != 0).then_some(Budget {
        timer,
        counts: counts as u64,
    })
}

impl Budget {
    /// How far the timer counts in so many ticks, at least once and no further than it can.
    fn count(&self, ticks: u64) -> u32 {
        let count = u128::from(ticks) * u128::from(self.counts) / u128::from(MEASURED);
        u32::try_from(count).unwrap_or(u32::MAX).max(1)
    }
}

/// The kernel, as guests on SVM need it.
pub struct Kernel;

impl Platform for Kernel {
    fn permission_maps(&self, msrs: MsrMap) -> (Hpa, Hpa) {
        permission_maps(msrs)
    }
    fn has_timer(&self) -> bool {
        budget().is_some()
    }
    fn set_timer(&self, ticks: u64) {
        if let Some(budget) = budget() {
            budget.timer.start(VECTOR, budget.count(ticks));
        }
    }
    fn take_interrupt(&self) -> Taken {
        match (traps::take_interrupt(), budget()) {
            (Some(VECTOR), Some(budget)) => {
                budget.timer.end_of_interrupt();
                Taken::Timer
            }
            (Some(vector), _) => Taken::Other(vector),
            (None, _) => Taken::Timer,
        }
    }
}

/// Has the timer stop a guest that never ends and takes no interrupts, and says how exactly.
pub fn stop_a_guest(svm: &mut Svm<'_>, mut guest: Guest) -> Result<(), Failed> {
    if budget().is_none() {
        return Err(Failed::Wrong("there is no timer that stops a guest"));
    }
    for asked in [1 << 20, 1 << 23, 1 << 26] {
        let begin = now();
        Kernel.set_timer(asked);
        let exit = guest.enter(svm)?;
        let took = now() - begin;
        if exit != Exit::Other(Reason::Interrupt) {
            let expected = "the timer";
            return Err(Failed::Exit { expected, exit });
        }
        if Kernel.take_interrupt() != Taken::Timer {
            return Err(Failed::Wrong("the interrupt was not the timer's"));
        }
        if took < asked / 2 {
            return Err(Failed::Wrong("the timer came much too early"));
        }
        say!("svm: a guest that never ends was stopped after {took} ticks of {asked}");
    }
    Ok(())
}
