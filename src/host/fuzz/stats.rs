//! What a campaign came to.

use core::fmt;

/// Where the time of a campaign went, and what it found. Ticks are those of the TSC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Inputs that were run.
    pub executions: u64,
    /// Basic blocks of the program.
    pub known: u32,
    /// Those that some input reached.
    pub reached: u32,
    /// Inputs that are kept because they reached something new.
    pub corpus: u32,
    /// Runs that did not end well.
    pub failures: u64,
    /// The different ones among them.
    pub crashes: u32,
    /// After so many executions the first one was found; 0 if none was.
    pub first_crash: u64,
    /// Ticks until then.
    pub first_crash_ticks: u64,
    /// Ticks that the guest ran.
    pub guest: u64,
    /// Ticks that the hypervisor took for its exits.
    pub host: u64,
    /// Ticks of resets, and of putting inputs in.
    pub reset: u64,
    /// Ticks of making inputs, and of keeping those that are worth it.
    pub mutate: u64,
    /// Ticks of making the next template, after a run that reached something new.
    pub learn: u64,
    /// Pages that were brought back by resets.
    pub pages: u64,
}

impl Stats {
    /// All ticks.
    pub const fn ticks(&self) -> u64 {
        self.guest + self.host + self.reset + self.mutate + self.learn
    }

    /// Executions per billion ticks.
    pub const fn per_billion(&self) -> u64 {
        scaled(self.executions, 1_000_000_000, self.ticks())
    }

    /// Executions per second of a TSC with this frequency.
    pub const fn per_second(&self, hz: u64) -> u64 {
        scaled(self.executions, hz, self.ticks())
    }

    const fn each(&self, ticks: u64) -> u64 {
        scaled(1, ticks, self.executions)
    }

    /// A line for those who watch.
    pub fn line(&self, hz: u64) -> impl fmt::Display + '_ {
        let Self {
            executions,
            reached,
            known,
            corpus,
            crashes,
            ..
        } = *self;
        let rate = self.per_second(hz);
        Line(move |f: &mut fmt::Formatter<'_>| {
            write!(
                f,
                "{executions} executions, {rate}/s, {reached} of {known} blocks, \
                 {corpus} inputs kept, {crashes} crash{}",
                if crashes == 1 { "" } else { "es" }
            )
        })
    }

    /// What one execution cost, by what it was for.
    pub fn costs(&self) -> impl fmt::Display + '_ {
        let each = [
            self.ticks(),
            self.guest,
            self.host,
            self.reset,
            self.mutate,
            self.learn,
        ]
        .map(|ticks| self.each(ticks));
        let pages = scaled(self.pages, 10, self.executions);
        Line(move |f: &mut fmt::Formatter<'_>| {
            let [all, guest, host, reset, mutate, learn] = each;
            write!(
                f,
                "an execution takes {all} ticks: guest {guest}, its exits {host}, reset {reset} \
                 ({}.{} pages), making the input {mutate}, new templates {learn}",
                pages / 10,
                pages % 10
            )
        })
    }
}

/// `value * by / of`, or 0 where there is nothing to divide by.
const fn scaled(value: u64, by: u64, of: u64) -> u64 {
    match of {
        0 => 0,
        of => {
            let scaled = value as u128 * by as u128 / of as u128;
            if scaled > u64::MAX as u128 {
                u64::MAX
            } else {
                scaled as u64
            }
        }
    }
}

/// What is displayed by a function.
struct Line<F>(F);

impl<F: Fn(&mut fmt::Formatter<'_>) -> fmt::Result> fmt::Display for Line<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_shares() {
        let stats = Stats {
            executions: 2_000,
            known: 300,
            reached: 120,
            corpus: 17,
            crashes: 1,
            guest: 2_000_000,
            host: 500_000,
            reset: 1_000_000,
            mutate: 400_000,
            learn: 100_000,
            pages: 5_000,
            ..Stats::default()
        };
        assert_eq!(stats.per_billion(), 500_000);
        assert_eq!(stats.per_second(3_000_000_000), 1_500_000);
        assert_eq!(
            stats.line(100_000_000).to_string(),
            "2000 executions, 50000/s, 120 of 300 blocks, 17 inputs kept, 1 crash"
        );
        assert_eq!(
            stats.costs().to_string(),
            "an execution takes 2000 ticks: guest 1000, its exits 250, reset 500 (2.5 pages), \
             making the input 200, new templates 50"
        );
    }

    #[test]
    fn nothing_is_divided_by_nothing() {
        let none = Stats::default();
        assert_eq!((none.per_billion(), none.per_second(u64::MAX)), (0, 0));
        assert!(none.costs().to_string().contains("takes 0 ticks"));
        let many = Stats {
            executions: u64::MAX,
            guest: 1,
            ..none
        };
        assert_eq!(many.per_billion(), u64::MAX);
    }
}
