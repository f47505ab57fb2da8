//! The thread of a balloon's queues.

use std::sync::{Arc, Mutex, PoisonError};

use skep_memory::RamView;
use skep_memory::vm_memory::{GuestAddress, GuestMemoryBackend};

use super::{PAGE, Statistics};
use crate::engine::{Engine, Queues};
use crate::{ActiveQueue, Chain, QueueError};

/// Chains of a queue in one round.
const BATCH: usize = 8;
/// The most pages that one chain names: drivers name 256. What is more stays with the guest, which is allowed at any time.
pub(super) const MOST_PAGES: usize = 1024;
/// The most statistics that are looked at, and bytes of each (section 5.5.6.3).
const MOST_STATISTICS: usize = 32;
const STATISTIC: usize = 10;

/// What a queue is for: the optional ones have the numbers that the driver's features leave them (section 5.5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Inflate,
    Deflate,
    Statistics,
    Report,
}

pub(super) enum Command {
    /// The driver is ready: what its queues are for.
    Activate(Vec<Role>),
    /// The driver is to send its statistics anew.
    Refresh,
}

#[derive(Default)]
pub(super) struct BalloonEngine {
    pub(super) statistics: Arc<Mutex<Option<Statistics>>>,
    roles: Vec<Role>,
    /// The driver's buffer of statistics, which is the device's until it wants others.
    held: Option<Chain>,
    /// It wants others as soon as it has a buffer.
    wanted: bool,
}

/// Gives a piece of guest memory back to the host, as far as it is RAM.
fn discard(memory: &RamView, gpa: u64, len: u64) {
    let (mut at, mut left) = (gpa, len);
    while left > 0 {
        let Some((region, offset)) = memory.to_region_addr(GuestAddress(at)) else { return };
        let here = left.min(skep_memory::vm_memory::GuestMemoryRegion::len(region) - offset.0);
        if let Err(error) = region.discard(offset.0, here) {
            tracing::debug!("the host does not take {here:#x} bytes of guest memory at {at:#x} back: {error}");
        }
        (at, left) = (at.saturating_add(here), left - here);
    }
}

/// Gives the pages that a chain names back to the host, those in a row at once.
fn inflate(memory: &RamView, chain: &Chain) -> Result<(), QueueError> {
    let mut bytes = [0; MOST_PAGES * 4];
    let len = chain.readable().read(memory, 0, &mut bytes)?;
    let (mut begin, mut end) = (0, 0);
    for page in bytes.get(..len).unwrap_or_default().chunks_exact(4) {
        let page = page.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        if page != end {
            discard(memory, begin * PAGE, (end - begin) * PAGE);
            begin = page;
        }
        end = page + 1;
    }
    discard(memory, begin * PAGE, (end - begin) * PAGE);
    Ok(())
}

fn report(memory: &RamView, chain: &Chain) {
    let part = chain.writable();
    for piece in part.pieces(0..part.len()) {
        discard(memory, piece.gpa, piece.len.into());
    }
}

impl BalloonEngine {
    fn read_statistics(&self, memory: &RamView, chain: &Chain) -> Result<(), QueueError> {
        let mut bytes = [0; MOST_STATISTICS * STATISTIC];
        let len = chain.readable().read(memory, 0, &mut bytes)?;
        let mut statistics = Statistics::default();
        for entry in bytes.get(..len).unwrap_or_default().chunks_exact(STATISTIC) {
            let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            let (tag, value) = entry.split_at(2);
            statistics.set(number(tag), number(value));
        }
        *self.statistics.lock().unwrap_or_else(PoisonError::into_inner) = Some(statistics);
        Ok(())
    }

    fn take(&mut self, role: Role, queue: &mut ActiveQueue) -> bool {
        for done in 0..BATCH {
            let Some(memory) = queue.memory() else { return done > 0 };
            let Some(chain) = queue.pop() else { return done > 0 };
            let result = match role {
                Role::Inflate => inflate(&memory, &chain),
                // The pages come back when the guest touches them.
                Role::Deflate => Ok(()),
                Role::Report => {
                    report(&memory, &chain);
                    Ok(())
                }
                Role::Statistics => {
                    let result = self.read_statistics(&memory, &chain);
                    // There is one buffer; of two the older one goes back.
                    let older = self.held.replace(chain);
                    let wanted = if std::mem::take(&mut self.wanted) { self.held.take() } else { None };
                    for older in older.into_iter().chain(wanted) {
                        queue.complete(older, 0);
                    }
                    if let Err(error) = result {
                        queue.fail(&error);
                    }
                    continue;
                }
            };
            queue.complete(chain, 0);
            if let Err(error) = result {
                queue.fail(&error);
            }
        }
        true
    }
}

impl Engine for BalloonEngine {
    type Command = Command;

    fn command(&mut self, command: Command, queues: &mut Queues) {
        match command {
            Command::Activate(roles) => self.roles = roles,
            Command::Refresh => {
                let index = self.roles.iter().position(|role| *role == Role::Statistics);
                if let Some(queue) = index.and_then(|index| queues.get(index as u16))
                    && !queue.is_closed()
                    && let Some(chain) = self.held.take()
                {
                    queue.complete(chain, 0);
                } else {
                    self.wanted = true;
                }
            }
        }
    }

    fn work(&mut self, queues: &mut Queues) -> bool {
        let mut worked = false;
        for (index, role) in self.roles.clone().into_iter().enumerate() {
            worked |= queues.get(index as u16).is_some_and(|queue| self.take(role, queue));
        }
        worked
    }

    fn closing(&mut self, queue: &mut ActiveQueue) {
        if self.roles.get(usize::from(queue.index())) == Some(&Role::Statistics)
            && let Some(chain) = self.held.take()
        {
            queue.give_back(chain);
        }
    }
}
