//! Booting, for a test: shared build, bounded number of emulators, and what every test asks of what came out.

use offshoot_runner::image::Samples;
use offshoot_runner::nested::Ended;
use offshoot_runner::{Guest, Image, Outcome, Report, Run, Verdict, report};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// How long a run of a test may take. The longest takes a fifth of it on an idle machine with two CPUs.
const LIMIT: Duration = Duration::from_secs(240);

/// The image, built once.
pub fn image() -> &'static Image {
    static IMAGE: OnceLock<Result<Image, String>> = OnceLock::new();
    let build = || Samples::build().and_then(Image::build);
    match IMAGE.get_or_init(|| build().map_err(|error| error.to_string())) {
        Ok(image) => image,
        Err(error) => panic!("{error}"),
    }
}

/// A sample guest.
pub fn sample(name: &str) -> Guest {
    match image().samples.get(name) {
        Some(path) => Guest::new(path),
        None => panic!("no guest `{name}` was built"),
    }
}

/// The right to run an emulator, given back when dropped.
struct Slot;

static FREE: (Mutex<u32>, Condvar) = (Mutex::new(2), Condvar::new());

impl Slot {
    fn take() -> Self {
        let free = FREE.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = FREE
            .1
            .wait_while(free, |free| *free == 0)
            .unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *FREE.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        FREE.1.notify_one();
    }
}

/// A run with the limit of the tests, in which every frame count and table is checked after each guest.
pub fn run(name: &str, guests: Vec<Guest>) -> Run {
    let mut run = Run::new(name, guests);
    run.limit = LIMIT;
    run.cmdline = "audit".into();
    run
}

/// What a run left, with the lines of its console.
pub struct Booted {
    outcome: Outcome,
    lines: Vec<String>,
}

/// Boots the image. The emulator must have had no reason to complain.
pub fn boot(run: &Run) -> Booted {
    let booted = boot_despite(run);
    let complaints = &booted.outcome.complaints;
    assert!(
        complaints.is_empty(),
        "{}",
        booted.tell(&complaints.join("\n"))
    );
    booted
}

/// Boots the image to do what emulators complain of.
pub fn boot_despite(run: &Run) -> Booted {
    boot_image(run, image())
}

/// Boots the kernel that counts.
pub fn boot_counting(run: &Run) -> Booted {
    match Image::build_counting(image().samples.clone()) {
        Ok(image) => boot_image(run, &image),
        Err(error) => panic!("{error}"),
    }
}

/// Does something that needs an emulator.
pub fn with_slot<T>(with: impl FnOnce() -> T) -> T {
    let _slot = Slot::take();
    with()
}

impl From<Ended> for Booted {
    fn from(Ended { outcome, lines }: Ended) -> Self {
        Self { outcome, lines }
    }
}

fn boot_image(run: &Run, image: &Image) -> Booted {
    let mut lines = Vec::new();
    let outcome = with_slot(|| run.boot(image, &mut |line| lines.push(line.to_owned())));
    match outcome {
        Ok(outcome) => Booted { outcome, lines },
        Err(error) => panic!("{}: {error}", run.name),
    }
}

impl Booted {
    /// A message for a failed assertion.
    pub fn tell(&self, what: &str) -> String {
        let skip = self.lines.len().saturating_sub(40);
        format!(
            "{what}\nverdict: {}\nkept in {}\nconsole (end):\n{}",
            self.outcome.verdict,
            self.outcome.dir.display(),
            self.lines[skip..].join("\n")
        )
    }

    /// The report, which must be there.
    #[track_caller]
    pub fn report(&self) -> &Report {
        match &self.outcome.report {
            Some(report) => report,
            None => panic!("{}", self.tell("no report")),
        }
    }

    /// The guest of that name in the report.
    #[track_caller]
    pub fn guest(&self, name: &str) -> &report::Guest {
        match self.report().guest(name) {
            Some(guest) => guest,
            None => panic!("{}", self.tell(&format!("no guest `{name}` in the report"))),
        }
    }

    /// The figure of that name in the report.
    #[track_caller]
    pub fn figure(&self, name: &str) -> u64 {
        let figure = self
            .report()
            .figures
            .iter()
            .find(|figure| figure.name == name);
        match figure {
            Some(figure) => figure.value,
            None => panic!("{}", self.tell(&format!("no figure `{name}`"))),
        }
    }

    /// Every guest ended with status 0, no frame was lost, and the run is called good.
    #[track_caller]
    pub fn all_well(&self) {
        let ok = self.outcome.verdict == Verdict::Ok;
        assert!(ok, "{}", self.tell("the run failed"));
        for guest in &self.report().guests {
            assert_eq!(guest.status, Some(0), "{}", self.tell(&guest.name));
        }
        self.no_frame_lost();
    }

    /// The guest of that name ended well.
    #[track_caller]
    pub fn healthy(&self, name: &str) {
        let status = self.guest(name).status;
        assert_eq!(status, Some(0), "{}", self.tell(name));
    }

    /// All frames came back.
    #[track_caller]
    pub fn no_frame_lost(&self) {
        let leaked = self.report().frames.leaked;
        assert_eq!(leaked, 0, "{}", self.tell("frames are lost"));
    }

    /// The image itself said that the run failed, with all of these words.
    #[track_caller]
    pub fn failed_with(&self, words: &[&str]) {
        let Verdict::Failed(reason) = &self.outcome.verdict else {
            panic!("{}", self.tell("the image did not say that it failed"));
        };
        for word in words {
            assert!(
                reason.contains(word),
                "{}",
                self.tell(&format!("the reason lacks `{word}`"))
            );
        }
    }

    /// One line of the console has all of these words.
    #[track_caller]
    pub fn says(&self, words: &[&str]) {
        let found = self
            .lines
            .iter()
            .any(|line| words.iter().all(|word| line.contains(word)));
        assert!(
            found,
            "{}",
            self.tell(&format!("no line has all of {words:?}"))
        );
    }

    /// How many lines of the console have all of these words.
    pub fn count(&self, words: &[&str]) -> usize {
        let all = |line: &&String| words.iter().all(|word| line.contains(word));
        self.lines.iter().filter(all).count()
    }

    /// No line of the console has this word.
    #[track_caller]
    pub fn is_silent_on(&self, word: &str) {
        let found = self.lines.iter().any(|line| line.contains(word));
        assert!(!found, "{}", self.tell(&format!("a line has `{word}`")));
    }

    /// A backtrace of the hypervisor names this function.
    #[track_caller]
    pub fn went_through(&self, function: &str) {
        let backtrace = &self.outcome.backtrace;
        let found = backtrace.iter().any(|place| place.contains(function));
        assert!(
            found,
            "{}",
            self.tell(&format!("{function} is not in {backtrace:#?}"))
        );
    }
}
