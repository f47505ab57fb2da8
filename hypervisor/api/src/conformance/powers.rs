//! The optional powers.

use skep_guest_protocol::{Operation, Width};
use skep_memory::{BusMaster, DirtyLog, PAGE_SIZE, RegionKind, RequesterId};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::rig::{Rig, Stop};
use super::{Subject, Target};
use crate::{Doorbell, DoorbellSpace, Powers};

use Operation::{AddMemory, ReadMemory, SpinUntil, StartCpu, TouchPages, WriteMemory};

/// There is no power that was not asked for, and each optional method answers as the capabilities say.
pub fn powers_are_at_most_what_was_asked_for<A: Target>(subject: &Subject<A>) {
    Rig::for_each(subject, 1, |rig: Rig<A>| {
        let powers = rig.capabilities.powers;
        assert!(subject.powers.contains(powers), "{powers:?} of {:?}", subject.powers);
        assert_eq!(rig.vm.doorbells().is_some(), powers.contains(Powers::DOORBELLS));
        assert_eq!(rig.vm.dirty_source().is_some(), powers.contains(Powers::DIRTY_LOG));
        assert_eq!(rig.vm.posted_writes().is_some(), powers.contains(Powers::POSTED_WRITES));
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

/// Posted writes come in their order among all accesses, whole, once, and by few exits; also where there are more than there is room for, and when they are
/// no more to be posted. Without the power each is an exit.
pub fn posted_writes_come_in_their_order<A: Target>(subject: &Subject<A>) {
    const EACH: u64 = 300;
    let mut rig = Rig::new(subject, 1);
    let start = A::DEVICE + 2 * PAGE_SIZE;
    let (posted, beyond) = (start..start + PAGE_SIZE, start + PAGE_SIZE);
    let width = |n: u64| Width::ALL[(n % 4) as usize];
    let write = |n: u64| WriteMemory { address: start + n * 8, value: n, width: width(n) };
    let read = |address| ReadMemory { address, width: Width::Four };
    let round: Vec<_> = (0..EACH)
        .map(write)
        .chain([read(start + 0x10), write(1), WriteMemory { address: beyond, value: 7, width: Width::Two }])
        .chain([write(2), read(beyond), write(3)])
        .collect();
    let pauses = [rig.pause(), rig.pause()];
    let list = rig.list(&[&round[..], &pauses[0], &round, &pauses[1], &round].concat());
    rig.boot(0, list);
    let mut check = |stop, few: bool| {
        let before = rig.vcpu(0).exits().memory_writes;
        assert_eq!(rig.run(0), stop);
        let log = rig.bus.log();
        let seen: Vec<_> = log.iter().take(round.len()).map(|a| (a.write, a.address, a.width)).collect();
        let expected = round.iter().map(|operation| match operation {
            WriteMemory { address, width, .. } => (true, *address, usize::from(width.bytes())),
            ReadMemory { address, width } => (false, *address, usize::from(width.bytes())),
            other => panic!("{other:?} is in no round"),
        });
        assert_eq!(seen, expected.collect::<Vec<_>>());
        let values = log.iter().take(EACH as usize).map(|access| access.value);
        assert!(values.eq((0..EACH).map(|n| width(n).truncate(n))), "what was written");
        let exits = rig.vcpu(0).exits().memory_writes - before;
        assert!(if few { exits < EACH / 2 } else { exits > EACH }, "{exits} exits");
        rig.bus.forget();
        rig.vm.posted_writes()
    };
    let Some(power) = check(Stop::At(0), false) else { return };
    power.attach(posted.clone()).expect("the backend posts writes");
    check(Stop::At(1), true);
    power.detach(posted).expect("the backend posts no more");
    check(Stop::End, false);
    rig.results(list);
}

/// Writes that wait when their range is detached come as they would have, before the next one, which is an exit again.
pub fn posted_writes_outlast_their_range<A: Target>(subject: &Subject<A>) {
    let mut rig = Rig::new(subject, 1);
    let device = A::DEVICE + 2 * PAGE_SIZE;
    let range = device..device + PAGE_SIZE;
    let power = rig.vm.posted_writes();
    if let Some(power) = &power {
        power.attach(range.clone()).expect("the backend posts writes");
    }
    let cells = rig.allocate(16, 64);
    rig.write(cells, &[0; 16]);
    let word = |address, value| WriteMemory { address, value, width: Width::Eight };
    let write = |n| word(device + 8 * n, n);
    let list = [write(1), write(2), write(3), word(cells, 1)];
    let then = [SpinUntil { address: cells + 8, value: 1, width: Width::Eight }, write(4)];
    let list = rig.list(&[&list[..], &then].concat());
    rig.boot(0, list);
    let before = rig.vcpu(0).exits().memory_writes;
    let running = rig.start(0);
    while rig.read_word(cells) != 1 {
        std::thread::yield_now();
    }
    if let Some(power) = &power {
        power.detach(range.clone()).expect("the backend posts no more");
    }
    rig.write_word(cells + 8, 1);
    assert_eq!(rig.join(running), Stop::End);
    let log = rig.bus.log();
    let seen = log.iter().filter(|access| range.contains(&access.address)).map(|access| (access.write, access.value));
    assert_eq!(seen.collect::<Vec<_>>(), [(true, 1), (true, 2), (true, 3), (true, 4)]);
    // The last one is the list's end.
    let exits = rig.vcpu(0).exits().memory_writes - before;
    assert_eq!(exits, if power.is_some() { 2 } else { 5 });
    rig.results(list);
}

/// Who has heard of another CPU's write by RAM finds it on the bus.
pub fn posted_writes_of_another_cpu_come_first<A: Target>(subject: &Subject<A>) {
    const ROUNDS: u64 = 20;
    let mut rig = Rig::new(subject, 2);
    let device = A::DEVICE + 2 * PAGE_SIZE;
    if let Some(power) = rig.vm.posted_writes() {
        power.attach(device..device + PAGE_SIZE).expect("the backend posts writes");
    }
    let cells = rig.allocate(16, 64);
    let table = rig.table();
    let word = |address, value| WriteMemory { address, value, width: Width::Eight };
    let until = |address, value| SpinUntil { address, value, width: Width::Eight };
    let (mut here, mut there) = (vec![A::init_interrupts(&rig, table)], Vec::new());
    for round in 1..=ROUNDS {
        there.extend([word(device, round), word(cells, round), until(cells + 8, round)]);
        let asked = ReadMemory { address: device + 8, width: Width::Four };
        here.extend([until(cells, round), asked, word(cells + 8, round)]);
    }
    let theirs = rig.list(&there);
    let stack = rig.stack();
    here.insert(1, StartCpu { cpu: A::cpu_id(1), list: theirs.gpa, stack });
    let ours = rig.list(&here);
    rig.boot(0, ours);
    let running: Vec<_> = (0..2).map(|cpu| rig.start(cpu)).collect();
    for running in running {
        assert_eq!(rig.join(running), Stop::End);
    }
    let log = rig.bus.log();
    let on_device = log.iter().filter(|access| (device..device + 16).contains(&access.address));
    let seen: Vec<_> = on_device.map(|access| (access.write, if access.write { access.value } else { 0 })).collect();
    let expected: Vec<_> = (1..=ROUNDS).flat_map(|round| [(true, round), (false, 0)]).collect();
    assert_eq!(seen, expected);
    rig.results(ours);
    rig.results(theirs);
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
