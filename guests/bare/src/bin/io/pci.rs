//! A function on PCI's bus 0, and where its registers are.

use crate::machine::Machine;

/// Configuration space (PCI Local Bus 3.0, chapter 6).
const ID: u16 = 0;
const COMMAND: u16 = 4;
const CLASS: u16 = 8;
const BARS: u16 = 0x10;
const CAPABILITIES: u16 = 0x34;

/// `COMMAND`: memory accesses are decoded, the function may access memory, no interrupt pin.
const DECODE: u32 = 2;
const ENABLED: u32 = 1 << 10 | 4 | DECODE;

/// A single function.
pub struct Function<'a> {
    machine: &'a Machine,
    device: u8,
}

impl<'a> Function<'a> {
    /// The first one that is wanted.
    pub fn find(machine: &'a Machine, wanted: impl Fn(&Self) -> bool) -> Option<Self> {
        let all = (0..32).map(|device| Self { machine, device });
        all.filter(|function| function.id() as u16 != 0xffff).find(wanted)
    }

    /// Vendor (low half) and device.
    pub fn id(&self) -> u32 {
        self.read(ID)
    }

    /// Class, subclass and programming interface.
    pub fn class(&self) -> u32 {
        self.read(CLASS) >> 8
    }

    /// A doubleword of configuration space.
    pub fn read(&self, offset: u16) -> u32 {
        self.machine.read_config(self.device, offset)
    }

    fn write(&self, offset: u16, value: u32) {
        self.machine.write_config(self.device, offset, value);
    }

    /// Lets the function decode its BARs and access memory, without a pin.
    pub fn enable(&self) {
        self.write(COMMAND, ENABLED);
    }

    /// Where a memory BAR lies. One that nobody has given a place, or one out of reach, gets one. The function is not enabled meanwhile.
    pub fn bar(&self, number: u16) -> Result<u64, &'static str> {
        const IO: u32 = 1;
        const WIDE: u32 = 4;
        const FLAGS: u32 = 0xf;
        let (low, high) = (BARS + 4 * number, BARS + 4 * number + 4);
        let first = self.read(low);
        if first & IO != 0 {
            return Err("its BAR is not in memory");
        }
        let wide = first & 6 == WIDE;
        let place = u64::from(first & !FLAGS) | if wide { u64::from(self.read(high)) << 32 } else { 0 };
        if place != 0 && place < Machine::REACH {
            return Ok(place);
        }
        let command = self.read(COMMAND) & 0xffff;
        self.write(COMMAND, command & !DECODE);
        self.write(low, u32::MAX);
        let size = u64::from(!(self.read(low) & !FLAGS)) + 1;
        let place = self.machine.place(size).ok_or("there is no room for its BAR")?;
        self.write(low, place as u32);
        if wide {
            self.write(high, (place >> 32) as u32);
        }
        self.write(COMMAND, command);
        Ok(place)
    }

    /// Where the capabilities with this id lie.
    pub fn capabilities(&self, id: u8) -> impl Iterator<Item = u16> {
        // There are no more than fit.
        let mut next = (self.read(CAPABILITIES) & 0xfc) as u16;
        (0..48)
            .map_while(move |_| {
                let at = Some(next).filter(|&at| at != 0)?;
                let header = self.read(at);
                next = (header >> 8 & 0xfc) as u16;
                Some((at, header as u8))
            })
            .filter(move |&(_, found)| found == id)
            .map(|(at, _)| at)
    }
}
