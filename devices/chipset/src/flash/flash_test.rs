use std::io::{Read, Seek, Write};

use skep_clock::Clock;
use skep_memory::RamOptions;
use skep_state::Component;

use super::*;
use crate::testing::{Log, Rig, device_properties, refuses};

pub(super) const SIZE: u64 = 512 << 10;

pub(super) fn flash(geometry: Geometry, file: Option<File>) -> Arc<Flash> {
    flash_at(geometry, file, Clock::manual(0))
}

pub(super) fn flash_at(geometry: Geometry, file: Option<File>, clock: Clock) -> Arc<Flash> {
    let content = Arc::new(Backing::new(SIZE, &RamOptions::default()).unwrap());
    let flash = Flash::new(FlashConfig { name: "flash", base: 0x1000, content, geometry, file, clock }).unwrap();
    flash.store(0, &vec![0xff; SIZE as usize]);
    flash.store(0, b"content");
    flash
}

fn rig_of(geometry: Geometry) -> Rig<Flash> {
    let (log, clock) = (Log::default(), Clock::manual(0));
    let device = flash_at(geometry, None, clock.clone());
    // Commands that random accesses rarely find.
    let target = device.clone();
    let poke = Box::new(move |value: u64| {
        let offset = ((value >> 16) % SIZE) & !7;
        let command = [0xff, 0x10, 0x20, 0xd0, 0x40, 0xe8, 0x60, 0x01, 0x70, 0x90, 0x98, 0x50][value as usize % 12];
        let _ = target.write(0, offset, &[command]);
        let _ = target.write(0, offset, &[((value >> 8) as u8 % 4) * 0x34 + 0x34, 0, 0, 0][..geometry.width as usize]);
        assert_eq!(target.mapping().is_some(), target.lock().mode == Mode::Array);
    });
    Rig { device, clock, log, regions: &[(0, SIZE), (0, 64)], poke }
}

pub(crate) mod on_a_pc {
    use super::*;

    fn rig() -> Rig<Flash> {
        rig_of(Geometry::PC)
    }

    device_properties!("chipset-flash-pc", rig);
}

pub(crate) mod on_aarch64 {
    use super::*;

    fn rig() -> Rig<Flash> {
        rig_of(Geometry::VIRT)
    }

    device_properties!("chipset-flash-virt", rig);
}

fn byte(flash: &Flash, offset: u64) -> u8 {
    let mut data = [0];
    flash.read(0, offset, &mut data);
    data[0]
}

pub(super) fn word(flash: &Flash, offset: u64) -> u32 {
    let mut data = [0; 4];
    flash.read(0, offset, &mut data);
    u32::from_le_bytes(data)
}

fn put(flash: &Flash, offset: u64, value: u8) -> Action {
    flash.write(0, offset, &[value])
}

pub(super) fn put_word(flash: &Flash, offset: u64, value: u32) -> Action {
    flash.write(0, offset, &value.to_le_bytes())
}

#[test]
fn ovmf_knows_it_for_flash() {
    // Where neither ROM nor RAM would answer so.
    let flash = flash(Geometry::PC, None);
    assert_eq!(put(&flash, 0, 0x50), Action::None);
    assert_eq!(byte(&flash, 0), b'c');
    assert_eq!(put(&flash, 0, 0x70), Action::Remap);
    assert!(flash.mapping().is_none());
    assert_eq!(byte(&flash, 0), 0);
    assert_eq!(put(&flash, 0, 0xff), Action::Remap);
    assert!(flash.mapping().is_some());
    assert_eq!(byte(&flash, 1), b'o');
}

#[test]
fn bytes_are_programmed_and_blocks_erased() {
    let flash = flash(Geometry::PC, None);
    for (offset, value) in [(0x1000, 0xf0), (0x1001, 0x0f), (0x1000, 0x3c)] {
        let _ = put(&flash, offset, 0x10);
        assert_eq!(put(&flash, offset, value), Action::None);
    }
    assert_eq!(byte(&flash, 0), status::READY);
    let _ = put(&flash, 0, 0xff);
    assert_eq!((byte(&flash, 0x1000), byte(&flash, 0x1001)), (0x30, 0x0f), "bits are only cleared");
    let _ = put(&flash, 0x1fff, 0x20);
    let _ = put(&flash, 0x1fff, 0xd0);
    let _ = put(&flash, 0, 0xff);
    assert_eq!((word(&flash, 0x1000), byte(&flash, 0)), (u32::MAX, b'c'), "one block, all of it");
    let _ = put(&flash, 0, 0x20);
    let _ = put(&flash, 0, 0x00);
    assert_eq!(byte(&flash, 0), status::READY | status::SEQUENCE);
    let _ = put(&flash, 0, 0x50);
    assert_eq!(byte(&flash, 0), b'c', "it was not confirmed");
}

