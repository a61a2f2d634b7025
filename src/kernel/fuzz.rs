//! Fuzzing a guest, and telling of it.

use crate::boot::console::{self, say};
use crate::boot::layout::DirectMap;
use offshoot::ept::{Faults, Space};
use offshoot::host::cmdline::GuestOptions;
use offshoot::host::fuzz::{
    Blocks, CODE_MAX, Campaign, CampaignLimits, CampaignStep, Dictionary, FoundCrash, HexDump,
    Snapshot, SnapshotError, Stats, Target, codes, run_to_freeze,
};
use offshoot::host::report::GuestEnding;
use offshoot::vm::figure::{Figure, FigureName, Unit};
use offshoot::vm::loader::Image;
use offshoot::vm::{Backend, Guest, Host, Machine, RunStats, TablesOf};

/// So many seconds lie between two lines that tell how it goes.
const LINE_EVERY: u64 = 2;

/// What to fuzz and how.
pub struct Job<'j> {
    /// The guest's options.
    pub options: &'j GuestOptions,
    /// The file of its image.
    pub file: &'static [u8],
    /// An input to begin with.
    pub input: Option<&'static [u8]>,
    /// Ticks of a second.
    pub tsc_hz: u64,
}

/// What came of it.
pub struct Fuzzed {
    pub ending: GuestEnding<'static>,
    pub stats: RunStats,
    pub faults: Faults,
}

impl Job<'_> {
    /// Fuzzes `guest` until the campaign is over, and ends it. Before that, `audit` is shown the spaces that there are.
    // What it needs of the stack is needed by no other run.
    #[inline(never)]
    pub fn run<'s, H: Host, B: Backend>(
        &self,
        mut guest: Guest<'s, DirectMap, B>,
        machine: &mut Machine<'static, DirectMap, B>,
        host: &mut H,
        audit: impl FnOnce(&mut dyn Iterator<Item = &Space<'s, DirectMap, TablesOf<B>>>),
    ) -> Fuzzed {
        let frames = machine.frames();
        let prepared = run_to_freeze(&mut guest, machine, host).and_then(|(room, example)| {
            let mut dictionary = Dictionary::default();
            let image = Image::parse(self.file).map_err(SnapshotError::Image)?;
            let codes = codes(self.file, &image);
            let bytes: usize = codes.iter().map(|code| code.bytes.len()).sum();
            if bytes > CODE_MAX {
                let name = self.options.name;
                log::warn!("guest {name}: of {bytes} bytes of code only the first {CODE_MAX} are watched");
            }
            let blocks = Blocks::find(codes, frames, &mut dictionary)?;
            let fuzz = &self.options.fuzz;
            let limits = CampaignLimits {
                executions: fuzz.executions,
                crashes: fuzz.crashes as u32,
                input: room,
            };
            log::info!(
                "guest {}: fuzzing with inputs of at most {room} bytes, seed {}: {} blocks, {} constants to try, \
                 an example of {} bytes",
                self.options.name,
                fuzz.seed,
                blocks.known(),
                dictionary.tokens().len(),
                example.bytes().len(),
            );
            let inputs = [Some(example.bytes()), self.input];
            let inputs = inputs.into_iter().flatten();
            let campaign = Campaign::new(frames, limits, fuzz.seed, dictionary, inputs)?;
            Ok((blocks, campaign))
        });
        let totals = (guest.stats.clone(), guest.space().faults());
        let (blocks, mut campaign) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                guest.end(machine);
                return Fuzzed::failed(error, totals);
            }
        };
        let longest = self.options.fuzz.hang.ticks(self.tsc_hz);
        let mut snapshot = match Snapshot::new(machine, host, guest, blocks, longest) {
            Ok(snapshot) => snapshot,
            Err(error) => return Fuzzed::failed(error, totals),
        };
        let over = self.steps(&mut campaign, &mut snapshot);
        self.tell(campaign.stats(), snapshot.host());
        audit(&mut snapshot.spaces());
        let (stats, faults) = snapshot.totals();
        snapshot.end();
        let Stats {
            executions,
            crashes,
            ..
        } = *campaign.stats();
        let ending = match over {
            Ok(()) => GuestEnding::Fuzzed {
                executions,
                crashes,
                expect_crash: self.options.fuzz.expect_crash,
            },
            Err(error) => GuestEnding::NotFuzzed(error),
        };
        Fuzzed {
            ending,
            stats,
            faults,
        }
    }

    #[inline(never)]
    fn steps<H: Host, B: Backend>(
        &self,
        campaign: &mut Campaign<'_, DirectMap>,
        snapshot: &mut Snapshot<'_, '_, '_, '_, DirectMap, H, B>,
    ) -> Result<(), SnapshotError> {
        let name = self.options.name;
        let every = self.tsc_hz.saturating_mul(LINE_EVERY);
        let mut next = snapshot.now();
        loop {
            console::offer();
            match campaign.step(snapshot)? {
                CampaignStep::Over => return Ok(()),
                CampaignStep::NewCrash => {
                    if let Some(found) = campaign.crashes().last() {
                        tell_crash(self, found, snapshot.text());
                    }
                }
                CampaignStep::Nothing | CampaignStep::NewBlocks(_) => {}
            }
            if snapshot.now() >= next {
                next = snapshot.now().saturating_add(every);
                log::info!("guest {name}: {}", campaign.stats().line(self.tsc_hz));
            }
        }
    }

    /// Tells what it came to, and files the figures of it.
    fn tell(&self, stats: &Stats, host: &mut impl Host) {
        let name = self.options.name;
        say!("guest {name}: {}", stats.line(self.tsc_hz));
        say!(
            "guest {name}: {} executions per 1,000,000,000 ticks of the TSC, which in Bochs are instructions",
            stats.per_billion()
        );
        say!("guest {name}: {}", stats.costs());
        if stats.first_crash != 0 {
            say!(
                "guest {name}: the first crash came after {} executions and {} ms",
                stats.first_crash,
                (u128::from(stats.first_crash_ticks) * 1000).div_ceil(self.tsc_hz.into())
            );
        }
        for (figure, value) in [
            (&b"fuzz.executions"[..], stats.executions),
            (b"fuzz.per_second", stats.per_second(self.tsc_hz)),
            (b"fuzz.per_billion", stats.per_billion()),
            (b"fuzz.blocks.known", stats.known.into()),
            (b"fuzz.blocks.reached", stats.reached.into()),
            (b"fuzz.corpus", stats.corpus.into()),
            (b"fuzz.crashes", stats.crashes.into()),
            (b"fuzz.first_crash", stats.first_crash),
        ] {
            if let Some(figure) = FigureName::new(figure) {
                // Where there is no room, the lines above have said it.
                let _ = host.figure(Figure {
                    guest: name,
                    host: true,
                    name: figure,
                    value,
                    unit: Unit::Count,
                });
            }
        }
    }
}

fn tell_crash(job: &Job<'_>, found: &FoundCrash<'_, DirectMap>, text: &str) {
    let name = job.options.name;
    let input = found.input();
    say!(
        "guest {name}: new crash after {} executions: {}; its input of {} bytes:\n{}what it said:\n{text}",
        found.executions,
        found.crash,
        input.len(),
        HexDump(input),
    );
}

impl Fuzzed {
    fn failed(error: SnapshotError, (stats, faults): (RunStats, Faults)) -> Self {
        Self {
            ending: GuestEnding::NotFuzzed(error),
            stats,
            faults,
        }
    }
}
