use super::super::{Dsdt, Table, devices, link};
use super::*;

/// Firmware, as far as the script needs it: blobs at addresses.
struct Firmware {
    blobs: Vec<(String, Vec<u8>, u64)>,
    written: Option<u64>,
}

fn text(bytes: &[u8]) -> String {
    bytes.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect()
}

fn word(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

impl Firmware {
    fn blob(&mut self, name: &str) -> &mut (String, Vec<u8>, u64) {
        self.blobs.iter_mut().find(|blob| blob.0 == name).unwrap()
    }

    fn run(script: &[u8], files: &[(&str, &[u8])]) -> Self {
        let mut this = Self { blobs: Vec::new(), written: None };
        let mut next = 0x10_0000;
        for step in script.chunks(STEP) {
            let (first, second) = (text(&step[4..]), text(&step[60..]));
            match word(step, 0) {
                1 => {
                    let content = files.iter().find(|file| file.0 == first).unwrap().1.to_vec();
                    assert_eq!(next % word(step, 60) as u64, 0);
                    this.blobs.push((first, content, next));
                    next += 0x1_0000;
                }
                2 => {
                    let address = this.blob(&second).2;
                    let (offset, size) = (word(step, 116), usize::from(step[120]));
                    let place = &mut this.blob(&first).1[offset..offset + size];
                    let mut value = [0; 8];
                    value[..size].copy_from_slice(place);
                    place.copy_from_slice(&(u64::from_le_bytes(value) + address).to_le_bytes()[..size]);
                }
                3 => {
                    let (offset, start, length) = (word(step, 60), word(step, 64), word(step, 68));
                    let bytes = &mut this.blob(&first).1;
                    let sum = bytes[start..start + length].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
                    bytes[offset] = bytes[offset].wrapping_sub(sum);
                }
                4 => {
                    assert_eq!(
                        (first.as_str(), word(step, 116), word(step, 120), step[124]),
                        (file::GENERATION_ADDRESS, 0, 0, 8)
                    );
                    this.written = Some(this.blob(&second).2);
                }
                other => panic!("command {other}"),
            }
        }
        this
    }
}

#[test]
fn firmware_places_the_tables_as_a_machine_without_it_does() {
    let mut dsdt = Dsdt::new();
    dsdt.device(&devices::Generation);
    let tables = vec![
        dsdt.table(),
        Table::new(*b"FACP", 6, &[0; 240]).with_pointer(140, super::super::PointerSize::Eight, *b"DSDT"),
    ];
    let mut linked = link(tables);
    let generation = devices::Generation::find_pointer(&mut linked.tables.bytes).unwrap();
    let page = vec![0; GENERATION_SIZE];
    let files: [(&str, &[u8]); 3] =
        [(file::TABLES, &linked.tables.bytes), (file::RSDP, &linked.rsdp.bytes), (file::GENERATION, &page)];
    let mut firmware = Firmware::run(&script(&linked, Some(generation)), &files);
    assert_eq!(firmware.written, Some(0x12_0000));
    let (_, placed, at) = firmware.blob(file::TABLES).clone();
    assert_eq!(word(&placed, generation), 0x12_0000 + GENERATION_OFFSET);

    // The rest is what the machine itself would have done.
    let mut without = linked.clone();
    without.tables.bytes[generation..generation + 4]
        .copy_from_slice(&(0x12_0000u32 + GENERATION_OFFSET as u32).to_le_bytes());
    let (tables, rsdp) = without.place(at).unwrap();
    assert_eq!(placed, tables);
    assert_eq!(firmware.blob(file::RSDP).1, rsdp);
}
