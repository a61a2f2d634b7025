//! Bad input: each bad guest is named with the reason and not run or stopped, a healthy one after it runs, and no
//! frame is lost. Many bad guests share one boot.

use crate::booted::{Booted, boot, run, sample};
use crate::elf_file::{
    ADDRESS, CLASS, ENTRY, ElfFile, FILE_SIZE, HEADERS, MACHINE, MEMORY_SIZE, OFFSET, SECTIONS,
    TYPE, file,
};
use offshoot_runner::Guest;

/// A bad guest with the words of the line that must say what is wrong with it.
struct Bad {
    guest: Guest,
    name: String,
    says: Vec<&'static str>,
}

impl Bad {
    fn new(guest: Guest, name: &str, says: &[&'static str]) -> Self {
        Self {
            guest,
            name: name.into(),
            says: says.to_vec(),
        }
    }
}

/// Boots the bad guests, each with a healthy one after it.
fn each_is_refused(test: &str, bad: &[Bad]) -> Booted {
    each_is_refused_beside(test, bad, Vec::new())
}

/// The same with other modules behind them.
fn each_is_refused_beside(test: &str, bad: &[Bad], others: Vec<Guest>) -> Booted {
    let after = |name: &str| format!("after-{name}");
    let guests = bad
        .iter()
        .flat_map(|bad| {
            let healthy = sample("hello").with(format!("name={}", after(&bad.name)));
            [bad.guest.clone(), healthy]
        })
        .chain(others)
        .collect();
    let booted = boot(&run(test, guests));
    for bad in bad {
        let words: Vec<_> = [bad.name.as_str()]
            .into_iter()
            .chain(bad.says.iter().copied())
            .collect();
        booted.says(&words);
        assert_ne!(
            booted.guest(&bad.name).status,
            Some(0),
            "{}",
            booted.tell(&bad.name)
        );
        booted.healthy(&after(&bad.name));
    }
    booted.failed_with(&[]);
    booted.no_frame_lost();
    booted
}

#[test]
fn images_that_are_none() {
    let test = "bad-images";
    let elf = |name: &str, elf: ElfFile, says: &[&'static str]| {
        Bad::new(elf.guest(test, name), name, says)
    };
    let good = ElfFile::good;
    let twice = 2 * good().bytes().len() as u64;
    let nowhere = good()
        .with_segment(0, FILE_SIZE, twice)
        .with_segment(0, MEMORY_SIZE, twice);
    let text = b"#!/bin/sh\necho hello\n";
    each_is_refused(
        test,
        &[
            Bad::new(file(test, "empty", b""), "empty", &["empty"]),
            Bad::new(file(test, "script", text), "script", &["not an ELF file"]),
            elf("cut-magic", good().cut(5), &["truncated"]),
            elf("cut-header", good().cut(63), &["truncated"]),
            elf("cut-headers", good().cut(64 + 30), &["truncated"]),
            elf("cut-segment", good().cut(0x1800), &["truncated"]),
            elf(
                "headers-nowhere",
                good().word(HEADERS, u64::MAX - 7),
                &["truncated"],
            ),
            elf("bits32", good().byte(CLASS, 1), &["32-bit"]),
            elf("pie", good().byte(TYPE, 3), &["position-independent"]),
            elf("arm", good().byte(MACHINE, 183), &["machine 183"]),
            elf("data-nowhere", nowhere, &["truncated"]),
        ],
    );
}

#[test]
fn segments_that_cannot_be_loaded() {
    let test = "bad-segments";
    let elf = |name: &str, elf: ElfFile, says: &[&'static str]| {
        Bad::new(elf.guest(test, name), name, says)
    };
    let good = ElfFile::good;
    let text = good().segment(0, ADDRESS);
    each_is_refused(
        test,
        &[
            elf(
                "overlap",
                good().with_segment(1, ADDRESS, text),
                &["two segments share"],
            ),
            elf(
                "wrap",
                good().with_segment(1, MEMORY_SIZE, u64::MAX - 0x1000),
                &["passes the last address"],
            ),
            elf(
                "last-page",
                good().with_segment(1, ADDRESS, u64::MAX - 0xfff),
                &["passes the last address"],
            ),
            elf(
                "outside",
                good().with_segment(1, ADDRESS, 1 << 30),
                &["outside the guest's"],
            ),
            elf(
                "far-outside",
                good().with_segment(1, ADDRESS, 1 << 60),
                &["outside the guest's"],
            ),
            elf("null-page", good().with_segment(1, ADDRESS, 0), &["page 0"]),
            elf(
                "shrunk",
                good().with_segment(1, MEMORY_SIZE, 1),
                &["in memory"],
            ),
            elf(
                "huge-bss",
                good().with_segment(1, MEMORY_SIZE, 1 << 40),
                &["outside the guest's"],
            ),
            elf(
                "no-entry",
                good().word(ENTRY, 0x10_0000_0000),
                &["entry point", "in no segment"],
            ),
            elf(
                "entry-in-data",
                good().word(ENTRY, good().segment(1, ADDRESS)),
                &["entry point", "not executable"],
            ),
        ],
    );
}

/// Only the headers and what segments have in the file is needed, and anything else may be nowhere.
#[test]
fn bytes_that_nobody_needs_may_be_nowhere() {
    let test = "unneeded-bytes";
    let bss = |name: &str, offset: u64| {
        let elf = ElfFile::with_bss().with_segment(1, OFFSET, offset);
        elf.guest(test, name)
    };
    let good = ElfFile::good();
    let end = good.segment(1, OFFSET) + good.segment(1, FILE_SIZE);
    let stripped = good.cut(end as usize).word(SECTIONS, u64::MAX - 63);
    let guests = vec![
        bss("at-its-end", 0x100),
        bss("beyond", 0x2000),
        bss("nowhere", u64::MAX),
        stripped.guest(test, "stripped"),
    ];
    let booted = boot(&run(test, guests));
    booted.all_well();
    booted.no_frame_lost();
}

#[test]
fn a_segment_that_is_writable_and_executable_is_only_warned_of() {
    let test = "writable-text";
    let guest = ElfFile::good().with_flags(0, 7).guest(test, "wx");
    let booted = boot(&run(test, vec![guest]));
    booted.all_well();
    booted.says(&["wx", "both writable and executable"]);
}

#[test]
fn options_that_make_no_sense() {
    let option = |name: &str, option: &str, says: &[&'static str]| {
        let guest = sample("hello").with(format!("name={name}")).with(option);
        Bad::new(guest, name, says)
    };
    each_is_refused(
        "bad-options",
        &[
            option("mem-zero", "mem=0", &["mem", "zero"]),
            option("mem-word", "mem=lots", &["mem", "not a size"]),
            option("mem-negative", "mem=-1", &["mem", "not a size"]),
            option("mem-odd", "mem=5000", &["mem", "multiple of 4 KiB"]),
            option("mem-tiny", "mem=4K", &["mem"]),
            option("mem-width", "mem=0x10000000000000", &["mem", "bits"]),
            option("mem-wrap", "mem=99999999999999999999G", &["mem"]),
            option("no-budget", "budget=soon", &["budget", "not a time"]),
            option("no-option", "colour=red", &["colour", "no such option"]),
        ],
    );
}

#[test]
fn data_that_cannot_be_mapped() {
    let test = "bad-data";
    let map = |name: &str, option: &str, says: &[&'static str]| {
        let guest = sample("hello").with(format!("name={name}")).with(option);
        Bad::new(guest, name, says)
    };
    let data = |file_name: &str, option: &str| {
        file(test, file_name, b"not an ELF file")
            .with("data")
            .with(option)
    };
    let twice = sample("hello")
        .with("name=twice")
        .with("map=corpus")
        .with("map=corpus");
    // As much memory as a guest-physical address reaches: nothing is left behind it.
    let wide = sample("hello")
        .with("name=wide")
        .with("mem=1T")
        .with("map=corpus");
    let empty = file(test, "empty", b"").with("data");
    let booted = each_is_refused_beside(
        test,
        &[
            map("nothing", "map=", &["map", "needs a value"]),
            map(
                "no-name",
                "map=a:b",
                &["map", "not the name of a data module"],
            ),
            map(
                "no-data",
                "map=nobody",
                &["map=nobody", "no boot module is data"],
            ),
            map("a-guest", "map=after-nothing", &["that is a guest"]),
            map("no-bytes", "map=empty", &["the data empty has no bytes"]),
            Bad::new(twice, "twice", &["map", "given twice"]),
            Bad::new(wide, "wide", &["reaches beyond", "40 bits"]),
            Bad::new(data("a", "mem=1M"), "a", &["mem", "no option but name="]),
            Bad::new(
                data("b", "map=corpus"),
                "b",
                &["map", "no option but name="],
            ),
            Bad::new(data("c", "data"), "c", &["data", "given twice"]),
            Bad::new(data("d", "name=a/b"), "d", &["name", "a name is"]),
            Bad::new(empty, "empty", &["the data empty has no bytes"]),
        ],
        vec![data("corpus", "name=corpus")],
    );
    booted.says(&["data corpus", "15 bytes"]);
    assert!(booted.report().guest("corpus").is_none());
}

#[test]
fn data_alone_is_no_run() {
    let data = || file("data-alone", "corpus", b"data").with("data");
    let booted = boot(&run("data-alone", vec![data(), data()]));
    booted.failed_with(&["corpus"]);
    booted.says(&["data corpus", "same name"]);
    let booted = boot(&run("data-only", vec![data()]));
    booted.failed_with(&["no guests"]);
    booted.no_frame_lost();
}

#[test]
fn the_second_of_two_guests_with_one_name_is_refused() {
    let guests = vec![
        sample("hello").with("name=twin"),
        sample("hello").with("name=twin"),
        sample("hello").with("name=after"),
    ];
    let booted = boot(&run("twins", guests));
    booted.failed_with(&[]);
    booted.says(&["twin", "name"]);
    let statuses: Vec<_> = booted.report().guests.iter().map(|g| g.status).collect();
    assert_eq!(
        statuses,
        [Some(0), None, Some(0)],
        "{}",
        booted.tell("statuses")
    );
    booted.no_frame_lost();
}

#[test]
fn a_run_without_guests_fails_and_says_so() {
    let booted = boot(&run("no-guests", Vec::new()));
    booted.failed_with(&["guest"]);
    assert!(booted.report().guests.is_empty());
    booted.no_frame_lost();
}

#[test]
fn an_exhausted_pool_stops_only_the_guest_that_drained_it() {
    let guests = vec![
        sample("sparse").with("mem=1G"),
        sample("hello").with("name=after"),
    ];
    let mut run = run("exhausted", guests);
    // A quarter of what the guest writes.
    run.cmdline = "pool=8M audit".into();
    let booted = boot(&run);
    booted.failed_with(&["sparse"]);
    booted.says(&["sparse", "frame"]);
    assert_eq!(
        booted.guest("sparse").status,
        None,
        "{}",
        booted.tell("sparse")
    );
    booted.healthy("after");
    booted.no_frame_lost();
}
