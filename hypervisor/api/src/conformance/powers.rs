//! The optional powers.

use skep_guest_protocol::{Operation, Width};
use skep_memory::{BusMaster, DirtyLog, PAGE_SIZE, RegionKind, RequesterId};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::rig::{Rig, Stop};
use super::{Subject, Target};
use crate::{Doorbell, DoorbellSpace, Powers};

use Operation::{AddMemory, ReadMemory, TouchPages, WriteMemory};

/// There is no power that was not asked for, and each optional method answers as the capabilities say.
pub fn powers_are_at_most_what_was_asked_for<A: Target>(subject: &Subject<A>) {
    Rig::for_each(subject, 1, |rig: Rig<A>| {
        let powers = rig.capabilities.powers;
        assert!(subject.powers.contains(powers), "{powers:?} of {:?}", subject.powers);
        assert_eq!(rig.vm.doorbells().is_some(), powers.contains(Powers::DOORBELLS));
        assert_eq!(rig.vm.dirty_source().is_some(), powers.contains(Powers::DIRTY_LOG));
        let (eventfds, resample) = A::offers(&rig);
        assert_eq!(eventfds, powers.contains(Powers::INTERRUPT_EVENTFDS));
        if let Some(resample) = resample {
            assert_eq!(resample, powers.contains(Powers::RESAMPLE));
        }
    });
}

/// A write to an attached doorbell signals its eventfd and does not call back; one of another width or value does, and so does any once it
/// is detached. Without the power all call back.
pub fn doorbells_take_the_place_of_callbacks<A: Target>(subject: &Subject<A>) {
    let mut rig = Rig::new(subject, 1);
    let at = |n: u64| A::DEVICE + n * 0x10;
    let doorbell = |n, width, value| Doorbell { space: DoorbellSpace::Memory, address: at(n), width, value };
    // Of one width; of any; of two values.
    let doorbells = [
        doorbell(0, Some(4), None),
        doorbell(1, None, None),
        doorbell(2, Some(2), Some(5)),
        doorbell(2, Some(2), Some(6)),
    ];
    let write = |n, value, width| WriteMemory { address: at(n), value, width };
    let round = [
        write(0, 1, Width::Four),
        write(0, 2, Width::Four),
        write(0, 3, Width::Two),
        write(1, 4, Width::One),
        write(1, 5, Width::Two),
        write(1, 6, Width::Four),
        write(1, 7, Width::Eight),
        write(2, 5, Width::Two),
        write(2, 6, Width::Two),
        write(2, 6, Width::Two),
        write(2, 7, Width::Two),
        ReadMemory { address: at(0), width: Width::Four },
    ];
    let pause = rig.pause();
    let list = rig.list(&[&round[..], &pause, &round].concat());
    rig.boot(0, list);

    let fds = doorbells.map(|_| EventFd::new(EFD_NONBLOCK).expect("the host gives an eventfd"));
    let mut seen = 12;
    if let Some(power) = rig.vm.doorbells() {
        for (doorbell, fd) in doorbells.iter().zip(&fds) {
            power.attach(*doorbell, fd).expect("the backend attaches a doorbell");
        }
        assert!(power.attach(doorbells[0], &fds[1]).is_err(), "a doorbell that is taken");
        seen = 3;
    }
    assert_eq!(rig.run(0), Stop::At(0));
    let called = rig.bus.log().len() - 1;
    assert_eq!(called, seen, "what has called back: {:x?}", rig.bus.log());
    if let Some(power) = rig.vm.doorbells() {
        let signals = fds.each_ref().map(|fd| fd.read().expect("each was rung"));
        assert_eq!(signals, [2, 4, 1, 2]);
        for (doorbell, fd) in doorbells.iter().zip(&fds) {
            power.detach(*doorbell, fd).expect("the backend detaches a doorbell");
        }
        assert!(power.detach(doorbells[0], &fds[0]).is_err(), "a doorbell that is not there");
    }
    rig.bus.forget();
    assert_eq!(rig.run(0), Stop::End);
    assert_eq!(rig.bus.log().len() - 1, 12, "what has called back: {:x?}", rig.bus.log());
    assert!(fds.iter().all(|fd| fd.read().is_err()), "a detached doorbell is silent");
    rig.results(list);
}

/// The dirty log has each page that the guest or a device has written, no other, and each once.
pub fn the_dirty_log_is_exact<A: Target>(subject: &Subject<A>) {
    let mut rig = Rig::new(subject, 1);
    let gpa = A::MORE[1];
    rig.add_region(RegionKind::Ram, gpa, 200, 0x66);
    let page = |n: u64| gpa + n * PAGE_SIZE;
    let pauses = [rig.pause(), rig.pause(), rig.pause()];
    let write = |address, width| WriteMemory { address, value: 1, width };
    // A backend may log a page that the guest reads for the first time, so it has touched all of them before.
    let mut operations = vec![TouchPages { address: gpa, pages: 200, value: 1 }];
    operations.extend(pauses[0]);
    operations.extend([
        TouchPages { address: page(3), pages: 3, value: 9 },
        write(page(64) + 0xfff, Width::One),
        AddMemory { address: page(130), value: 1, width: Width::Four },
        ReadMemory { address: page(10), width: Width::Eight },
        write(page(199), Width::Two),
    ]);
    operations.extend(pauses[1]);
    operations.extend([write(page(3), Width::Eight), write(page(50), Width::Four)]);
    operations.extend(pauses[2]);
    operations.push(write(page(4), Width::Eight));
    let list = rig.list(&operations);
    rig.boot(0, list);
    assert_eq!(rig.run(0), Stop::At(0));

    let dma = rig.map.dma(RequesterId(8), BusMaster::always());
    let log = rig.vm.dirty_source().map(|source| DirtyLog::new(rig.map.clone(), source));
    let subscribe = |name| log.as_ref().map(|log| log.subscribe(name).expect("the backend logs"));
    let expect = |consumer, pages: &[usize]| {
        let (Some(log), Some(consumer)) = (&log, consumer) else { return };
        let taken = log.take(consumer).expect("the backend reads its log");
        let bits = taken.into_iter().find(|(region, _)| *region == gpa).map_or(Vec::new(), |(_, bits)| bits);
        let found: Vec<_> = (0..bits.len() * 64).filter(|page| bits[page / 64] >> (page % 64) & 1 != 0).collect();
        assert_eq!(found, pages);
    };
    let first = subscribe("migration");
    expect(first, &[]);
    assert_eq!(rig.run(0), Stop::At(1));
    dma.write(page(20) + 0xffe, &[1, 2, 3]).expect("the device writes RAM");
    expect(first, &[3, 4, 5, 20, 21, 64, 130, 199]);
    expect(first, &[]);
    let second = subscribe("display");
    assert_eq!(rig.run(0), Stop::At(2));
    expect(second, &[3, 50]);
    dma.write(page(0), &[1]).expect("the device writes RAM");
    expect(first, &[0, 3, 50]);
    expect(second, &[0]);
    for consumer in [first, second].into_iter().flatten() {
        log.as_ref().expect("it has consumers").unsubscribe(consumer).expect("the backend stops logging");
    }
    // Nothing of what comes between is seen later.
    assert_eq!(rig.run(0), Stop::End);
    expect(subscribe("diff"), &[]);
    rig.results(list);
    assert_eq!(rig.read_word(page(3)), 1);
    assert_eq!(rig.read_word(page(130)), 2);
}