#[test]
fn a_buffer_is_programmed_at_once() {
    let flash = flash(Geometry::VIRT, None);
    let block = 0x4_0000;
    assert_eq!(put_word(&flash, block, 0x00e8_00e8), Action::Remap);
    assert_eq!(word(&flash, block), 0x0080_0080, "there is room");
    // Nothing but what comes from the count to the end of it may be late.
    assert!(flash.mapping().is_none() && flash.posts().is_none());
    assert_eq!(put_word(&flash, block, 0x0001_0001), Action::Remap);
    assert_eq!(flash.posts(), Some(flash.base()..flash.base() + flash.size()));
    assert_eq!(put_word(&flash, block + 8, 0x1111_2222), Action::None);
    assert_eq!(put_word(&flash, block + 12, 0x3333_4444), Action::None);
    assert_eq!(put_word(&flash, block, 0x00d0_00d0), Action::Remap);
    assert!(flash.mapping().is_none() && flash.posts().is_none());
    assert_eq!(word(&flash, block), 0x0080_0080);
    assert_eq!(put_word(&flash, block, 0x00ff_00ff), Action::Remap);
    let words = [4, 8, 12, 16].map(|offset| word(&flash, block + offset));
    assert_eq!(words, [u32::MAX, 0x1111_2222, 0x3333_4444, u32::MAX]);
    // One that is too large, one that leaves its window, one that is not confirmed.
    let _ = put_word(&flash, 0, 0x00e8_00e8);
    let _ = put_word(&flash, 0, 0x0200_0200);
    assert_eq!(word(&flash, 0), 0x00b0_00b0);
    let _ = put_word(&flash, 0, 0x0050_0050);
    let _ = put_word(&flash, 0, 0x00e8_00e8);
    let _ = put_word(&flash, 0, 0x0001_0001);
    let _ = put_word(&flash, 2044, 0);
    let _ = put_word(&flash, 2048, 0);
    let _ = put_word(&flash, 0, 0x00d0_00d0);
    assert_eq!(word(&flash, 0), 0x0090_0090);
    let _ = put_word(&flash, 0, 0x0050_0050);
    assert_eq!(word(&flash, 2044), u32::MAX);
}

#[test]
fn a_locked_block_stays_as_it_is() {
    let flash = flash(Geometry::PC, None);
    let commands = |commands: &[(u64, u8)]| {
        for &(offset, value) in commands {
            let _ = put(&flash, offset, value);
        }
    };
    commands(&[(0x10, 0x60), (0x10, 0x01), (0, 0x90)]);
    assert_eq!([0, 1, 2, 0x1002].map(|offset| byte(&flash, offset)), [0x89, 0x18, 1, 0]);
    commands(&[(0, 0x10), (0, 0)]);
    assert_eq!(byte(&flash, 0), status::READY | status::PROGRAM_FAILED | status::LOCKED);
    commands(&[(0, 0x50), (0, 0x20), (0, 0xd0)]);
    assert_eq!(byte(&flash, 0), status::READY | status::ERASE_FAILED | status::LOCKED);
    commands(&[(0, 0x50)]);
    assert_eq!(byte(&flash, 0), b'c');
    commands(&[(0, 0x60), (0, 0xd0), (0, 0x20), (0, 0xd0), (0, 0xff)]);
    assert_eq!(byte(&flash, 0), 0xff);
    commands(&[(0, 0x60), (0, 0x01)]);
    flash.reset();
    assert!(flash.save().locked.is_empty());
}

#[test]
fn it_tells_of_itself() {
    for (geometry, step, blocks, unit, chip) in [(Geometry::PC, 1, 127, 16, 19), (Geometry::VIRT, 4, 1, 512, 18)] {
        let flash = flash(geometry, None);
        let _ = put(&flash, 0x55 * step, 0x98);
        let query: Vec<u8> = (0x10..0x36).map(|at| byte(&flash, at * step)).collect();
        assert_eq!((&query[..3], &query[0x21..0x24]), (&b"QRY"[..], &b"PRI"[..]));
        let half = |at: usize| u16::from_le_bytes([query[at], query[at + 1]]);
        assert_eq!((query[0x17], half(0x1d), half(0x1f)), (chip, blocks, unit));
    }
}

pub(super) fn file_of(flash: &Flash) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&flash.content_of(0..SIZE)).unwrap();
    file
}

