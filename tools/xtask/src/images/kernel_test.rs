use super::{gzip, vmlinux, zboot};
use std::io::Read;

/// A bzImage of one setup sector whose payload is `elf` in two LZ4 blocks.
fn bz_image(elf: &[u8]) -> Vec<u8> {
    let mut payload = 0x184c_2102_u32.to_le_bytes().to_vec();
    for half in elf.chunks(elf.len().div_ceil(2)) {
        let block = lz4_flex::block::compress(half);
        payload.extend_from_slice(&(block.len() as u32).to_le_bytes());
        payload.extend_from_slice(&block);
    }
    payload.extend_from_slice(&(elf.len() as u32).to_le_bytes());

    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.resize(1024 + 16, 0x90);
    image.extend_from_slice(&payload);
    image
}

#[test]
fn the_elf_comes_out_of_a_bz_image() {
    let elf: Vec<u8> = b"\x7fELF".iter().copied().chain((0..5000_u32).map(|i| (i % 7) as u8)).collect();
    assert_eq!(vmlinux(&bz_image(&elf)).unwrap(), elf);
}

#[test]
fn a_file_cut_off_anywhere_is_an_error() {
    let whole = bz_image(b"\x7fELF and so on and so on");
    for length in 0..whole.len() {
        assert!(vmlinux(&whole[..length]).is_err(), "cut off at {length}");
    }
}

#[test]
fn other_payloads_are_refused_by_name() {
    let mut image = bz_image(b"\x7fELF");
    image[1024 + 16] = 0xfd;
    assert!(vmlinux(&image).unwrap_err().to_string().contains("0x184c21fd"));
    let other = vmlinux(&bz_image(b"not an ELF")).unwrap_err();
    assert!(other.to_string().contains("no ELF"), "{other}");
}

#[test]
fn a_zboot_file_says_where_its_payload_is() {
    let image: Vec<u8> = (0..9999_u32).map(|i| (i % 251) as u8).collect();
    let file = zboot(&gzip(&image));
    let field = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
    assert_eq!(&file[..8], b"MZ\0\0zimg");
    assert_eq!(&file[0x18..0x1d], b"gzip\0");
    assert_eq!(&file[field(0x3c)..field(0x3c) + 4], b"PE\0\0");
    let payload = &file[field(8)..field(8) + field(12)];
    let mut back = Vec::new();
    flate2::read::GzDecoder::new(payload).read_to_end(&mut back).unwrap();
    assert_eq!(back, image);
}
