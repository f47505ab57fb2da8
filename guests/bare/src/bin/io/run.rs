//! Runs a job, and says what it took.

use bare::arch::cpu;
use bare::{problem, say};

use crate::disk::{Disk, MOST_BYTES, MOST_DEPTH, SECTOR};
use crate::job::Job;
use crate::machine::Machine;
use crate::memory::{PAGE, get};
use crate::pattern::{self, Random};

/// A disk that says nothing for so long is stuck.
const PATIENCE_MS: u64 = 20_000;

/// What has come of a job so far.
#[derive(Default)]
struct Tally {
    ops: u64,
    errors: u64,
    wrong: u64,
    checksum: u64,
}

/// Runs `job`.
pub fn run<D: Disk>(disk: &mut D, job: &Job, machine: &Machine) -> Result<(), &'static str> {
    let stride = job.block.next_multiple_of(PAGE);
    if job.block == 0 || !job.block.is_multiple_of(disk.block().max(SECTOR)) || job.block > disk.most() {
        return Err("it can't access so many bytes at once");
    }
    if !(1..=MOST_DEPTH).contains(&job.depth) || u64::from(job.depth) * stride > MOST_BYTES {
        return Err("there is no room for so many accesses at once");
    }
    let blocks = disk.bytes() / job.block;
    if blocks == 0 {
        return Err("it is smaller than one access");
    }
    disk.prepare(job.depth, stride, job.block);

    let (buffers, bells) = (disk.buffers(), disk.bells());
    let per_ms = machine.ticks_per_second() / 1000;
    let begin = cpu::counter();
    let (end, mut heard) = (begin + per_ms * job.ms, begin);
    let (mut random, mut next) = (Random::new(job.seed), 0);
    let (mut begun, mut in_flight, mut tally) = (0, 0, Tally::default());
    let mut offsets = [0; MOST_DEPTH as usize];
    let mut free = [0; MOST_DEPTH as usize];
    let mut spare = job.depth as usize;
    free.iter_mut().zip(0..).for_each(|(slot, number)| *slot = number);
    loop {
        while spare > 0 && begun < job.count && heard < end {
            spare -= 1;
            let slot: u32 = free[spare];
            let block = if job.op.is_random() { random.below(blocks) } else { next % blocks };
            let (buffer, offset) = (buffers + u64::from(slot) * stride, block * job.block);
            next += 1;
            offsets[slot as usize] = offset;
            if job.op.writes() {
                if job.verify {
                    pattern::fill(buffer, job.seed, offset, job.block);
                }
                tally.checksum = tally.checksum.wrapping_add(get::<u64>(buffer));
            }
            disk.queue(slot, job.op.writes(), offset);
            begun += 1;
            in_flight += 1;
        }
        disk.ring();
        if in_flight == 0 {
            break;
        }
        let mut ended = 0;
        while ended == 0 {
            ended = disk.reap(|slot, good| {
                free[spare] = slot;
                spare += 1;
                tally.take(job, good, buffers + u64::from(slot) * stride, offsets[slot as usize]);
            });
            if ended == 0 {
                cpu::relax();
                if cpu::counter() - heard > per_ms * PATIENCE_MS {
                    return Err("it does not answer");
                }
            }
        }
        in_flight -= ended;
        heard = cpu::counter();
    }
    let ns =
        (u128::from(cpu::counter() - begin) * 1_000_000_000 / u128::from(machine.ticks_per_second().max(1))) as u64;
    let Tally { ops, errors, wrong, checksum } = tally;
    say!(
        "io: device={} op={} bs={} depth={} ops={ops} ns={ns} bells={} quiet={} errors={errors} wrong={wrong} checksum={checksum:#018x}",
        job.device.word(),
        job.op.word(),
        job.block,
        job.depth,
        disk.bells() - bells,
        u8::from(disk.is_quiet())
    );
    if errors + wrong != 0 {
        problem!("{errors} accesses failed, {wrong} found what does not belong there");
    }
    Ok(())
}

impl Tally {
    fn take(&mut self, job: &Job, good: bool, buffer: u64, offset: u64) {
        self.ops += 1;
        self.errors += u64::from(!good);
        if !job.op.writes() {
            self.checksum = self.checksum.wrapping_add(get::<u64>(buffer));
            self.wrong += u64::from(job.verify && !pattern::holds(buffer, job.seed, offset, job.block));
        }
    }
}
