use std::mem::offset_of;

use super::*;

#[test]
fn fields_stand_where_the_protocol_says() {
    assert_eq!(size_of::<BootParams>(), 4096);
    assert_eq!(offset_of!(BootParams, acpi_rsdp_addr), 0x070);
    assert_eq!(offset_of!(BootParams, ext_ramdisk_image), 0x0c0);
    assert_eq!(offset_of!(BootParams, ext_cmd_line_ptr), 0x0c8);
    assert_eq!(offset_of!(BootParams, e820_entries), 0x1e8);
    assert_eq!(offset_of!(BootParams, header), HEADER_OFFSET);
    assert_eq!(offset_of!(BootParams, e820_table), 0x2d0);
    let at = |offset| offset + HEADER_OFFSET;
    assert_eq!(at(offset_of!(SetupHeader, syssize)), 0x1f4);
    assert_eq!(at(offset_of!(SetupHeader, boot_flag)), 0x1fe);
    assert_eq!(at(offset_of!(SetupHeader, header)), 0x202);
    assert_eq!(at(offset_of!(SetupHeader, version)), 0x206);
    assert_eq!(at(offset_of!(SetupHeader, kernel_version)), 0x20e);
    assert_eq!(at(offset_of!(SetupHeader, type_of_loader)), 0x210);
    assert_eq!(at(offset_of!(SetupHeader, code32_start)), 0x214);
    assert_eq!(at(offset_of!(SetupHeader, ramdisk_image)), 0x218);
    assert_eq!(at(offset_of!(SetupHeader, cmd_line_ptr)), 0x228);
    assert_eq!(at(offset_of!(SetupHeader, initrd_addr_max)), 0x22c);
    assert_eq!(at(offset_of!(SetupHeader, kernel_alignment)), 0x230);
    assert_eq!(at(offset_of!(SetupHeader, xloadflags)), 0x236);
    assert_eq!(at(offset_of!(SetupHeader, cmdline_size)), 0x238);
    assert_eq!(at(offset_of!(SetupHeader, setup_data)), 0x250);
    assert_eq!(at(offset_of!(SetupHeader, pref_address)), 0x258);
    assert_eq!(at(offset_of!(SetupHeader, init_size)), 0x260);
    assert_eq!(at(offset_of!(SetupHeader, kernel_info_offset)), 0x268);
    assert_eq!(offset_of!(RngSeed, seed), 16);
}
