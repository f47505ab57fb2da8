//! What the PVH loader passed (Xen's public/arch-x86/hvm/start_info.h).

use super::memory::{bytes, read};
use crate::{problem, say};

const MAGIC: u32 = 0x336e_c578;
const MAX_COMMAND_LINE: u64 = 4096;
const MODULE_SIZE: u64 = 32;
const RANGE_SIZE: u64 = 24;
const PAGE: u64 = 0x1000;

/// `struct hvm_start_info`.
#[repr(C)]
#[derive(Clone, Copy)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_ranges: u32,
    reserved: u32,
}

/// `struct hvm_memmap_table_entry`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Range {
    address: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

const RAM: u32 = 1;

/// The start information.
pub struct Start {
    address: u64,
    info: StartInfo,
    command_line: &'static str,
}

impl Start {
    /// The start information at `address`.
    pub fn at(address: u64) -> Self {
        let info: StartInfo = read(address);
        let length =
            (0..MAX_COMMAND_LINE).find(|&offset| info.command_line == 0 || read::<u8>(info.command_line + offset) == 0);
        let command_line = bytes(info.command_line, length.unwrap_or(0));
        Self { address, info, command_line: str::from_utf8(command_line).unwrap_or("") }
    }

    /// The command line; nothing if it is not text.
    pub fn command_line(&self) -> &str {
        self.command_line
    }

    /// Where the RSDP lies; 0 if the loader did not say.
    pub fn rsdp(&self) -> u64 {
        self.info.rsdp
    }

    fn ranges(&self) -> impl Iterator<Item = Range> {
        let count = if self.info.version == 0 { 0 } else { u64::from(self.info.memory_ranges) };
        let map = self.info.memory_map;
        (0..count).map(move |index| read(map + index * RANGE_SIZE))
    }

    /// Say what the loader passed.
    pub fn describe(&self) {
        say!("boot protocol: PVH version {}", self.info.version);
        if self.info.magic != MAGIC {
            problem!("the start information has no magic number");
        }
        if self.info.modules != 0 {
            say!("modules: {}", self.info.modules);
        }
        let total: u64 = self.ranges().filter(|range| range.kind == RAM).map(|range| range.size).sum();
        say!("memory: {} KiB in {} ranges", total >> 10, self.ranges().filter(|range| range.kind == RAM).count());
        for range in self.ranges() {
            let kind = match range.kind {
                RAM => "RAM",
                2 => "reserved",
                3 => "ACPI tables",
                4 => "ACPI NVS",
                _ => "other",
            };
            say!("memory range: {:#012x} to {:#012x}, {kind}", range.address, range.address + range.size);
        }
        if total == 0 {
            problem!("there is no memory map");
        }
    }

    /// A page of RAM below 640 KiB in which nothing lies that the loader passed.
    pub fn free_low_page(&self) -> Option<u64> {
        let used = [
            (self.address, size_of::<StartInfo>() as u64),
            (self.info.command_line, self.command_line.len() as u64 + 1),
            (self.info.module_list, u64::from(self.info.modules) * MODULE_SIZE),
            (self.info.memory_map, u64::from(self.info.memory_ranges) * RANGE_SIZE),
            (self.info.rsdp, 36),
        ];
        let free = |page: u64| {
            let inside =
                |range: Range| range.kind == RAM && range.address <= page && page + PAGE <= range.address + range.size;
            let clear = |&(address, size): &(u64, u64)| address + size <= page || page + PAGE <= address;
            self.ranges().any(inside) && used.iter().all(clear)
        };
        (1..0xa0).map(|number| number * PAGE).find(|&page| free(page))
    }
}
