//! Which registers a GIC's state is made of, and how each is saved, restored and reset.

use std::collections::BTreeMap;

use skep_hypervisor::HypervisorError;
use skep_state::StateError;

/// Registers of 32 bits that lie one after the other and are treated alike.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    /// The first one's offset.
    pub(super) offset: u32,
    /// How many.
    pub(super) count: u32,
    /// How they are written.
    pub(super) write: Write,
    /// Their power-on value.
    pub(super) reset: u32,
}

/// How a register takes a value.
#[derive(Debug, Clone, Copy)]
pub(super) enum Write {
    /// As it is.
    Plain,
    /// Ones set bits here, and clear them in the register at this offset.
    SetAndClear(u32),
    /// Only with the value that it has here: it tells what the GIC is. KVM wants it written before all others, to see that the writer
    /// knows this GIC.
    Identity,
}

impl Block {
    pub(super) const fn new(offset: u32, count: u32, write: Write, reset: u32) -> Self {
        Self { offset, count, write, reset }
    }

    pub(super) fn offsets(&self) -> impl Iterator<Item = u32> + use<> {
        (self.offset..).step_by(4).take(self.count as usize)
    }
}

/// Registers and their values.
pub(super) type Values = Vec<(u32, u32)>;

/// Reads all registers of `blocks`.
pub(super) fn save(
    blocks: &[Block],
    read: impl Fn(u32) -> Result<u32, HypervisorError>,
) -> Result<Values, HypervisorError> {
    blocks.iter().flat_map(Block::offsets).map(|offset| Ok((offset, read(offset)?))).collect()
}

/// Checks that `saved` has each register of `blocks` once and no other, and that the identity is the one that `read` finds here.
pub(super) fn check(
    what: &str,
    blocks: &[Block],
    saved: &[(u32, u32)],
    read: impl Fn(u32) -> Result<u32, HypervisorError>,
) -> Result<(), HypervisorError> {
    let mut values: BTreeMap<u32, u32> = saved.iter().copied().collect();
    if values.len() != saved.len() {
        return Err(unfit(what, "a register is there twice".to_owned()));
    }
    for (block, offset) in blocks.iter().flat_map(|block| block.offsets().map(move |offset| (block, offset))) {
        let Some(value) = values.remove(&offset) else {
            return Err(unfit(what, format!("the register at {offset:#x} is missing")));
        };
        let here = if matches!(block.write, Write::Identity) { read(offset)? } else { value };
        if here != value {
            return Err(unfit(what, format!("the register at {offset:#x} is {value:#x}, and {here:#x} on this host")));
        }
    }
    match values.first_key_value() {
        Some((offset, _)) => Err(unfit(what, format!("KVM's GIC has no state in a register at {offset:#x}"))),
        None => Ok(()),
    }
}

/// Writes what [`check`] has passed, in the order of `blocks`.
pub(super) fn restore(
    blocks: &[Block],
    saved: &[(u32, u32)],
    write: impl Fn(u32, u32) -> Result<(), HypervisorError>,
) -> Result<(), HypervisorError> {
    let values: BTreeMap<u32, u32> = saved.iter().copied().collect();
    each(blocks, |_, offset| values.get(&offset).copied(), write)
}

/// Writes the power-on values.
pub(super) fn reset(
    blocks: &[Block],
    write: impl Fn(u32, u32) -> Result<(), HypervisorError>,
) -> Result<(), HypervisorError> {
    each(blocks, |block, _| (!matches!(block.write, Write::Identity)).then_some(block.reset), write)
}

fn each(
    blocks: &[Block],
    value: impl Fn(&Block, u32) -> Option<u32>,
    write: impl Fn(u32, u32) -> Result<(), HypervisorError>,
) -> Result<(), HypervisorError> {
    for block in blocks {
        for offset in block.offsets() {
            let Some(value) = value(block, offset) else { continue };
            if let Write::SetAndClear(clear) = block.write {
                write(clear + (offset - block.offset), u32::MAX)?;
            }
            write(offset, value)?;
        }
    }
    Ok(())
}

/// A state that does not fit this GIC.
pub(super) fn unfit(what: &str, reason: String) -> HypervisorError {
    StateError::Backend { what: format!("restore the GIC's state ({what})"), reason }.into()
}
