//! Tests of freezing, forking and resetting: what each does and costs, and what is refused.

use crate::addr::{AddrRange, Gpa, Hpa, PAGE_SIZE};
use crate::ept::tests::tlb::Cpu;
use crate::ept::tests::{
    HIGH, MODULE, RAM, SHARED, add_regions, all_capabilities, finish, gpas, host_byte, memory, read,
};
use crate::ept::*;
use crate::frames::arena::Arena;
use crate::frames::{FrameError, FrameRef, PhysMem};
use std::sync::atomic::Ordering::SeqCst;

const ROM: u64 = 0xc000_0000;

/// Defines a template whose first pages hold 1, 2, 3, 4, and what it takes.
macro_rules! template {
    ($spaces:ident, $template:ident, $cpu:ident, $capability:expr) => {
        let (frames, host) = memory(400);
        let $spaces = Spaces::new(&frames, $capability).unwrap();
        let mut $cpu = Cpu::new(0);
        let mut space = $spaces.create(48).unwrap();
        add_regions(&mut space, host);
        // What is not touched here is not mapped.
        assert!(space.set_around(1));
        for page in 0..4 {
            guest_write(
                &mut space,
                &mut $cpu,
                RAM + page * PAGE_SIZE,
                page as u8 + 1,
            );
        }
        #[allow(unused_mut)]
        let mut $template = space.freeze().ok().unwrap();
        $template.settle(&mut $cpu);
    };
}

/// Ends everything and checks that all frames have come back.
macro_rules! finish {
    ($spaces:ident, $template:ident, $cpu:ident $(, $fork:ident)*) => {
        let templates = [$template.as_space()];
        assert_eq!($spaces.audit(templates.into_iter() $(.chain([&$fork]))*), Ok(0));
        $(finish($fork, &mut $cpu);)*
        let mut ending = $template.end();
        while !ending.step(&mut $cpu, 100) {}
        let frames = $spaces.frames();
        drop($spaces);
        assert_eq!(frames.statistics().used, 0);
    };
}

fn guest_write(space: &mut Space<'_, Arena>, cpu: &mut Cpu, gpa: u64, byte: u8) {
    let frame = cpu.run(space, gpa, gpa, Access::WRITE).unwrap();
    let at = Hpa::new(frame.as_u64() + gpa % PAGE_SIZE);
    // SAFETY: in the arena, in a frame that the guest may write.
    unsafe { space.frames.mem().ptr(at).write(byte) };
}

fn byte(space: &Space<'_, Arena>, gpa: u64) -> u8 {
    read(space, gpa, 1)[0]
}

/// With marks of dirty pages and without.
fn both() -> [EptCapability; 2] {
    let all = all_capabilities();
    let without = EptCapability {
        accessed_dirty: false,
        ..all
    };
    [all, without]
}

#[test]
fn a_fork_takes_one_frame_however_much_there_is() {
    template!(spaces, template, cpu, all_capabilities());
    let used = spaces.frames().statistics().used;
    let forks: Vec<_> = (0..20).map(|_| template.fork().unwrap()).collect();
    assert_eq!(spaces.frames().statistics().used, used + 20);
    for fork in &forks {
        assert_eq!((byte(fork, RAM), byte(fork, RAM + 3 * PAGE_SIZE)), (1, 4));
        assert_eq!(fork.census().unwrap().private, 1);
    }
    for fork in forks {
        finish(fork, &mut cpu);
    }
    finish!(spaces, template, cpu);
}