pub(super) fn content(mut file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn its_file_is_at_each_moment_what_it_holds() {
    let file = file_of(&flash(Geometry::PC, None));
    let flash = flash(Geometry::PC, Some(file.try_clone().unwrap()));
    let before = content(&file);
    for (offset, value) in [(0x2000, 1), (0x2001, 2), (0x3000, 3)] {
        let _ = put(&flash, offset, 0x40);
        let _ = put(&flash, offset, value);
    }
    // Bytes that follow each other are one write; the last one is not finished.
    let mut wanted = before;
    wanted[0x2000..0x2002].copy_from_slice(&[1, 2]);
    assert_eq!(content(&file), wanted);
    let _ = put(&flash, 0, 0x70);
    wanted[0x3000] = 3;
    assert_eq!(content(&file), wanted);
    let _ = put(&flash, 0x2000, 0x20);
    let _ = put(&flash, 0x2000, 0xd0);
    wanted[0x2000..0x2002].fill(0xff);
    assert_eq!(content(&file), wanted, "an erase is there as it ends");
    assert!(flash.lock().store.as_ref().unwrap().is_unsynced());
    let _ = put(&flash, 0, 0xff);
    assert!(!flash.lock().store.as_ref().unwrap().is_unsynced());
    assert!(flash.save().changed.is_empty());
}

#[test]
fn what_the_host_refuses_has_failed() {
    let path = tempfile::NamedTempFile::new().unwrap();
    let read_only = File::open(path.path()).unwrap();
    let flash = flash(Geometry::PC, Some(read_only));
    let _ = put(&flash, 0x2000, 0x20);
    let _ = put(&flash, 0x2000, 0xd0);
    assert_eq!(byte(&flash, 0), status::READY | status::SEQUENCE);
}

#[test]
fn out_of_range_state_is_refused_by_name() {
    let flash = flash(Geometry::PC, None);
    let _ = put(&flash, 0, 0x20);
    let _ = put(&flash, 0, 0xd0);
    let state = flash.save();
    assert_eq!(state.changed.len(), 1);
    refuses(&state, "mode", |s| s.mode = 10);
    refuses(&state, "locked", |s| s.locked = vec![2, 1]);
    refuses(&state, "expected", |s| s.expected = 2049);
    refuses(&state, "window", |s| s.window = Some(1));
    refuses(&state, "buffer", |s| s.buffer = vec![].into());
    refuses(&state, "changed", |s| s.changed.push(s.changed[0].clone()));
    let refused = |change: fn(&mut FlashState)| {
        let mut state = state.clone();
        change(&mut state);
        flash.restore(&state).unwrap_err().to_string()
    };
    assert!(refused(|s| s.locked = vec![128]).contains("`locked`"));
    assert!(refused(|s| s.window = Some(512 << 10)).contains("`window`"));
    assert!(refused(|s| s.changed[0].number = 128).contains("`changed`"));
    assert!(refused(|s| s.changed[0].bytes = vec![0; 3].into()).contains("`changed`"));
}

/// Saved before any write of what a driver does, it goes on with the rest as one that was not.
#[test]
fn each_command_is_saved_at_each_of_its_writes() {
    for geometry in [Geometry::PC, Geometry::VIRT] {
        let wide = geometry.width == 4;
        let put = |flash: &Flash, (offset, value): (u64, u32)| {
            let _ = if wide { put_word(flash, offset, value | value << 16) } else { put(flash, offset, value as u8) };
        };
        let step = u64::from(geometry.width);
        let block = u64::from(geometry.block);
        // A lock that holds, one that is taken back; a block erased, one element and four of a buffer programmed; what is refused, and told; ids.
        let commands = [
            (block, 0x60),
            (block, 0x01),
            (0, 0x60),
            (0, 0x01),
            (0, 0x60),
            (0, 0xd0),
            (0, 0x20),
            (0, 0xd0),
            (8, 0x40),
            (8, 0x5a),
            (0, 0xe8),
            (0, 3),
            (16, 0x11),
            (16 + step, 0x22),
            (16 + 2 * step, 0x33),
            (16 + 3 * step, 0x44),
            (0, 0xd0),
            (block, 0x10),
            (block, 0),
            (0, 0x70),
            (0, 0x50),
            (0, 0x90),
            (0, 0x98),
            (0, 0xff),
        ];
        let seen = |flash: &Flash| [0, 8, 16, 28, block, block + 4].map(|offset| word(flash, offset));
        for cut in 0..=commands.len() {
            let (one, two) = (flash(geometry, None), flash(geometry, None));
            commands[..cut].iter().for_each(|command| put(&one, *command));
            let record = one.save_record();
            two.restore_record(&record).unwrap();
            assert_eq!(two.save_record(), record);
            assert_eq!((one.mapping().is_some(), one.posts()), (two.mapping().is_some(), two.posts()), "{cut}");
            for command in &commands[cut..] {
                assert_eq!(seen(&one), seen(&two), "{cut}: before {command:x?}");
                put(&one, *command);
                put(&two, *command);
            }
            assert_eq!((seen(&one), one.save_record()), (seen(&two), two.save_record()), "{cut}");
            let programmed = if wide { [0x005a_005a, 0x0011_0011] } else { [0xffff_ff5a, 0x4433_2211] };
            assert_eq!([word(&two, 8), word(&two, 16)], programmed, "{cut}");
            assert_eq!(word(&two, block), u32::MAX, "it is locked");
        }
    }
}