#[test]
fn a_warm_reset_copies_back_what_was_written_and_takes_no_violation_after() {
    for capability in both() {
        template!(spaces, template, cpu, capability);
        let marks = capability.accessed_dirty;
        let mut fork = template.fork().unwrap();
        let pages = [
            RAM,
            RAM + 2 * PAGE_SIZE,
            RAM + 9 * PAGE_SIZE,
            HIGH,
            MODULE,
            MODULE + 2 * PAGE_SIZE,
        ];
        for (round, written) in [6, 6, 2, 0, 6].into_iter().enumerate() {
            let before = fork.faults();
            for gpa in &pages[..written] {
                guest_write(&mut fork, &mut cpu, gpa + 5, 0xee);
                assert_eq!(byte(&fork, gpa + 5), 0xee);
            }
            assert_eq!(
                round == 0,
                fork.faults() != before,
                "violations in round {round}"
            );
            let invalidations = fork.invalidations();
            let restored = fork.reset(&template, Reset::Warm).unwrap();
            let copied = if marks { written as u64 } else { 6 };
            let expected = Restored {
                copied,
                kept: 6,
                ..Restored::default()
            };
            assert_eq!(restored, expected, "round {round}");
            assert_eq!(restored.bytes(), copied * PAGE_SIZE);
            // One invalidation is owed if marks were taken away.
            let _ = fork.enter(&mut cpu);
            let paid = u64::from(marks && written > 0);
            assert_eq!(fork.invalidations() - invalidations, paid);
            for gpa in pages {
                assert_eq!(byte(&fork, gpa + 5), byte(template.as_space(), gpa + 5));
            }
            assert_eq!(byte(&fork, MODULE + 5), host_byte(5));
        }
        finish!(spaces, template, cpu, fork);
    }
}

#[test]
fn pages_that_are_not_written_for_long_go() {
    template!(spaces, template, cpu, all_capabilities());
    let mut fork = template.fork().unwrap();
    for gpa in [RAM, RAM + 8 * PAGE_SIZE, MODULE, MODULE + 3 * PAGE_SIZE] {
        guest_write(&mut fork, &mut cpu, gpa, 0xee);
    }
    assert_eq!(fork.reset(&template, Reset::Auto).unwrap().copied, 4);
    let used = spaces.frames().statistics().used;
    for round in 1..=IDLE {
        guest_write(&mut fork, &mut cpu, RAM, 0xdd);
        let restored = fork.reset(&template, Reset::Auto).unwrap();
        let gone = if round == IDLE { 3 } else { 0 };
        assert_eq!(
            (restored.copied, restored.dropped, restored.frames),
            (1, gone, gone)
        );
        assert_eq!(restored.kept, 4 - gone);
    }
    let _ = fork.enter(&mut cpu);
    assert_eq!(spaces.frames().statistics().used, used - 3);
    assert_eq!(byte(&fork, MODULE), host_byte(0));
    // They can be written again.
    guest_write(&mut fork, &mut cpu, MODULE, 0xcc);
    assert_eq!(fork.reset(&template, Reset::Auto).unwrap().kept, 2);
    // Asked to, a warm reset keeps everything.
    for _ in 0..2 * IDLE {
        let restored = fork.reset(&template, Reset::Warm).unwrap();
        assert_eq!((restored.dropped, restored.kept), (0, 2));
    }
    finish!(spaces, template, cpu, fork);
}

/// The last host bytes do not fill their page: who reads it has a copy, which is logged when it is written, and not before.
#[test]
fn a_page_that_is_read_before_it_is_written_is_logged_once() {
    template!(spaces, template, cpu, all_capabilities());
    let mut fork = template.fork().unwrap();
    let (last, rom) = (MODULE + 2 * PAGE_SIZE, SHARED + 2 * PAGE_SIZE);
    for gpa in [last, rom] {
        cpu.run(&mut fork, gpa, gpa, Access::READ).unwrap();
    }
    guest_write(&mut fork, &mut cpu, last, 0xee);
    fork.load(Gpa::new(rom), b"x").unwrap();
    for round in 0..=IDLE {
        let restored = fork.reset(&template, Reset::Auto).unwrap();
        let (first, last_one) = (u64::from(round == 0), u64::from(round == IDLE));
        let told = (restored.copied, restored.dropped);
        assert_eq!(told, (2 * first, 2 * last_one), "round {round}");
        assert!(!restored.cold);
        assert_eq!(byte(&fork, last), host_byte(2 * PAGE_SIZE));
    }
    assert_eq!(fork.reset(&template, Reset::Auto).unwrap().kept, 0);
    finish!(spaces, template, cpu, fork);
}

#[test]
fn a_cold_reset_gives_back_all_but_the_root() {
    template!(spaces, template, cpu, all_capabilities());
    let mut fork = template.fork().unwrap();
    let used = spaces.frames().statistics().used;
    for gpa in [RAM, HIGH, MODULE] {
        guest_write(&mut fork, &mut cpu, gpa, 0xee);
    }
    assert!(spaces.frames().statistics().used > used);
    let restored = fork.reset(&template, Reset::Cold).unwrap();
    assert!(restored.cold && restored.dropped == 3 && restored.kept == 0);
    let _ = fork.enter(&mut cpu);
    assert_eq!(spaces.frames().statistics().used, used);
    assert_eq!(
        (byte(&fork, RAM), byte(&fork, HIGH), byte(&fork, MODULE)),
        (1, 0, host_byte(0))
    );
    finish!(spaces, template, cpu, fork);
}

#[test]
fn what_the_log_does_not_tell_is_reset_cold() {
    type Edit = fn(&mut Space<'_, Arena>);
    let edits: [(&str, Edit); 6] = [
        ("discard", |space| {
            space.discard(gpas(RAM, PAGE_SIZE)).unwrap()
        }),
        ("protect", |space| {
            space.protect(gpas(RAM, PAGE_SIZE), false, true).unwrap()
        }),
        ("remove", |space| {
            space.unmap(gpas(HIGH, 4 * PAGE_SIZE)).unwrap()
        }),
        ("add", |space| {
            let region = Region::new(gpas(1 << 40, PAGE_SIZE), RegionKind::Ram);
            space.map(region).unwrap();
            space.write(Gpa::new(1 << 40), &[1]).unwrap();
        }),
        ("fork", |space| {
            finish(space.fork().unwrap(), &mut Cpu::new(0))
        }),
        ("full", |space| {
            space.frames.allowance.store(1, SeqCst);
            let done = space.write(Gpa::new(RAM + 14 * PAGE_SIZE), &[1]);
            space.frames.allowance.store(u64::MAX, SeqCst);
            assert_eq!(done, Ok(()));
        }),
    ];
    for (name, edit) in edits {
        template!(spaces, template, cpu, all_capabilities());
        let mut fork = template.fork().unwrap();
        if name == "full" {
            // Its tables, but no log.
            cpu.run(
                &mut fork,
                RAM + 14 * PAGE_SIZE,
                RAM + 14 * PAGE_SIZE,
                Access::READ,
            )
            .unwrap();
        } else {
            guest_write(&mut fork, &mut cpu, RAM, 0xee);
        }
        edit(&mut fork);
        let restored = fork.reset(&template, Reset::Warm).unwrap();
        assert!(restored.cold, "{name}");
        assert!(fork.regions().eq(template.as_space().regions()), "{name}");
        assert_eq!(
            (byte(&fork, RAM), byte(&fork, RAM + 14 * PAGE_SIZE)),
            (1, 0),
            "{name}"
        );
        // And then it is known again.
        guest_write(&mut fork, &mut cpu, RAM, 0xee);
        assert!(!fork.reset(&template, Reset::Warm).unwrap().cold, "{name}");
        finish!(spaces, template, cpu, fork);
    }
}

#[test]
fn what_the_host_writes_is_brought_back_too() {
    template!(spaces, template, cpu, all_capabilities());
    let mut fork = template.fork().unwrap();
    for round in 0..3 {
        fork.load(Gpa::new(ROM), &[9; 3]).unwrap();
        fork.write(Gpa::new(RAM + 7), &[9; 3]).unwrap();
        let restored = fork.reset(&template, Reset::Warm).unwrap();
        assert_eq!(
            (restored.cold, restored.copied, restored.kept),
            (false, 2, 2),
            "round {round}"
        );
        assert_eq!((byte(&fork, ROM), byte(&fork, RAM + 7)), (0, 0));
    }
    finish!(spaces, template, cpu, fork);
}

#[test]
fn what_goes_because_it_is_idle_waits_for_cpus_that_may_have_it() {
    for capability in both() {
        template!(spaces, template, cpu, capability);
        let mut fork = template.fork().unwrap();
        fork.track_dirty();
        fork.load(Gpa::new(ROM), &[9; 3]).unwrap();
        for round in 0..=IDLE {
            cpu.run(&mut fork, ROM, ROM, Access::READ).unwrap();
            let restored = fork.reset(&template, Reset::Auto).unwrap();
            let gone = u64::from(round == IDLE);
            assert_eq!((restored.dropped, restored.frames), (gone, gone));
            assert_eq!(fork.tree.debt.retired.frames(), gone);
        }
        finish!(spaces, template, cpu, fork);
    }
}

#[test]
fn a_page_that_a_harvest_told_and_that_was_written_again_is_copied_back_once() {
    template!(spaces, template, cpu, all_capabilities());
    let mut fork = template.fork().unwrap();
    let page = gpas(RAM, PAGE_SIZE);
    for writes_again in [false, true] {
        guest_write(&mut fork, &mut cpu, RAM, 7);
        assert_eq!(fork.harvest_dirty(page, |_, _| ()), Ok(1));
        if writes_again {
            guest_write(&mut fork, &mut cpu, RAM, 8);
        }
        let copied = [(); 2].map(|()| fork.reset(&template, Reset::Warm).unwrap().copied);
        assert_eq!(copied, [1, 0]);
        assert_eq!(byte(&fork, RAM), 1);
    }
    finish!(spaces, template, cpu, fork);
}

#[test]
fn a_page_that_is_harvested_again_and_again_is_noted_once() {
    for capability in both() {
        template!(spaces, template, cpu, capability);
        let mut fork = template.fork().unwrap();
        guest_write(&mut fork, &mut cpu, RAM, 7);
        let used = spaces.frames().statistics().used;
        for _ in 0..1000 {
            guest_write(&mut fork, &mut cpu, RAM, 7);
            assert_eq!(fork.harvest_dirty(gpas(RAM, PAGE_SIZE), |_, _| ()), Ok(1));
        }
        let _ = fork.enter(&mut cpu);
        assert_eq!(spaces.frames().statistics().used, used);
        assert_eq!(template.remember_working_set(&fork), Ok(1));
        let restored = fork.reset(&template, Reset::Warm).unwrap();
        assert_eq!((restored.copied, restored.kept), (1, 1));
        assert_eq!(byte(&fork, RAM), 1);
        finish!(spaces, template, cpu, fork);
    }
}

#[test]
fn a_prefetched_fork_writes_its_working_set_without_a_violation() {
    for capability in both() {
        template!(spaces, template, cpu, capability);
        let pages = [RAM, RAM + 8 * PAGE_SIZE, MODULE];
        let mut first = template.fork().unwrap();
        for gpa in pages {
            guest_write(&mut first, &mut cpu, gpa, 0xee);
        }
        assert_eq!(template.remember_working_set(&first), Ok(3));
        let sum = template.checksum();
        let used = spaces.frames().statistics().used;
        let (mut fork, given) = template.fork_prefetched().unwrap();
        assert_eq!((given, template.working_set()), (3, 3));
        // A root, three pages, their tables, and the log.
        assert!(spaces.frames().statistics().used - used <= 1 + 3 + 5 + 1);
        assert_eq!((byte(&fork, RAM), byte(&fork, MODULE)), (1, host_byte(0)));
        let before = fork.faults();
        for gpa in pages {
            guest_write(&mut fork, &mut cpu, gpa, 0xdd);
        }
        assert_eq!(fork.faults(), before);
        assert_eq!(fork.reset(&template, Reset::Warm).unwrap().copied, 3);
        // What was given and not written is not copied back, where the CPU tells.
        let (mut idle, _) = template.fork_prefetched().unwrap();
        let copied = idle.reset(&template, Reset::Warm).unwrap().copied;
        assert_eq!(copied, if capability.accessed_dirty { 0 } else { 3 });
        // Without frames it is given less, is a fork all the same, and has written nothing.
        for allowed in (2..12).filter(|_| capability.accessed_dirty) {
            spaces.frames().allowance.store(allowed, SeqCst);
            let made = template.fork_prefetched();
            spaces.frames().allowance.store(u64::MAX, SeqCst);
            let (mut poor, _) = made.unwrap();
            let told = poor.harvest_dirty(gpas(RAM, 16 * PAGE_SIZE), |_, _| ());
            assert_eq!(told, Ok(0), "{allowed}");
            finish(poor, &mut cpu);
        }
        spaces.frames().allowance.store(6, SeqCst);
        let (poor, given) = template.fork_prefetched().unwrap();
        spaces.frames().allowance.store(u64::MAX, SeqCst);
        assert!(given < 3);
        assert_eq!((byte(&poor, RAM), template.checksum()), (1, sum));
        finish!(spaces, template, cpu, first, fork, idle, poor);
    }
}

#[test]
fn each_layer_holds_only_what_changed() {
    template!(spaces, template, cpu, all_capabilities());
    let mut layers = vec![];
    let mut fork = template.fork().unwrap();
    for layer in 0..4u8 {
        assert_eq!(fork.generation(), u32::from(layer) + 1);
        guest_write(
            &mut fork,
            &mut cpu,
            RAM + u64::from(layer) * PAGE_SIZE + 9,
            0xa0 + layer,
        );
        // A page, the three tables above it, and the root; the log goes when it is frozen.
        let mut frozen = fork.freeze().ok().unwrap();
        frozen.settle(&mut cpu);
        assert_eq!(frozen.as_space().census().unwrap().private, 5);
        fork = frozen.fork().unwrap();
        layers.push(frozen);
    }
    for layer in 0..4u64 {
        let at = RAM + layer * PAGE_SIZE;
        assert_eq!(
            (byte(&fork, at), byte(&fork, at + 9)),
            (layer as u8 + 1, 0xa0 + layer as u8)
        );
        assert_eq!(byte(template.as_space(), at + 9), 0);
    }
    // The lower ones may go first.
    for layer in layers {
        let mut ending = layer.end();
        while !ending.step(&mut cpu, 100) {}
        assert_eq!(byte(&fork, RAM + 9), 0xa0);
    }
    finish!(spaces, template, cpu, fork);
}

#[test]
fn bad_input_is_refused_and_nothing_is_lost() {
    let (frames, host) = memory(400);
    let spaces = Spaces::new(&frames, all_capabilities()).unwrap();
    let mut cpu = Cpu::new(0);
    let mut space = spaces.create(48).unwrap();
    add_regions(&mut space, host);
    guest_write(&mut space, &mut cpu, RAM, 1);

    // A device cannot be in two spaces.
    let range = AddrRange::new(Hpa::new(0xfee0_0000), PAGE_SIZE).unwrap();
    // SAFETY: the model CPU never touches what the address leads to.
    let device = RegionKind::PassThrough(unsafe { DeviceRange::new(range) });
    let at = gpas(0xe000_0000, PAGE_SIZE);
    space.map(Region::new(at, device)).unwrap();
    let (error, mut space) = space.freeze().err().unwrap();
    assert_eq!(error, FreezeError::PassThrough(at));
    assert!(error.to_string().contains("0xe0000000"), "{error}");
    space.unmap(at).unwrap();
    // What it was is still its own.
    let before = space.faults();
    guest_write(&mut space, &mut cpu, RAM, 2);
    assert_eq!(space.faults(), before);

    // Deeper than can be counted.
    space.lineage.generation = u32::MAX;
    let (error, mut space) = space.freeze().err().unwrap();
    assert_eq!(error, FreezeError::TooDeep);
    space.lineage.generation = 0;

    let template = space.freeze().ok().unwrap();
    let mut other = spaces.create(48).unwrap();
    add_regions(&mut other, host);
    for how in [Reset::Warm, Reset::Cold, Reset::Auto] {
        assert_eq!(other.reset(&template, how), Err(ResetError::NotAFork));
    }
    let mut second = other.freeze().ok().unwrap();
    let mut fork = template.fork().unwrap();
    guest_write(&mut fork, &mut cpu, RAM, 3);
    assert_eq!(
        fork.reset(&second, Reset::Warm),
        Err(ResetError::OtherTemplate)
    );
    assert_eq!(
        second.remember_working_set(&fork),
        Err(ResetError::OtherTemplate)
    );
    assert_eq!((byte(&fork, RAM), second.working_set()), (3, 0));

    // Without frames, or where a table has as many references as can be counted.
    let used = frames.statistics().used;
    for left in 0..1 {
        frames.allowance.store(left, SeqCst);
        let error = template.fork().err();
        assert_eq!(error, Some(EditError::Tables(Reason::OutOfFrames)));
        frames.allowance.store(u64::MAX, SeqCst);
        assert_eq!(frames.statistics().used, used);
    }
    let table = fork_table(&template);
    // SAFETY: the template holds it.
    let handle = unsafe { FrameRef::from_raw(table) };
    let count = frames.count(table);
    frames.force_count(&handle, (1 << 31) - 1);
    assert!(matches!(
        template.fork().err(),
        Some(EditError::Tables(Reason::Frames(_)))
    ));
    let refused = fork.reset(&template, Reset::Cold);
    assert!(matches!(refused, Err(ResetError::Frames(_))), "{refused:?}");
    frames.force_count(&handle, count);
    assert_eq!((byte(&fork, RAM), frames.statistics().used), (3, used));
    // The log was lost with the attempt, so the next reset is a cold one.
    assert!(fork.reset(&template, Reset::Warm).unwrap().cold);
    assert_eq!(byte(&fork, RAM), 2);

    let all = [template.as_space(), second.as_space(), &fork];
    assert_eq!(spaces.audit(all), Ok(0));
    finish(fork, &mut cpu);
    for template in [template, second] {
        let mut ending = template.end();
        while !ending.step(&mut cpu, 100) {}
    }
    drop(spaces);
    assert_eq!(frames.statistics().used, 0);
}

/// What has as many references as can be counted makes a change that needs another fail, wherever it stands, and then all is
/// as it was.
#[test]
fn a_count_that_would_overflow_leaves_all_as_it_was() {
    const MOST: u32 = (1 << 31) - 1;
    let (frames, _) = memory(4096);
    let spaces = Spaces::new(&frames, all_capabilities()).unwrap();
    let mut cpu = Cpu::new(0);
    let mut space = spaces.create(36).unwrap();
    let large = 2 << 20;
    for start in [0, 2 * large] {
        space
            .map(Region::new(gpas(start, large), RegionKind::Ram))
            .unwrap();
    }
    for page in [0, 3, 200, 511] {
        let at = page * PAGE_SIZE;
        space.write(Gpa::new(at), &[page as u8 % 7 + 1]).unwrap();
    }
    space.set_page_policy(PagePolicy::Large2M);
    space.write(Gpa::new(2 * large + 5), &[9]).unwrap();
    assert_eq!(space.census().unwrap().large, 512);
    let template = space.freeze().map_err(|(error, _)| error).unwrap();
    let sum = template.checksum().unwrap();

    let top = template.as_space().tree.view(&frames);
    let leaf = |gpa| top.find(Gpa::new(gpa), |_| true);
    // The last small page, the table of all of them, the large page.
    let places = [
        leaf(511 * PAGE_SIZE).entry().frame(),
        leaf(0).table.address(),
        leaf(2 * large).entry().frame(),
    ];
    for full in places {
        for at in [3 * PAGE_SIZE, 200 * PAGE_SIZE, 2 * large + 7 * PAGE_SIZE] {
            let mut fork = template.fork().unwrap();
            // SAFETY: the template holds it.
            let handle = unsafe { FrameRef::from_raw(full) };
            let count = frames.count(full);
            frames.force_count(&handle, MOST);
            let page = gpas(at, PAGE_SIZE);
            let all = [
                fork.write(Gpa::new(at), &[1]).map_err(|error| error.reason),
                fork.protect(page, false, false).map_err(told),
                fork.discard(page).map_err(told),
            ];
            frames.force_count(&handle, count);
            // The table of small pages is copied for those alone, the one above it for all.
            if at < large || full != places[0] {
                let overflow = Err(Reason::Frames(FrameError::CountOverflow(full)));
                assert_eq!(all, [overflow; 3], "{full:?} {at:#x}");
                assert_eq!(fork.checksum(), Ok(sum));
                assert_eq!(spaces.audit([template.as_space(), &fork]), Ok(0));
                fork.write(Gpa::new(at), &[1]).unwrap();
            } else {
                assert_eq!(all, [Ok(()); 3]);
            }
            assert_eq!(spaces.audit([template.as_space(), &fork]), Ok(0));
            finish(fork, &mut cpu);
            assert_eq!(template.checksum(), Ok(sum));
        }
    }
    let mut ending = template.end();
    while !ending.step(&mut cpu, 100) {}
    drop(spaces);
    assert_eq!(frames.statistics().used, 0);
}

fn told(error: EditError) -> Reason {
    match error {
        EditError::Tables(reason) => reason,
        other => panic!("{other}"),
    }
}

/// The table that the template's first top entry refers to.
fn fork_table(template: &FrozenSpace<'_, Arena>) -> Hpa {
    let space = template.as_space();
    space.tree.view(space.frames).entry(0).frame()
}
